"""Tokenizers from a Hugging Face directory: `tokenizer.json`, its configuration, and the chat templates beside it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runtime.errors import MalformedFile, Unsupported
from runtime.tokenizer.vocabulary import PieceStyle, SpecialTokens, Vocabulary, end_of_generation_ids

__all__ = ["FileEncoder", "load_directory"]

_MODELS = {"BPE": "bpe", "WordPiece": "wordpiece", "Unigram": "unigram", "WordLevel": "wordlevel"}


class FileEncoder:
    """A `tokenizer.json`, without its post-processor: what is put around a text is decided by `Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """The ids of `text`, nothing put around it."""
        with self._lock:  # whether names of special tokens are text is a property of the shared object
            if self._tokenizer.encode_special_tokens == parse_special:
                self._tokenizer.encode_special_tokens = not parse_special
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids)


def load_directory(path: Path) -> tuple[Vocabulary, FileEncoder, dict[str, str]]:
    """The vocabulary of a directory, its encoder, and its chat templates by name."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.is_file():
        raise _no_tokenizer_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception for whatever is wrong with the file
        raise MalformedFile(f"{file} cannot be read as a tokenizer: {error}", remedy="fetch the file again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _read_json(path / "tokenizer_config.json")
    names = {**_read_json(path / "special_tokens_map.json"), **config}
    vocabulary = _vocabulary(tokenizer, names, _declared_end_ids(path))
    return vocabulary, FileEncoder(tokenizer), _chat_templates(path, config)


def _no_tokenizer_json(path: Path) -> MalformedFile | Unsupported:
    others = [
        name for name in ("tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model") if (path / name).is_file()
    ]
    if others:
        return Unsupported(
            f"{path} has {', '.join(others)} but no tokenizer.json",
            remedy="write one with transformers: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)",
        )
    return MalformedFile(f"{path} has no tokenizer.json", remedy="fetch tokenizer.json into the model's directory")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedFile(f"{path} is not JSON: {error}", remedy="fetch the file again") from error
    if not isinstance(content, dict):
        raise MalformedFile(f"{path} holds a {type(content).__name__}; the rule is an object")
    return content


def _declared_end_ids(path: Path) -> list[int]:
    """`eos_token_id` of the generation configuration, or else of the model's: a number or a list of them."""
    for name in ("generation_config.json", "config.json"):
        declared = _read_json(path / name).get("eos_token_id")
        listed = declared if isinstance(declared, list) else [declared]
        if any(isinstance(token_id, int) for token_id in listed):
            return [token_id for token_id in listed if isinstance(token_id, int)]
    return []


def _vocabulary(tokenizer: Any, names: dict[str, Any], declared_end_ids: list[int]) -> Vocabulary:
    added = tokenizer.get_added_tokens_decoder()
    size = max([tokenizer.get_vocab_size(with_added_tokens=True), *(token_id + 1 for token_id in added)])

    def declared_id(key: str) -> int | None:
        text = _token_text(names.get(key))
        token_id = None if text is None else tokenizer.token_to_id(text)
        if text is not None and token_id is None:
            raise MalformedFile(f"tokenizer_config.json names {text!r} as {key}, which the vocabulary lacks")
        return token_id if token_id is None else int(token_id)

    bos_id, eos_id = declared_id("bos_token"), declared_id("eos_token")
    end_ids = end_of_generation_ids(
        tokenizer.token_to_id, added.__contains__, [eos_id, *(i for i in declared_end_ids if 0 <= i < size)]
    )
    special_ids = {token_id for token_id, token in added.items() if token.special}
    declared = {token_id for token_id in (bos_id, eos_id) if token_id is not None}
    prefix_ids, suffix_ids = _edges(tokenizer)
    style, strips_first_space = _piece_style(tokenizer)
    model = _MODELS[type(tokenizer.model).__name__]
    return Vocabulary(
        model="spm" if model == "bpe" and style == "space_mark" else model,
        size=size,
        text=lambda token_id: tokenizer.id_to_token(token_id) or "",
        find=tokenizer.token_to_id,
        style=style,
        special=SpecialTokens(
            bos_id=bos_id,
            eos_id=eos_id,
            prefix_ids=_overridden(prefix_ids, names.get("add_bos_token"), bos_id),
            suffix_ids=_overridden(suffix_ids, names.get("add_eos_token"), eos_id),
            end_ids=end_ids,
            hidden_ids=frozenset(special_ids | declared | (end_ids & set(added))),
            named={
                key: text
                for key in ("pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
                if (text := _token_text(names.get(key))) is not None
            },
        ),
        verbatim_ids=frozenset(special_ids),
        strips_first_space=strips_first_space,
    )


def _token_text(value: Any) -> str | None:
    """A special token as configurations write it: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _edges(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the file's post-processor puts before and after a text, found by asking it."""
    body = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(body) + 1):
        if full[start : start + len(body)] == body:
            return tuple(full[:start]), tuple(full[start + len(body) :])
    return (), ()


def _overridden(edge: tuple[int, ...], wanted: Any, token_id: int | None) -> tuple[int, ...]:
    """An explicit `add_bos_token` or `add_eos_token` of the configuration overrules the post-processor."""
    if not isinstance(wanted, bool) or token_id is None:
        return edge
    if wanted:
        return edge if token_id in edge else (token_id,)
    return tuple(other for other in edge if other != token_id)


def _steps(decoder: Any) -> list[dict[str, Any]]:
    state = json.loads(decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _piece_style(tokenizer: Any) -> tuple[PieceStyle, bool]:
    """How pieces stand for bytes, and whether a text begins with a space that encoding put there."""
    if tokenizer.decoder is None:
        return "words", True
    steps = {step["type"]: step for step in _steps(tokenizer.decoder)}
    if "ByteLevel" in steps:
        return "byte_level", False
    if "WordPiece" in steps:
        return "continuation", True
    if "Metaspace" in steps:
        return "space_mark", steps["Metaspace"].get("prepend_scheme", "always") != "never"
    if "ByteFallback" in steps or "Replace" in steps:
        return "space_mark", steps.get("Strip", {}).get("start", 0) > 0
    raise Unsupported(
        f"tokenizer.json has a decoder of {_joined(steps)}",
        remedy="supported: ByteLevel, Metaspace, ByteFallback with Replace, WordPiece",
    )


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _chat_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name: files win over `tokenizer_config.json`, as in transformers."""
    templates: dict[str, str] = {}
    for source in (_read_json(path / "chat_template.json").get("chat_template"), config.get("chat_template")):
        if isinstance(source, str):
            templates["default"] = source
        elif isinstance(source, list):
            for entry in source:
                if not isinstance(entry, dict) or not all(
                    isinstance(entry.get(key), str) for key in ("name", "template")
                ):
                    raise MalformedFile(f"chat_template in {path} lists {entry!r:.60}; the rule is name and template")
                templates[entry["name"]] = entry["template"]
        elif source is not None:
            raise MalformedFile(f"chat_template in {path} is a {type(source).__name__}; the rule is a string or a list")
    if (path / "chat_template.jinja").is_file():
        templates["default"] = (path / "chat_template.jinja").read_text(encoding="utf-8")
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    return templates
