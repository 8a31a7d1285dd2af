"""What a vocabulary knows of its tokens: their texts and bytes, which are special, which begin and end a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runtime.errors import InvalidArgument
from runtime.tokenizer.merging import CHAR_TO_BYTE, SPACE_MARK

__all__ = ["PieceStyle", "SpecialTokens", "Vocabulary", "end_of_generation_ids", "token_piece"]

PieceStyle = Literal["byte_level", "space_mark", "wordpiece", "continuation", "words"]
"""How a normal token's text stands for bytes.

byte_level    each character is a byte in the alphabet of GPT-2
space_mark    U+2581 is a space, `<0xNN>` a byte (SentencePiece)
wordpiece     U+2581 begins a word (BERT vocabularies in GGUF)
continuation  "##" continues a word, everything else begins one (BERT vocabularies of Hugging Face)
words         every token is a word
"""

_BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")

# Names of tokens that end a generation, as llama.cpp keeps them (src/llama-vocab.cpp). A plain "</s>" can be ordinary
# text (HTML), so names of the second kind count only where the vocabulary sets the token apart from text.
_END_NAMES = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
)
_END_NAMES_IF_SPECIAL = (
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that the vocabulary gives a meaning.

    prefix_ids, suffix_ids   put around a text by `encode(add_special=True)`
    end_ids                  each ends a generation
    hidden_ids               left out by `decode(skip_special=True)`
    named                    texts of the others that a chat template may use, as `pad_token`, `unk_token`
    """

    bos_id: int | None = None
    eos_id: int | None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    end_ids: frozenset[int] = frozenset()
    hidden_ids: frozenset[int] = frozenset()
    named: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in both directions, and how they turn into bytes.

    model               kind, as `bpe`, `spm`, `wordpiece`, `unigram`, `bytes`
    size                number of ids
    text                id -> text of the token as the file has it
    find                text of a token -> id or None
    style               how the texts of normal tokens stand for bytes
    verbatim_ids        tokens whose text is what they stand for: control and user-defined ones
    strips_first_space  the first piece of a text carries a space that encoding put there
    """

    model: str
    size: int
    text: Callable[[int], str]
    find: Callable[[str], int | None]
    style: PieceStyle
    special: SpecialTokens
    verbatim_ids: frozenset[int] = frozenset()
    strips_first_space: bool = False

    def name(self, token_id: int) -> str:
        """The token as the file writes it; InvalidArgument for an id outside the vocabulary."""
        if not 0 <= token_id < self.size:
            raise InvalidArgument(f"token id {token_id} is outside the vocabulary of {self.size} tokens")
        return self.text(token_id)

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; InvalidArgument for an id outside the vocabulary."""
        text = self.name(token_id)
        if token_id in self.verbatim_ids:
            # A special word of a WordPiece vocabulary stands apart like any other word.
            space = " " if self.style in ("wordpiece", "continuation", "words") else ""
            return (space + text).encode("utf-8", "surrogateescape")
        return token_piece(text, self.style)


def token_piece(text: str, style: PieceStyle) -> bytes:
    """The bytes that a normal token stands for, a word's leading space included."""
    if style == "byte_level":
        if all(char in CHAR_TO_BYTE for char in text):
            return bytes(CHAR_TO_BYTE[char] for char in text)
    elif style == "space_mark":
        byte_name = _BYTE_NAME.fullmatch(text)
        if byte_name:
            return bytes((int(byte_name.group(1), 16),))
        text = text.replace(SPACE_MARK, " ")
    elif style == "wordpiece":
        text = text.replace(SPACE_MARK, " ")
    elif style == "continuation":
        text = text[2:] if text.startswith("##") else " " + text
    else:
        text = " " + text
    return text.encode("utf-8", "surrogateescape")


def end_of_generation_ids(
    find: Callable[[str], int | None], is_special: Callable[[int], bool], declared_ids: Sequence[int | None]
) -> frozenset[int]:
    """Every token that ends a generation: those the file declares, and those with a well-known name.

    `<|end|>` ends a message but not the generation where `<|return|>` and `<|call|>` exist (the harmony format), and
    `</s>` is text where `<|tool_response>` exists (Gemma).
    """
    named: dict[str, int] = {}
    for name in (*_END_NAMES, *_END_NAMES_IF_SPECIAL):
        token_id = find(name)
        if token_id is not None and (name in _END_NAMES or is_special(token_id)):
            named[name] = token_id
    if ("<|return|>" in named and "<|call|>" in named) or ("<|calls|>" in named and "<|flush|>" in named):
        named.pop("<|end|>", None)
    if "<|tool_response>" in named:
        named.pop("</s>", None)
    return frozenset(named.values()) | {token_id for token_id in declared_ids if token_id is not None}
