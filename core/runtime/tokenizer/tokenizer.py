"""The tokenizer that the rest of the runtime sees: text to ids and back, with the rules for special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.errors import InvalidArgument
from runtime.tokenizer.decoding import IncrementalDecoder
from runtime.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from runtime.tokenizer.chat_template import ChatTemplate

__all__ = ["TextEncoder", "Tokenizer"]

MAX_COMPILED_TEMPLATES = 8
"""Templates that are kept compiled: compiling one takes longer than most requests may wait for."""


class TextEncoder(Protocol):
    """Turns text into ids; `parse_special` says whether the text may name control tokens."""

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """The ids of `text`, nothing put around it."""
        ...


class Tokenizer:
    """Text to token ids and back, for one vocabulary.

    Made by `from_gguf` or `from_hf_directory`. Safe to share between threads.
    """

    def __init__(
        self, vocabulary: Vocabulary, encoder: TextEncoder, *, chat_templates: Mapping[str, str] | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._chat_templates = dict(chat_templates or {})
        self._compiled_templates: dict[str, ChatTemplate] = {}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer that the metadata of a GGUF file describes (keys `tokenizer.*`).

        Kinds: `gpt2` and `gemma4` (BPE), `llama` (SentencePiece), `bert` (WordPiece). MalformedFile where a key is
        missing or inconsistent, Unsupported for another kind or an unknown pre-tokenizer.
        """
        from runtime.tokenizer.gguf_metadata import chat_templates, load_metadata

        vocabulary, encoder = load_metadata(metadata)
        return cls(vocabulary, encoder, chat_templates=chat_templates(metadata))

    @classmethod
    def from_hf_directory(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face directory: `tokenizer.json` and the configuration beside it.

        MalformedFile where a file is missing or broken, Unsupported where there is only a `tokenizer.model`.
        """
        from runtime.tokenizer.huggingface import load_directory

        vocabulary, encoder, templates = load_directory(Path(path))
        return cls(vocabulary, encoder, chat_templates=templates)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`.

        add_special    put the tokens around the text that the model was trained with, usually BOS. What the text
                       itself already begins or ends with is not put there again, so BOS is never doubled.
        parse_special  names of control tokens in the text (`<|eot_id|>`) become these tokens; otherwise they are
                       ordinary text. User-defined tokens are found in either case.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"the text holds a lone surrogate, U+{ord(text[error.start]):04X}, at position {error.start}",
                remedy="pass valid Unicode",
            ) from error
        token_ids = self._encoder.encode(text, parse_special=parse_special)
        if not add_special:
            return token_ids
        prefix, suffix = self._vocabulary.special.prefix_ids, self._vocabulary.special.suffix_ids
        if prefix and tuple(token_ids[: len(prefix)]) != prefix:
            token_ids = [*prefix, *token_ids]
        if suffix and (len(token_ids) < len(prefix) + len(suffix) or tuple(token_ids[-len(suffix) :]) != suffix):
            token_ids = [*token_ids, *suffix]
        return token_ids

    def encode_chat(self, rendered: str) -> list[int]:
        """The ids of a rendered chat template: control tokens are parsed, nothing is added.

        The template alone decides whether there is a BOS, as in `transformers.apply_chat_template`.
        """
        return self.encode(rendered, add_special=False, parse_special=True)

    def decode(self, token_ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of these ids; bytes that form no character become U+FFFD."""
        decoder = self.incremental_decoder(skip_special)
        return "".join([*map(decoder.push, token_ids), decoder.flush()])

    def incremental_decoder(self, skip_special: bool = True, prompt_tail_ids: Iterable[int] = ()) -> IncrementalDecoder:
        """A decoder for ids as they come; `prompt_tail_ids` are the last ids of what the new text goes on from."""
        return IncrementalDecoder(self._vocabulary, skip_special=skip_special, prompt_tail_ids=prompt_tail_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text, its leading space included."""
        return self._vocabulary.piece(token_id)

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it, such as `Ġthe`, `▁the` or `<|im_end|>`."""
        return self._vocabulary.name(token_id)

    def token_id(self, token_text: str) -> int | None:
        """The id of the token that the vocabulary writes so, or None."""
        return self._vocabulary.find(token_text)

    @property
    def model(self) -> str:
        """The kind of vocabulary: `bpe`, `spm`, `wordpiece`, `unigram`, `wordlevel` or `bytes`."""
        return self._vocabulary.model

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        return self._vocabulary.size

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        return self._vocabulary.special.bos_id

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, if the vocabulary has one."""
        return self._vocabulary.special.eos_id

    @property
    def bos_token(self) -> str | None:
        """The text of `bos_token_id`."""
        return None if self.bos_token_id is None else self.token_text(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """The text of `eos_token_id`."""
        return None if self.eos_token_id is None else self.token_text(self.eos_token_id)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token that ends a generation: end of text, of turn, of message."""
        return self._vocabulary.special.end_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens: parsed only with `parse_special`, left out of a text with `skip_special`."""
        return self._vocabulary.special.hidden_ids

    @property
    def adds_bos(self) -> bool:
        """Whether `encode(add_special=True)` puts BOS in front."""
        return self.bos_token_id in self._vocabulary.special.prefix_ids

    @property
    def adds_eos(self) -> bool:
        """Whether `encode(add_special=True)` puts EOS (or a separator) at the end."""
        return bool(self._vocabulary.special.suffix_ids)

    @property
    def chat_templates(self) -> dict[str, str]:
        """Sources of the chat templates by name; the unnamed one is `default`."""
        return dict(self._chat_templates)

    def chat_template(
        self, *, name: str | None = None, tools: Sequence[Any] | None = None, source: str | None = None
    ) -> ChatTemplate:
        """The chat template of that name, or the one for `tools`, or `source`, bound to this vocabulary's tokens.

        InvalidArgument where the model has none.
        """
        from runtime.tokenizer.chat_template import ChatTemplate, select_chat_template

        chosen = source if source is not None else select_chat_template(self._chat_templates, name=name, tools=tools)
        compiled = self._compiled_templates.get(chosen)
        if compiled is None:
            compiled = ChatTemplate(
                chosen,
                bos_token=self.bos_token or "",
                eos_token=self.eos_token or "",
                special_tokens=self._vocabulary.special.named,
            )
            if len(self._compiled_templates) >= MAX_COMPILED_TEMPLATES:
                self._compiled_templates.clear()
            self._compiled_templates[chosen] = compiled
        return compiled
