"""Show the tokens of a text: ids and what each stands for. A file with a vocabulary and no weights will do."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from runtime.cli.arguments import add_model, model_path
from runtime.cli.output import emit, paint, plural, status, table
from runtime.cli.texts import read_standard_input

if TYPE_CHECKING:
    from runtime.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    add_model(parser, optional=False)
    parser.add_argument("text", metavar="TEXT", help='the text; "-" reads standard input as it is')
    parser.add_argument(
        "--no-special", "--no-bos", action="store_true", help="put nothing around the text, no BOS and no EOS"
    )
    parser.add_argument(
        "--no-parse-special", action="store_true", help="names of special tokens in the text are ordinary text"
    )
    parser.add_argument("--ids", action="store_true", help="only the ids, on one line")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Execute the verb; returns the exit code."""
    from runtime.engine.files import load_tokenizer
    from runtime.models.demo import demo_model_path

    text = read_standard_input() if args.text == "-" else args.text
    tokenizer = load_tokenizer(model_path(args.model) or demo_model_path())
    token_ids = tokenizer.encode(text, add_special=not args.no_special, parse_special=not args.no_parse_special)
    if args.json:
        tokens = [_to_json(tokenizer, i) for i in token_ids]
        emit({"event": "tokens", "num_tokens": len(token_ids), "token_ids": token_ids, "tokens": tokens})
    elif args.ids:
        print(*token_ids)
    else:
        if token_ids:
            print(table([(str(i).rjust(_width(token_ids)), _painted(tokenizer, i)) for i in token_ids]))
        if sys.stdout.isatty():
            status(f"{plural(len(token_ids), 'token')} for {plural(len(text), 'character')}")
    return 0


def _width(token_ids: list[int]) -> int:
    return len(str(max(token_ids)))


def _painted(tokenizer: Tokenizer, token_id: int) -> str:
    piece = _piece(tokenizer, token_id)
    return paint(piece, "36", sys.stdout) if token_id in tokenizer.special_ids else piece


def _piece(tokenizer: Tokenizer, token_id: int) -> str:
    """A special token by its name; any other in quotes, with escapes for what cannot be seen; bytes in hexadecimal."""
    if token_id in tokenizer.special_ids:
        return tokenizer.token_text(token_id)
    data = tokenizer.token_bytes(token_id)
    try:
        return _quoted(data.decode("utf-8"))
    except UnicodeDecodeError:
        return f"bytes {data.hex(' ')}"


def _to_json(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    """`bytes` (hexadecimal) is what the token adds to the text, `text` the same where it is whole characters."""
    data = tokenizer.token_bytes(token_id)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    is_special = token_id in tokenizer.special_ids
    return {"id": token_id, "text": text, "bytes": data.hex(), "is_special": is_special}


def _quoted(text: str) -> str:
    escapes = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) + '"'
