"""Serve a model over HTTP, behind the OpenAI interface."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from runtime.cli.arguments import add_placement, add_weight_cache, model_path, placement
from runtime.cli.output import LoadProgress, status
from runtime.cli.texts import read_text
from runtime.errors import InvalidArgument, Unsupported

_NEEDED = ("starlette", "uvicorn", "msgspec")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("-m", "--model", metavar="PATH", help="GGUF file or Hugging Face directory (the demo model)")
    _add_network(parser)
    _add_logs(parser)
    _add_engine(parser)
    add_placement(parser)
    add_weight_cache(parser)


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"serving needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy="pip install 'hal-runtime[serve]'",
        )
    import asyncio

    from runtime.engine.config import EngineConfig
    from runtime.server.logs import set_up_logs
    from runtime.server.serve import serve
    from runtime.server.settings import ServerSettings

    settings = ServerSettings(
        host=args.host,
        port=args.port,
        uds=args.uds,
        api_keys=tuple(_keys(args)),
        model_names=tuple(args.served_model_name or [_name(args.model)]),
        cors_origins=tuple(args.cors_origin),
        ssl_certfile=args.ssl_certfile,
        ssl_keyfile=args.ssl_keyfile,
        drain_timeout_s=args.drain_timeout,
        request_timeout_s=args.request_timeout,
        max_body_bytes=round(args.max_body_mb * 1_000_000),
        log_requests=args.log_requests,
        log_prompts=args.log_prompts,
    )
    engine = EngineConfig(
        model=model_path(args.model),
        **placement(args),
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_queued_requests=args.max_queued_requests,
        max_queued_tokens=args.max_queued_tokens,
        num_kv_blocks=args.num_kv_blocks,
        scheduling_policy=args.scheduling_policy,
        enable_prefix_caching=not args.no_prefix_caching,
        check_tensors=args.check_tensors,
        weight_cache=args.weight_cache,
        chat_template=read_text(args.chat_template) if args.chat_template else None,
    )
    set_up_logs(args.log_level, args.log_format)
    progress = LoadProgress()

    def say(line: str) -> None:
        progress.finish()
        status(line)

    try:
        asyncio.run(serve(settings, engine, process=not args.in_process, progress=progress, say=say))
    finally:
        progress.finish()
    return 0


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1); 0.0.0.0 is every one")
    add("--port", type=int, default=8080, metavar="N", help="port (8080); 0 takes a free one")
    add("--uds", metavar="PATH", help="listen on a unix socket instead")
    add("--api-key", action="append", default=[], metavar="KEY", help="ask for a key; may be repeated")
    add("--api-key-file", metavar="PATH", help="keys, one per line; # begins a comment")
    add("--served-model-name", action="append", metavar="NAME", help="name in requests (the file's); may be repeated")
    add("--cors-origin", action="append", default=[], metavar="URL",
        help="origin whose pages may call: a URL, localhost, or *; may be repeated")  # fmt: skip
    add("--ssl-certfile", metavar="PATH", help="certificate chain (PEM); the server speaks TLS then")
    add("--ssl-keyfile", metavar="PATH", help="its private key (PEM)")
    add(
        "--drain-timeout", type=float, default=30.0, metavar="S", help="seconds for running requests after SIGTERM (30)"
    )
    add("--request-timeout", type=float, metavar="S", help="most seconds for one request (no limit)")
    add("--max-body-mb", type=float, default=32.0, metavar="MB", help="longest body of a request (32)")


def _add_logs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("logs")
    add = group.add_argument
    add("--log-level", choices=("debug", "info", "warning", "error"), default="warning",
        help="least serious messages on stderr (warning)")  # fmt: skip
    add("--log-format", choices=("text", "json"), default="text", help="form of those messages (text)")
    add("--log-requests", nargs="?", const="text", choices=("text", "json"),
        help="a line per request on stderr; probes and metrics only if they fail, or at level debug")  # fmt: skip
    add("--log-prompts", metavar="DIR", help="write the texts of requests and answers to this folder: sensitive")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    add = group.add_argument
    add("--max-num-seqs", type=int, default=16, metavar="N", help="most sequences in one step (16)")
    add("--max-num-batched-tokens", type=int, default=512, metavar="N", help="most tokens in one step (512)")
    add("--max-queued-requests", type=int, default=1024, metavar="N", help="more than so many waiting get 429 (1024)")
    add("--max-queued-tokens", type=int, metavar="N",
        help="more prompt tokens than that waiting for their first token get 429 (any number)")  # fmt: skip
    add("--num-kv-blocks", type=int, metavar="N", help="blocks of the KV cache (fitted to memory)")
    add("--scheduling-policy", choices=("fcfs", "priority", "fair"), default="fcfs",
        help="who runs first: first come, `priority` of the request, or fair by tokens per key (fcfs)")  # fmt: skip
    add("--no-prefix-caching", action="store_true", help="compute every prompt from its beginning")
    add("--chat-template", metavar="PATH", help="use the template of this file instead of the model's")
    add("--check-tensors", action="store_true", help="refuse weights that hold NaN or infinity")
    add("--in-process", action="store_true", help="no process of its own for the engine: a crash ends the server")


def _keys(args: argparse.Namespace) -> list[str]:
    """Keys of the options, of the file and of the environment."""
    keys: list[str] = list(args.api_key)
    if args.api_key_file:
        lines = (line.partition("#")[0].strip() for line in read_text(args.api_key_file).splitlines())
        found = [line for line in lines if line]
        if not found:
            raise InvalidArgument(f"'{args.api_key_file}' holds no API key", remedy="write one key on each line")
        keys += found
    key = os.environ.get("RUNTIME_API_KEY")
    return [*keys, key] if key else keys


def _name(model: str | None) -> str:
    """The name under which a model is served if none was given: its file's or directory's."""
    path = model_path(model)
    return "demo" if path is None else Path(path).resolve().name.removesuffix(".gguf")
