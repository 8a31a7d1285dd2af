"""Load a server as users do, and report what they wait for: any OpenAI endpoint, or one started for this."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from runtime.cli.output import status, table
from runtime.errors import InvalidArgument

SCHEMA = "runtime-bench-serve/1"
HEADER = ("load", "requests", "failed", "tokens/s", "TTFT p50", "p99", "gap p50", "p99", "e2e p50", "p99", "cached")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    group = parser.add_argument_group("the server")
    group.add_argument("--url", default="http://127.0.0.1:8080/v1", help="its address, /v1 included (%(default)s)")
    group.add_argument("--api-key", metavar="KEY", help="sent as a bearer token")
    group.add_argument("--model-name", metavar="NAME", help="as the server calls it (the first of /models)")
    group.add_argument("--endpoint", choices=("completions", "chat"), default="completions", help="(completions)")
    group = parser.add_argument_group("the load; lists are separated by commas")
    group.add_argument("--clients", type=_counts, metavar="N,..", help="clients that wait for answers (1,4,16)")
    group.add_argument("--rate", type=_rates, metavar="R,..", help="instead: arrivals per second, at random")
    group.add_argument("--requests", type=int, metavar="N", help="requests per load (4 per client, or 64)")
    group.add_argument("--input", type=_span, default=(256, 256), metavar="N[:M]", help="tokens of a prompt (256)")
    group.add_argument("--output", type=_span, default=(64, 64), metavar="N[:M]", help="tokens to generate (64)")
    group.add_argument("--shared-prefix", type=int, default=0, metavar="N", help="tokens that all prompts begin with")
    group.add_argument("--keep-eos", action="store_true", help="let answers end early; else ignore_eos is asked for")
    group.add_argument("--seed", type=int, default=0, help="same seed, same requests (0)")
    group = parser.add_argument_group("output")
    group.add_argument("--json", dest="json_file", metavar="FILE", help="write every record; - is stdout")
    group.add_argument("--plot", metavar="FILE", help="write a picture (SVG)")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code: 1 when a request failed."""
    from runtime.server.load.plot import plot
    from runtime.server.load.workload import Workload

    if args.clients and args.rate:
        raise InvalidArgument("--clients and --rate are two ways to load a server; give one")
    workload = Workload(args.input, args.output, args.shared_prefix, args.endpoint, not args.keep_eos, args.seed)
    records, model = asyncio.run(_measure(args, workload))
    document = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "url": args.url,
        "model": model,
        "workload": vars(workload),
        "records": records,
    }
    if args.plot:
        lengths = f"{_range(workload.input_tokens)} in, {_range(workload.output_tokens)} out"
        Path(args.plot).write_text(plot(records, f"{model} · {lengths}"), encoding="utf-8")
    if args.json_file == "-":
        print(json.dumps(document))
    else:
        if args.json_file:
            Path(args.json_file).write_text(json.dumps(document), encoding="utf-8")
        print(table([HEADER, *(_row(r) for r in records)]))
    failed = [r for r in records if r["failed"]]
    for record in failed:
        print(f"error: {record['failed']} requests failed: {record['errors']}", file=sys.stderr)
    return 1 if failed else 0


async def _measure(args: argparse.Namespace, workload: Any) -> tuple[list[dict[str, Any]], str]:
    from runtime.server.load.client import Client
    from runtime.server.load.drive import closed_loop, open_loop
    from runtime.server.load.summary import summarize

    records = []
    async with Client(args.url, model=args.model_name, api_key=args.api_key) as client:
        scale = await client.calibrate(workload)
        status(f"{args.url} · {client.model} · a word is {scale.per_word:.2f} tokens there")
        for rate in args.rate or ():
            status(f"{rate:g} arrivals per second")
            run = await open_loop(client, workload, scale, rate=rate, requests=args.requests or 64)
            records.append(summarize(run))
        for clients in () if args.rate else args.clients or (1, 4, 16):
            status(f"{clients} clients")
            requests = args.requests or 4 * clients
            run = await closed_loop(client, workload, scale, clients=clients, requests=requests)
            records.append(summarize(run))
        return records, str(client.model)


def _row(record: dict[str, Any]) -> Sequence[str]:
    load = f"{record['clients']} clients" if record["clients"] is not None else f"{record['rate']:g}/s"
    times = [_time(record[kind], p) for kind in ("ttft_s", "itl_s", "e2e_s") for p in ("p50", "p99")]
    cached = record["cached_tokens"] / record["prompt_tokens"] if record["prompt_tokens"] else 0.0
    return (
        load,
        str(record["requests"]),
        str(record["failed"]),
        f"{record['output_tokens_per_s']:.1f}",
        *times,
        f"{cached:.0%}",
    )


def _time(figures: dict[str, float] | None, name: str) -> str:
    if figures is None:
        return "-"
    value = figures[name]
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _range(span: tuple[int, int]) -> str:
    return f"{span[0]}" if span[0] == span[1] else f"{span[0]}-{span[1]}"


def _counts(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: counts are positive")
    return values


def _rates(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if min(values) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: rates are positive")
    return values


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    return int(first), int(last or first)
