"""A tokenizer without a file: every byte is a token. For tests and for models trained on bytes."""

from __future__ import annotations

from runtime.tokenizer.merging import BYTE_TO_CHAR, CHAR_TO_BYTE
from runtime.tokenizer.special_matcher import SpecialMatcher
from runtime.tokenizer.tokenizer import Tokenizer
from runtime.tokenizer.vocabulary import SpecialTokens, Vocabulary

__all__ = ["ByteTokenizer"]


class ByteTokenizer(Tokenizer):
    """256 bytes, then `<s>` (256) and `</s>` (257).

    add_bos, add_eos  what `encode(add_special=True)` puts around a text
    chat_template     source of the default chat template, if any
    """

    def __init__(self, *, add_bos: bool = True, add_eos: bool = False, chat_template: str | None = None) -> None:
        texts = [*(BYTE_TO_CHAR[byte] for byte in range(256)), "<s>", "</s>"]
        ids = CHAR_TO_BYTE | {"<s>": 256, "</s>": 257}
        special = SpecialTokens(
            bos_id=256,
            eos_id=257,
            prefix_ids=(256,) if add_bos else (),
            suffix_ids=(257,) if add_eos else (),
            end_ids=frozenset((257,)),
            hidden_ids=frozenset((256, 257)),
        )
        vocabulary = Vocabulary(
            model="bytes",
            size=258,
            text=texts.__getitem__,
            find=ids.get,
            style="byte_level",
            special=special,
            verbatim_ids=special.hidden_ids,
        )
        templates = {} if chat_template is None else {"default": chat_template}
        super().__init__(vocabulary, _Bytes(), chat_templates=templates)


class _Bytes:
    _specials = SpecialMatcher({"<s>": 256, "</s>": 257})

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        if not parse_special:
            return list(text.encode("utf-8"))
        token_ids: list[int] = []
        for part in self._specials.split(text):
            token_ids += [part] if isinstance(part, int) else part.encode("utf-8")
        return token_ids
