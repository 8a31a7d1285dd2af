"""WordPiece (BERT): words are cut into the longest known pieces from the left."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["WordPieceWords"]

_ANY_LENGTH = 1 << 30


class WordPieceWords:
    """WordPiece with BERT's cleaning: white space, punctuation and Chinese characters end a word.

    vocab          piece -> id; a piece that continues a word begins with "##"
    unknown        the piece for words that cannot be cut
    lowercase      the text is lower-cased first
    strip_accents  accents are taken off first
    """

    def __init__(self, vocab: Mapping[str, int], unknown: str, *, lowercase: bool, strip_accents: bool) -> None:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        self._tokenizer = Tokenizer(
            models.WordPiece(dict(vocab), unk_token=unknown, max_input_chars_per_word=_ANY_LENGTH)
        )
        self._tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces of `text`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
