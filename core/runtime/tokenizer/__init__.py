"""Text to token ids and back, and chat templates; from GGUF metadata or a Hugging Face directory.

Importing this package costs nothing: `tokenizers` and `jinja2` are imported when a tokenizer or template is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.tokenizer.byte_tokenizer import ByteTokenizer
    from runtime.tokenizer.chat_template import ChatTemplate, select_chat_template
    from runtime.tokenizer.decoding import IncrementalDecoder
    from runtime.tokenizer.pretokenizers import known_pretokenizers
    from runtime.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ByteTokenizer",
    "ChatTemplate",
    "IncrementalDecoder",
    "Tokenizer",
    "known_pretokenizers",
    "select_chat_template",
]

_MODULES = {
    "ByteTokenizer": "byte_tokenizer",
    "ChatTemplate": "chat_template",
    "IncrementalDecoder": "decoding",
    "Tokenizer": "tokenizer",
    "known_pretokenizers": "pretokenizers",
    "select_chat_template": "chat_template",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
