r"""The table of pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`: name -> patterns that cut text into words.

Patterns apply one after another, each to the pieces that the one before left; matches and what lies between them become
pieces of their own. Where a model's own `tokenizer.json` and its transcription in llama.cpp (src/llama-vocab.cpp) are
written differently, the former is used: `(?i:...)` and `\p{Lu}` are what the model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.errors import Unsupported

__all__ = ["PreTokenizer", "find_pretokenizer", "known_pretokenizers"]


@dataclass(frozen=True)
class PreTokenizer:
    """How one family cuts and merges.

    patterns     regular expressions (Oniguruma), applied one after another
    whole_words  a word that is a token is taken whole, whatever the merges say
    add_bos      whether a BOS token is put in front where the file does not say
    byte_level   words are mapped to the byte alphabet; otherwise spaces are written U+2581 and bytes `<0xNN>`
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    byte_level: bool = True

    def splitter(self) -> Callable[[str], list[str]]:
        """A function that cuts a text into words; nothing is lost, nothing is added."""
        from tokenizers import Regex, pre_tokenizers

        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        cut = (splits[0] if len(splits) == 1 else pre_tokenizers.Sequence(splits)).pre_tokenize_str
        return lambda text: [word for word, _ in cut(text)]


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_OTHERS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased_words(suffix: str, numbers: str, *, without: str = "", others: str = r"[\r\n/]*") -> str:
    """Words of upper-case letters followed by lower-case ones, as in o200k; `without` takes a script out of them."""
    start = r"[^\r\n\p{L}\p{N}]?"
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    return (
        rf"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"
        rf"|{numbers}| ?[^\s\p{{L}}\p{{N}}]+{others}|{_SPACES}"
    )


_O200K = _cased_words(f"{_CONTRACTIONS}?", r"\p{N}{1,3}")
_KIMI_K2 = r"[\p{Han}]+|" + _cased_words(f"{_CONTRACTIONS}?", r"\p{N}{1,3}", without=r"&&[^\p{Han}]", others=r"[\r\n]*")
_GROUPED_DIGITS = r"\d{1,3}(?=(?:\d{3})*\b)"
_FINNISH = r" ?[^(\s|.,!?…。，、।۔،)]+"
_NEWLINE_RUNS = r"[^\n]+|[\n]+"

# Six characters are written as numbers: their canonical equivalents tend to take their place when text is copied.
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌ"
    r"ῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    _DEEPSEEK_LETTERS,
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
)
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_WORDS = (
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_DEEPSEEK_V3 = (r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_WORDS)

_GPT2_RULE = PreTokenizer((_GPT2,))
_DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_QWEN2_RULE = PreTokenizer((_QWEN2,))
_LLAMA3_RULE = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_O200K_RULE = PreTokenizer((_O200K,))
_DEEPSEEK_V3_RULE = PreTokenizer(_DEEPSEEK_V3)
_BAILING = PreTokenizer(
    (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
)

_TABLE: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(
        (
            "gpt-2",
            "mpt",
            "olmo",
            "jais",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "trillion",
            "granite-docling",
        ),
        _GPT2_RULE,
    ),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
        _DIGITS_THEN_GPT2,
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _LLAMA3_RULE,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), PreTokenizer((_LLAMA3,))),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        _QWEN2_RULE,
    ),
    "qwen35": PreTokenizer((_QWEN35,)),
    "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK_V3_RULE),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer((_FINNISH,))),
    "viking": PreTokenizer((_FINNISH, r"\p{N}")),
    "tekken": PreTokenizer((_cased_words("", r"\p{N}"),), whole_words=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "o200k", "llama4", "kanana2", "talkie", "minimax-m2"), _O200K_RULE),
    "granite-embed-multi-97m": PreTokenizer((_O200K,), whole_words=True),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), PreTokenizer((_GROUPED_DIGITS, _O200K))),
    "kimi-k2": PreTokenizer((_KIMI_K2,)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    "seed-coder": PreTokenizer((rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
    "minicpm5": PreTokenizer(
        (r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}+|{_OTHERS}|{_SPACES}"), whole_words=True
    ),
    "laguna": PreTokenizer((_NEWLINE_RUNS, _QWEN2)),
    "exaone-moe": PreTokenizer(
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "chameleon": PreTokenizer(
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "gemma4": PreTokenizer((_NEWLINE_RUNS,), add_bos=True, byte_level=False),
    "sarvam-moe": PreTokenizer((_NEWLINE_RUNS,), byte_level=False),
}


def known_pretokenizers() -> list[str]:
    """Every name of `tokenizer.ggml.pre` that can be read."""
    return sorted(_TABLE)


def find_pretokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of that name; Unsupported names it and the known ones."""
    if name not in _TABLE:
        raise Unsupported(
            f"the file's pre-tokenizer {name!r} (tokenizer.ggml.pre) is unknown",
            remedy=f"convert the model again with a known one: {', '.join(known_pretokenizers())}",
        )
    return _TABLE[name]
