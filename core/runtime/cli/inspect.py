"""Show what a model file holds, by its header alone: no weight is read."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.arguments import add_model, model_path
from runtime.cli.output import EXIT_ERROR, emit, human_bytes, human_count, paint, plural, report_error, table, wrap

if TYPE_CHECKING:
    from runtime.cli.model_facts import ModelFacts
    from runtime.formats import ModelFile

METADATA_WIDTH = 300
"""Characters of one metadata value that are shown to a person; chat templates are longer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add_model(parser)
    parser.add_argument("--tensors", action="store_true", help="list every tensor with format, shape and size")
    parser.add_argument("--metadata", action="store_true", help="list every key of the header; long arrays are cut")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns 2 when the model cannot run here, after its facts."""
    from runtime.cli.model_facts import gather_facts
    from runtime.formats import open_model
    from runtime.models.demo import demo_model_path

    with open_model(model_path(args.model) or demo_model_path()) as file:
        facts = gather_facts(file)
        if args.json:
            emit({"event": "model", **facts.to_json(), **_listed(file, args)})
        else:
            print(_describe(facts))
            _print_lists(file, args)
    if not args.json:
        sys.stdout.flush()
        for refusal in facts.refusals:
            report_error(refusal, as_json=False)
    return EXIT_ERROR if facts.refusals else 0


def _describe(facts: ModelFacts) -> str:
    about = facts.about
    kind = "GGUF" if facts.kind == "gguf" else "Hugging Face directory"
    size = sum(f["bytes"] for f in facts.files)
    files = f"{facts.path} · {kind}, {human_bytes(size)}"
    if len(facts.files) > 1:
        files += f" in {len(facts.files)} files"
    what = [facts.architecture or "unknown"]
    if facts.num_parameters:
        what.append(f"{human_count(facts.num_parameters)} parameters")
    rows = [("file", files), ("architecture", " · ".join(what))]
    if "name" in about:
        rows.insert(0, ("name", about["name"]))
    rows += [(key, " ".join(about[key].split())) for key in ("organization", "license", "description") if key in about]
    if facts.formats:
        rows.append(("weights", _weights(facts)))
    sizes = [
        f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in facts.sizes.items()
        if name not in ("vocab_size", "max_model_len")
    ]
    if sizes:
        rows.append(("sizes", " · ".join(sizes)))
    rows += _context(facts)
    rows += _traits(facts.traits)
    rows += _tokenizer(facts.tokenizer)
    if len(facts.files) > 1:
        rows += [("" if i else "files", f"{f['path']} {human_bytes(f['bytes'])}") for i, f in enumerate(facts.files)]
    return table([(paint(name, "2", sys.stdout), text) for name, text in rows])


def _weights(facts: ModelFacts) -> str:
    parts = [f"{f['format']} {human_bytes(f['bytes'])} ({plural(f['num_tensors'], 'tensor')})" for f in facts.formats]
    bits = 8 * facts.weights_bytes / max(sum(f["num_parameters"] for f in facts.formats), 1)
    return f"{human_bytes(facts.weights_bytes)}, {bits:.2f} bits each: {', '.join(parts)}"


def _context(facts: ModelFacts) -> list[tuple[str, str]]:
    limit = facts.sizes.get("max_model_len")
    if limit is None:
        return []
    parts = [f"{limit} tokens"]
    if facts.kv_bytes_per_token:
        stored = ", ".join(f"{human_bytes(n)} as {fmt}" for fmt, n in facts.kv_bytes_per_token.items())
        whole = facts.kv_bytes_per_token.get("f16", 0) * limit
        parts.append(f"KV cache per token {stored}; {human_bytes(whole)} for all of it as f16")
    return [("context", " · ".join(parts))]


def _traits(traits: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, rope in traits.get("ropes", {}).items():
        text = f"theta {rope['theta']:.10g}, {rope['rotary_dim']} elements of a head"
        if rope["kind"] != "default":
            factor = "" if rope["factor"] is None else f" factor {rope['factor']:g}"
            text += f", {rope['kind']}{factor} from {rope['original_max_position_embeddings']} tokens"
        rows.append(("rope" if name == "default" else f"rope ({name})", text))
    if "sliding_window" in traits:
        window = traits["sliding_window"]
        rows.append(("window", f"{window['window']} tokens in {plural(window['num_layers'], 'layer')}"))
    if "experts" in traits:
        experts = traits["experts"]
        text = f"{experts['count']}, {experts['top_k']} per token, intermediate_size {experts['intermediate_size']}"
        if experts["shared_intermediate_size"]:
            text += f", and a shared one of {experts['shared_intermediate_size']}"
        rows.append(("experts", f"{text}, in {plural(experts['num_layers'], 'layer')}"))
    if "activation" in traits:
        caps = [f"{name} {traits[name]:g}" for name in ("attention_softcap", "logits_softcap") if name in traits]
        rows.append(("traits", " · ".join([traits["activation"], *traits["flags"], *caps])))
    return rows


def _tokenizer(tokenizer: dict[str, Any] | None) -> list[tuple[str, str]]:
    if tokenizer is None:
        return []
    parts = [tokenizer["kind"], f"{tokenizer['vocab_size']} tokens, {tokenizer['num_special']} of them special"]
    for name in ("bos", "eos"):
        if tokenizer[name] is not None:
            added = " (added)" if tokenizer[f"adds_{name}"] else ""
            parts.append(f"{name.upper()} {tokenizer[name]['id']} {tokenizer[name]['text']}{added}")
    ends = ", ".join(f"{end['id']} {end['text']}" for end in tokenizer["end_of_generation"])
    parts.append(f"a generation ends at {ends}" if ends else "no token ends a generation")
    templates = ", ".join(f"{name} ({plural(n, 'character')})" for name, n in tokenizer["chat_templates"].items())
    return [("tokenizer", " · ".join(parts)), ("chat template", templates or "none")]


def _listed(file: ModelFile, args: argparse.Namespace) -> dict[str, Any]:
    from runtime.cli.model_facts import plain_metadata

    lists: dict[str, Any] = {}
    if args.metadata:
        lists["metadata"] = plain_metadata(file.metadata)
    if args.tensors:
        lists["tensors"] = [
            {"name": name, "format": spec.format.name, "shape": list(spec.resolve({})), "bytes": spec.nbytes()}
            for name, spec in file.tensors.items()
        ]
    return lists


def _print_lists(file: ModelFile, args: argparse.Namespace) -> None:
    from runtime.cli.model_facts import plain_metadata, shape_text

    if args.metadata:
        print()
        for key, value in file.metadata.items():
            text = value if isinstance(value, str) else json.dumps(plain_metadata(value), ensure_ascii=False)
            shown = text if len(text) <= METADATA_WIDTH else f"{text[:METADATA_WIDTH]}... {len(text)} characters"
            print(wrap(" ".join(shown.split()), first=f"{paint(key, '36', sys.stdout)}  "))
    if args.tensors:
        print()
        rows = [
            (name, spec.format.name, human_bytes(spec.nbytes()), shape_text(spec.resolve({})))
            for name, spec in file.tensors.items()
        ]
        print(table([tuple(paint(h, "2", sys.stdout) for h in ("tensor", "format", "size", "shape")), *rows]))
