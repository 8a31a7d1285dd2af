"""Tokenizers from GGUF metadata: the keys `tokenizer.*`, read as llama.cpp (src/llama-vocab.cpp) reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from runtime.errors import MalformedFile, Unsupported
from runtime.tokenizer.merging import (
    SPACE_MARK,
    BytePairWords,
    SentencePieceWords,
    WordEncoder,
    byte_token_name,
)
from runtime.tokenizer.pretokenizers import find_pretokenizer
from runtime.tokenizer.special_matcher import SpecialMatcher
from runtime.tokenizer.string_table import StringTable
from runtime.tokenizer.vocabulary import PieceStyle, SpecialTokens, Vocabulary, end_of_generation_ids

__all__ = ["FragmentEncoder", "chat_templates", "load_metadata"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_PREFIX: Final = "tokenizer.ggml."
_TEMPLATE: Final = "tokenizer.chat_template"
_KINDS = ("bert", "gemma4", "gpt2", "llama")
STRINGS_FOR_TABLE = 1024
"""Fewer are as quick in a dictionary, without numpy."""
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")


class FragmentEncoder:
    """Cuts a text at special tokens and encodes what lies between.

    space_prefix  a space is put before the first fragment and after every special token (SentencePiece)
    """

    def __init__(
        self, words: WordEncoder, always: SpecialMatcher, parsed: SpecialMatcher, *, space_prefix: bool = False
    ) -> None:
        self._words = words
        self._always = always
        self._parsed = parsed
        self._space_prefix = space_prefix

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        """The ids of `text`, nothing put around it."""
        token_ids: list[int] = []
        after_special = True
        for part in (self._parsed if parse_special else self._always).split(text):
            if isinstance(part, int):
                token_ids.append(part)
                after_special = True
                continue
            token_ids += self._words.encode(" " + part if self._space_prefix and after_special else part)
            after_special = False
        return token_ids


def chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of the file by name; `tokenizer.chat_template` is `default`, `.tool_use` is `tool_use`."""
    templates = {}
    for key, value in metadata.items():
        if key == _TEMPLATE or key.startswith(_TEMPLATE + "."):
            if not isinstance(value, str):
                raise MalformedFile(f"{key} is a {type(value).__name__}; a chat template is a string")
            templates[key[len(_TEMPLATE) + 1 :] or "default"] = value
    return templates


def load_metadata(metadata: Mapping[str, Any]) -> tuple[Vocabulary, FragmentEncoder]:
    """The vocabulary of a GGUF file and its encoder."""
    kind = _Keys(metadata).string("model")
    if kind not in _KINDS:
        raise Unsupported(
            f"the file's tokenizer is of kind {kind!r} (tokenizer.ggml.model)",
            remedy=f"supported: {', '.join(_KINDS)}",
        )
    tokens = _Tokens.read(_Keys(metadata), as_table=kind in ("gpt2", "gemma4"))
    if kind == "llama":
        return _load_sentencepiece(tokens)
    if kind == "bert":
        return _load_wordpiece(tokens)
    return _load_bpe(tokens, default_pre="gemma4" if kind == "gemma4" else "default")


@dataclass(frozen=True)
class _Keys:
    """Typed access to the metadata."""

    metadata: Mapping[str, Any]

    def string(self, name: str, default: str | None = None) -> str:
        value = self.metadata.get(_PREFIX + name, default)
        if not isinstance(value, str):
            raise MalformedFile(f"{_PREFIX}{name} is {_shown(value)}; the rule is a string")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(_PREFIX + name, default)
        if not isinstance(value, bool):
            raise MalformedFile(f"{_PREFIX}{name} is {_shown(value)}; the rule is true or false")
        return value

    def items(self, name: str, kinds: tuple[type, ...]) -> list[Any] | None:
        value = self.metadata.get(_PREFIX + name)
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise MalformedFile(f"{_PREFIX}{name} is {_shown(value)}; the rule is an array")
        items = value.tolist() if hasattr(value, "tolist") else list(value)
        wrong = {found for found in set(map(type, items)) if not issubclass(found, kinds)}
        if wrong:
            names = ", ".join(sorted(found.__name__ for found in wrong))
            raise MalformedFile(f"{_PREFIX}{name} holds {names}; the rule is {kinds[0].__name__}")
        return items

    def table(self, name: str) -> StringTable | None:
        """The array as a table over the bytes of the file, where it shows them and is long enough."""
        value = self.metadata.get(_PREFIX + name)
        extents = getattr(value, "extents", None)
        if value is None or extents is None or len(value) < STRINGS_FOR_TABLE:
            return None
        value.check()
        return StringTable(*extents())

    def token_id(self, name: str, size: int, default: int | None = None) -> int | None:
        value = self.metadata.get(f"{_PREFIX}{name}_token_id")
        if value is None:
            return default if default is not None and default < size else None
        if not isinstance(value, int) or not 0 <= value < size:
            raise MalformedFile(f"{_PREFIX}{name}_token_id is {_shown(value)}; the vocabulary has {size} tokens")
        return value


def _shown(value: object) -> str:
    return "missing" if value is None else f"{value!r:.60} ({type(value).__name__})"


@dataclass(frozen=True)
class _Tokens:
    """The token arrays of a file, checked, and the classes of their ids."""

    keys: _Keys
    texts: list[str] | StringTable
    ids: dict[str, int] | StringTable
    of_type: dict[int, frozenset[int]]
    """Ids by token type; normal tokens are not listed."""

    @classmethod
    def read(cls, keys: _Keys, *, as_table: bool) -> _Tokens:
        table = keys.table("tokens") if as_table else None
        texts, ids = (table, table) if table is not None else _list_of_tokens(keys)
        twice = table.duplicate() if table is not None else None
        if twice is not None:
            raise MalformedFile("the vocabulary has token {!r} twice, as {} and {}".format(*twice))
        types = keys.items("token_type", (int,)) or [_NORMAL] * len(texts)
        if len(types) < len(texts):
            raise MalformedFile(f"{_PREFIX}token_type has {len(types)} entries for {len(texts)} tokens")
        marked: dict[int, list[int]] = {}
        for token_id, token_type in enumerate(types[: len(texts)]):
            if token_type != _NORMAL:
                marked.setdefault(token_type, []).append(token_id)
        return cls(keys, texts, ids, {token_type: frozenset(listed) for token_type, listed in marked.items()})

    def typed(self, *token_types: int) -> frozenset[int]:
        return frozenset().union(*(self.of_type.get(token_type, frozenset()) for token_type in token_types))

    def build(
        self, model: str, style: PieceStyle, bos_id: int | None, eos_id: int | None, **rules: Any
    ) -> tuple[Vocabulary, SpecialMatcher, SpecialMatcher]:
        """The vocabulary, and the matchers for text without and with control tokens."""
        keys, size = self.keys, len(self.texts)
        declared = [keys.token_id(name, size) for name in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")]
        set_apart = self.typed(_CONTROL, _UNKNOWN, _USER_DEFINED)
        end_ids = end_of_generation_ids(self.ids.get, set_apart.__contains__, [eos_id, *declared])
        hidden = self.typed(_CONTROL, _UNKNOWN) | end_ids | ({bos_id} if bos_id is not None else set())
        user_defined = self.typed(_USER_DEFINED) - hidden
        named = {
            f"{short}_token": self.texts[token_id]
            for short, name in (("pad", "padding"), ("unk", "unknown"), ("sep", "seperator"), ("cls", "cls"))
            if (token_id := keys.token_id(name, size)) is not None
        }
        special = SpecialTokens(
            bos_id=bos_id,
            eos_id=eos_id,
            prefix_ids=rules.get("prefix_ids", ()),
            suffix_ids=rules.get("suffix_ids", ()),
            end_ids=end_ids,
            hidden_ids=hidden,
            named=named,
        )
        vocabulary = Vocabulary(
            model=model,
            size=size,
            text=self.texts.__getitem__,
            find=self.ids.get,
            style=style,
            special=special,
            verbatim_ids=hidden | user_defined,
            strips_first_space=rules.get("strips_first_space", False),
        )
        rstrip_ids = self._rstrip_ids(hidden | user_defined)
        always, parsed = (
            SpecialMatcher({self.texts[token_id]: token_id for token_id in chosen}, rstrip_ids=rstrip_ids)
            for chosen in (user_defined, user_defined | hidden)
        )
        return vocabulary, always, parsed

    def _rstrip_ids(self, special_ids: frozenset[int]) -> frozenset[int]:
        """Phi-3's special tokens swallow the space behind them; GGUF has no key for it, so its name decides."""
        name = str(self.keys.metadata.get("general.name", "")).lower()
        if "phi-3" not in name and "phi3" not in name:
            return frozenset()
        return special_ids - {token_id for text in _PHI3_KEEPS_SPACE if (token_id := self.ids.get(text)) is not None}

    def edges(
        self, bos_id: int | None, eos_id: int | None, *, add_bos: bool, add_eos: bool
    ) -> dict[str, tuple[int, ...]]:
        """What is put around a text: the file's flags, or else the defaults of its kind where the token exists."""
        edges: dict[str, tuple[int, ...]] = {}
        for field, flag, token, token_id, default in (
            ("prefix_ids", "add_bos_token", "bos_token_id", bos_id, add_bos),
            ("suffix_ids", "add_eos_token", "eos_token_id", eos_id, add_eos),
        ):
            wanted = self.keys.flag(flag, default and token_id is not None)
            if wanted and token_id is None:
                raise MalformedFile(f"{_PREFIX}{flag} is true, but {_PREFIX}{token} is missing")
            edges[field] = (token_id,) if wanted and token_id is not None else ()
        return edges


def _list_of_tokens(keys: _Keys) -> tuple[list[str], dict[str, int]]:
    texts = keys.items("tokens", (str,))
    if not texts:
        raise MalformedFile(f"{_PREFIX}tokens is missing or empty; the file has no vocabulary")
    ids = dict(zip(texts, range(len(texts))))
    if len(ids) != len(texts):
        ids.pop("", None)
        _check_no_duplicates(texts, ids)
    return texts, ids


def _check_no_duplicates(texts: list[str], ids: dict[str, int]) -> None:
    for token_id, text in enumerate(texts):
        if text and ids[text] != token_id:
            raise MalformedFile(f"the vocabulary has token {text!r} twice, as {token_id} and {ids[text]}")


def _load_bpe(tokens: _Tokens, *, default_pre: str) -> tuple[Vocabulary, FragmentEncoder]:
    keys, size = tokens.keys, len(tokens.texts)
    rule = find_pretokenizer(keys.string("pre", default_pre) if default_pre == "default" else default_pre)
    merges = keys.table("merges") or keys.items("merges", (str,))
    if merges is None:
        raise MalformedFile(f"{_PREFIX}merges is missing; byte pair encoding needs its merges")
    bos_id, eos_id = keys.token_id("bos", size), keys.token_id("eos", size)
    vocabulary, always, parsed = tokens.build(
        "bpe",
        "byte_level" if rule.byte_level else "space_mark",
        bos_id,
        eos_id,
        **tokens.edges(bos_id, eos_id, add_bos=rule.add_bos, add_eos=False),
    )
    words: WordEncoder = BytePairWords(
        tokens.ids,
        merges,
        rule.splitter(),
        byte_level=rule.byte_level,
        whole_words=rule.whole_words,
        hidden_ids=vocabulary.special.hidden_ids,
    )
    if not rule.byte_level:
        words = _SpaceMarked(words)
    return vocabulary, FragmentEncoder(words, always, parsed)


@dataclass(frozen=True)
class _SpaceMarked:
    """Writes spaces as U+2581 before encoding."""

    words: WordEncoder

    def encode(self, text: str) -> list[int]:
        return self.words.encode(text.replace(" ", SPACE_MARK))


def _load_sentencepiece(tokens: _Tokens) -> tuple[Vocabulary, FragmentEncoder]:
    keys, size = tokens.keys, len(tokens.texts)
    assert isinstance(tokens.ids, dict)
    scores = keys.items("scores", (float, int))
    if scores is None or len(scores) < size:
        raise MalformedFile(f"{_PREFIX}scores has {len(scores or ())} entries for {size} tokens")
    bos_id, eos_id = keys.token_id("bos", size, 1), keys.token_id("eos", size, 2)
    unknown_id = keys.token_id("unknown", size, 0)
    space_prefix = keys.flag("add_space_prefix", True)
    vocabulary, always, parsed = tokens.build(
        "spm",
        "space_mark",
        bos_id,
        eos_id,
        strips_first_space=space_prefix,
        **tokens.edges(bos_id, eos_id, add_bos=True, add_eos=False),
    )
    excluded = vocabulary.special.hidden_ids | tokens.typed(_BYTE)
    pieces = {text: token_id for text, token_id in tokens.ids.items() if token_id not in excluded}
    byte_ids = [tokens.ids.get(byte_token_name(byte), unknown_id) for byte in range(256)]
    if None in byte_ids:
        raise MalformedFile(f"the vocabulary has neither byte tokens (<0x00> ...) nor {_PREFIX}unknown_token_id")
    words = SentencePieceWords(pieces, scores, [token_id for token_id in byte_ids if token_id is not None])
    return vocabulary, FragmentEncoder(words, always, parsed, space_prefix=space_prefix)


def _load_wordpiece(tokens: _Tokens) -> tuple[Vocabulary, FragmentEncoder]:
    from runtime.tokenizer.wordpiece import WordPieceWords

    keys, size = tokens.keys, len(tokens.texts)
    unknown_id = keys.token_id("unknown", size, 100)
    if unknown_id is None:
        raise MalformedFile(f"{_PREFIX}unknown_token_id is missing; WordPiece needs it for words that it cannot cut")
    cls_id = keys.token_id("bos", size, keys.token_id("cls", size, 101))
    sep_id = keys.token_id("seperator", size, 102)
    eos_id = keys.token_id("eos", size)
    assert isinstance(tokens.ids, dict)
    marked = any(text.startswith(SPACE_MARK) for text in tokens.ids)
    vocabulary, always, parsed = tokens.build(
        "wordpiece",
        "wordpiece" if marked else "continuation",
        cls_id,
        eos_id,
        strips_first_space=True,
        **tokens.edges(cls_id, sep_id, add_bos=True, add_eos=True),
    )
    hidden = vocabulary.special.hidden_ids
    pieces = {}
    for text, token_id in tokens.ids.items():
        if marked and token_id not in hidden:
            text = text[1:] if text.startswith(SPACE_MARK) else "##" + text
        if token_id not in hidden or token_id == unknown_id:
            pieces[text] = token_id
    lowercase = keys.flag("normalizer.lowercase", True)
    strip_accents = keys.flag("normalizer.strip_accents", lowercase)
    words = WordPieceWords(pieces, tokens.texts[unknown_id], lowercase=lowercase, strip_accents=strip_accents)
    return vocabulary, FragmentEncoder(words, always, parsed)
