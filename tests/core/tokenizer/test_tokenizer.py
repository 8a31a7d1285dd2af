"""Small vocabularies, written here, through every door: GGUF metadata, a Hugging Face directory, bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidArgument, MalformedFile, Unsupported
from runtime.tokenizer import ByteTokenizer, Tokenizer, known_pretokenizers
from runtime.tokenizer.merging import BYTE_TO_CHAR, merge_symbols
from runtime.tokenizer.pretokenizers import find_pretokenizer

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
BYTES = [BYTE_TO_CHAR[byte] for byte in range(256)]
BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


def metadata(model: str, texts: list[str], types: list[int], **keys: Any) -> dict[str, Any]:
    arrays = {"model": model, "tokens": texts, "token_type": types, **keys}
    return {f"tokenizer.ggml.{name}": value for name, value in arrays.items()}


def bpe(**keys: Any) -> dict[str, Any]:
    tokens = [*BYTES, "he", "ll", "hell", "hello", "Ġhello", "<|im_start|>", "<|im_end|>", "<tool>"]
    types = [NORMAL] * 261 + [CONTROL, CONTROL, USER]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello"]
    defaults = {"pre": "gpt-2", "merges": merges, "bos_token_id": 261, "eos_token_id": 262}
    return metadata("gpt2", tokens, types, **{**defaults, **keys})


def spm(**keys: Any) -> dict[str, Any]:
    pieces = {"▁": -9.0, "h": -9.0, "i": -9.0, "▁h": -1.0, "hi": -3.0, "▁hi": -2.0, "a": -9.0, "aa": -4.0, "▁▁": -5.0}
    tokens = ["<unk>", "<s>", "</s>", *BYTE_NAMES, *pieces, "<|end|>"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces), CONTROL]
    scores = [0.0] * 259 + [*pieces.values(), 0.0]
    return metadata("llama", tokens, types, **{"scores": scores, **keys})


def texts(tokenizer: Tokenizer, text: str, **options: bool) -> list[str]:
    return [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text, **options)]


def test_importing_the_package_imports_neither_tokenizers_nor_jinja2() -> None:
    code = "import sys, runtime.tokenizer; print([m for m in ('tokenizers', 'jinja2', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import runtime.tokenizer as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError):
        package.nothing  # noqa: B018


def test_merging_takes_the_best_pair_first_and_the_leftmost_among_equals() -> None:
    ranks = {("a", "b"): 1, ("b", "c"): 0, ("a", "a"): 2, ("aa", "aa"): 2}
    merge = lambda text: merge_symbols(list(text), lambda left, right: ranks.get((left, right)))  # noqa: E731
    assert merge("abc") == ["a", "bc"]
    assert merge("aaaaa") == ["aaaa", "a"]
    assert merge("") == []


def test_byte_pairs_merge_by_rank_and_specials_are_found_where_they_may_be() -> None:
    tokenizer = Tokenizer.from_gguf(bpe())
    assert texts(tokenizer, "hello hello") == ["hello", "Ġhello"]
    assert texts(tokenizer, "hell<|im_end|>") == ["hell", "<|im_end|>"]
    assert texts(tokenizer, "<|im_end|>", parse_special=False) == [*"<|im_end|>"]
    assert texts(tokenizer, "<tool>he", parse_special=False) == ["<tool>", "he"]
    assert tokenizer.model == "bpe"
    assert tokenizer.vocab_size == 264
    assert tokenizer.special_ids == {261, 262}
    assert tokenizer.eos_token_ids == {262}


def test_a_whole_word_is_taken_where_the_family_ignores_merges() -> None:
    short = bpe(pre="llama-bpe", merges=["h e"], add_bos_token=False)
    assert texts(Tokenizer.from_gguf(short), "hello") == ["hello"]
    assert texts(Tokenizer.from_gguf({**short, "tokenizer.ggml.pre": "qwen2"}), "hello") == ["he", "l", "l", "o"]


def test_bos_and_eos_follow_the_files_flags_and_are_not_doubled() -> None:
    assert texts(Tokenizer.from_gguf(bpe()), "he") == ["he"]
    assert texts(Tokenizer.from_gguf(bpe(pre="llama-bpe")), "he") == ["<|im_start|>", "he"]
    tokenizer = Tokenizer.from_gguf(bpe(add_bos_token=True, add_eos_token=True))
    assert (tokenizer.adds_bos, tokenizer.adds_eos) == (True, True)
    around = ["<|im_start|>", "he", "<|im_end|>"]
    assert texts(tokenizer, "he") == around
    assert texts(tokenizer, "<|im_start|>he<|im_end|>") == around
    assert texts(tokenizer, "") == ["<|im_start|>", "<|im_end|>"]
    assert texts(tokenizer, "he", add_special=False) == ["he"]


def test_the_longest_special_token_wins() -> None:
    tokens = [*BYTES, "<a>", "<a><b>"]
    tokenizer = Tokenizer.from_gguf(metadata("gpt2", tokens, [NORMAL] * 256 + [USER, USER], merges=[]))
    assert texts(tokenizer, "<a><b><a>") == ["<a><b>", "<a>"]


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_byte_level_text_comes_back_whole_and_in_pieces(text: str) -> None:
    tokenizer = Tokenizer.from_gguf(bpe(pre="qwen2"))
    token_ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(token_ids) == text
    assert b"".join(map(tokenizer.token_bytes, token_ids)) == text.encode()


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = Tokenizer.from_gguf(spm())
    assert texts(tokenizer, "hi") == ["<s>", "▁hi"]
    assert texts(tokenizer, "hi hi", add_special=False) == ["▁hi", "▁hi"]
    assert texts(tokenizer, "aaa", add_special=False) == ["▁", "aa", "a"]
    assert texts(tokenizer, "é", add_special=False) == ["▁", "<0xC3>", "<0xA9>"]
    assert texts(tokenizer, "hi<|end|>hi", add_special=False) == ["▁hi", "<|end|>", "▁hi"]
    assert tokenizer.decode(tokenizer.encode("hi  aé")) == "hi  aé"
    assert tokenizer.token_bytes(tokenizer.encode("hi")[1]) == b" hi"
    assert texts(Tokenizer.from_gguf(spm(add_space_prefix=False)), "hi", add_special=False) == ["hi"]


def test_the_space_in_front_is_taken_off_at_the_start_of_a_text_only() -> None:
    tokenizer = Tokenizer.from_gguf(spm())
    token_ids = tokenizer.encode("hi hi", add_special=False)
    assert tokenizer.decode(token_ids) == "hi hi"
    decoder = tokenizer.incremental_decoder(prompt_tail_ids=token_ids)
    assert decoder.push(token_ids[0]) == " hi"
    decoder = tokenizer.incremental_decoder(prompt_tail_ids=[1])
    assert decoder.push(token_ids[0]) == "hi"


def test_half_a_character_is_held_back_and_a_broken_one_is_replaced() -> None:
    tokenizer = Tokenizer.from_gguf(spm())
    decoder = tokenizer.incremental_decoder()
    names = [f"<0x{byte:02X}>" for byte in "€".encode()]
    token_ids = [tokenizer.token_id(name) for name in names]
    assert [decoder.push(token_id) for token_id in token_ids if token_id is not None] == ["", "", "€"]
    assert decoder.push(token_ids[0] or 0) == ""
    assert decoder.flush() == "\ufffd"
    assert tokenizer.decode([token_ids[0] or 0, 2]) == "\ufffd"
    assert tokenizer.decode([token_ids[0] or 0, 2], skip_special=False) == "\ufffd</s>"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 257)), st.booleans())
def test_pieces_of_any_ids_make_the_whole(token_ids: list[int], skip_special: bool) -> None:
    tokenizer = ByteTokenizer()
    decoder = tokenizer.incremental_decoder(skip_special)
    pieces = "".join([*map(decoder.push, token_ids), decoder.flush()])
    assert pieces == tokenizer.decode(token_ids, skip_special)


def test_wordpiece_cuts_from_the_left_and_joins_with_spaces() -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁play", "ing", "▁the", "▁,", "▁play"[:2]]
    types = [CONTROL] * 4 + [NORMAL] * 5
    keys = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3}
    tokenizer = Tokenizer.from_gguf(metadata("bert", tokens, types, **keys))
    assert texts(tokenizer, "Thé playing, xyz") == ["[CLS]", "▁the", "▁play", "ing", "▁,", "[UNK]", "[SEP]"]
    assert tokenizer.decode(tokenizer.encode("the playing")) == "the playing"
    assert tokenizer.decode(tokenizer.encode("the"), skip_special=False) == "[CLS] the [SEP]"


def test_a_raw_bpe_vocabulary_writes_spaces_as_marks() -> None:
    tokens = [*BYTE_NAMES, "▁", "a", "▁a", "\n\n", "<bos>", "<eos>"]
    types = [BYTE] * 256 + [NORMAL] * 4 + [CONTROL] * 2
    keys = {"merges": ["▁ a"], "bos_token_id": 260, "eos_token_id": 261}
    tokenizer = Tokenizer.from_gguf(metadata("gemma4", tokens, types, **keys))
    assert texts(tokenizer, "a a\n\né") == ["<bos>", "a", "▁a", "\n\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("a a\n\né")) == "a a\n\né"
    assert tokenizer.eos_token_ids == {261}


def test_names_that_end_a_generation_depend_on_their_company() -> None:
    def ends(*names: str, kind: int = CONTROL) -> set[str]:
        tokens = [*BYTES, *names]
        tokenizer = Tokenizer.from_gguf(metadata("gpt2", tokens, [NORMAL] * 256 + [kind] * len(names), merges=[]))
        return {tokenizer.token_text(token_id) for token_id in tokenizer.eos_token_ids}

    assert ends("<|end|>", "<|user|>") == {"<|end|>"}
    assert ends("<|end|>", "<|return|>", "<|call|>") == {"<|return|>", "<|call|>"}
    assert ends("</s>", kind=NORMAL) == set()
    assert ends("</s>", "<end_of_turn>") == {"</s>", "<end_of_turn>"}


def test_chat_templates_are_found_by_name() -> None:
    keys = {"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t", "tokenizer.chat_templates": ["x"]}
    assert Tokenizer.from_gguf({**bpe(), **keys}).chat_templates == {"default": "d", "tool_use": "t"}
    with pytest.raises(MalformedFile, match="a chat template is a string"):
        Tokenizer.from_gguf({**bpe(), "tokenizer.chat_template": 1})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "tokenizer.ggml.model is missing"),
        (bpe(tokens=[]), "tokens is missing or empty"),
        (bpe(tokens="abc"), "the rule is an array"),
        (bpe(tokens=[*BYTES, 7]), "tokens holds int; the rule is str"),
        (bpe(tokens=[*BYTES, "a"]), "has token 'a' twice, as 97 and 256"),
        (bpe(token_type=[1]), "token_type has 1 entries for 264 tokens"),
        (bpe(merges=None), "merges is missing"),
        (bpe(eos_token_id=264), "eos_token_id is 264 (int); the vocabulary has 264 tokens"),
        (bpe(bos_token_id=None, add_bos_token=True), "bos_token_id is missing"),
        (bpe(add_bos_token=1), "the rule is true or false"),
        (spm(scores=[0.0]), "scores has 1 entries"),
    ],
)
def test_broken_metadata_is_named(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedFile) as caught:
        Tokenizer.from_gguf(broken)
    assert message in str(caught.value)


def test_unknown_kinds_and_pretokenizers_are_named_with_the_known_ones() -> None:
    with pytest.raises(Unsupported, match=r"kind 'rwkv'.*supported: bert, gemma4, gpt2, llama"):
        Tokenizer.from_gguf(metadata("rwkv", ["a"], [NORMAL]))
    with pytest.raises(Unsupported, match=r"pre-tokenizer 'nobody'.*llama-bpe"):
        Tokenizer.from_gguf(bpe(pre="nobody"))


def test_bad_arguments_are_refused() -> None:
    tokenizer = ByteTokenizer()
    with pytest.raises(InvalidArgument, match=r"U\+D800, at position 1"):
        tokenizer.encode("a\ud800")
    for token_id in (-1, 258):
        with pytest.raises(InvalidArgument, match="outside the vocabulary of 258"):
            tokenizer.decode([token_id])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-2", ["Hi", " 12345", " don", "'t", " '", "LL", " ", " 我在", "!!"]),
        ("llama-bpe", ["Hi", " ", "123", "45", " don", "'t", " '", "LL", " ", " 我在", "!!"]),
        ("qwen2", ["Hi", " ", "1", "2", "3", "4", "5", " don", "'t", " '", "LL", " ", " 我在", "!!"]),
        ("deepseek-v3", ["Hi", " ", "123", "45", " don", "'t", " '", "LL", "  ", "我在", "!!"]),
        ("gpt-4o", ["Hi", " ", "123", "45", " don't", " '", "LL", " ", " 我在", "!!"]),
        ("tekken", ["Hi", " ", "1", "2", "3", "4", "5", " don", "'t", " '", "LL", " ", " 我在", "!!"]),
        ("starcoder", ["Hi", " ", "1", "2", "3", "4", "5", " don", "'t", " '", "LL", " ", " 我在", "!!"]),
        ("tiny_aya", ["Hi", " ", "12", "345", " don't", " '", "LL", " ", " 我在", "!!"]),
        ("kimi-k2", ["Hi", " ", "123", "45", " don't", " '", "LL", " ", " ", "我在", "!!"]),
    ],
)
def test_pretokenizers_cut_where_their_models_cut(name: str, words: list[str]) -> None:
    assert find_pretokenizer(name).splitter()("Hi 12345 don't 'LL  我在!!") == words


def test_every_pretokenizer_compiles_and_loses_nothing() -> None:
    text = "A b\tc\r\n\n  '12 x1234567 ÄöΩ я 漢字 ไทย 😀é\u0301 _-/*<|x|> \u00a0\u3000 end  "
    for name in known_pretokenizers():
        assert "".join(find_pretokenizer(name).splitter()(text)) == text, name


def write_directory(path: Path, *, byte_level: bool = True, **config: Any) -> Path:
    """A directory as transformers saves it, with a vocabulary of bytes (or of marks) and three special tokens."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    if byte_level:
        vocab = {token: token_id for token_id, token in enumerate([*BYTES, "he"])}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [("h", "e")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        vocab = {token: token_id for token_id, token in enumerate(["<unk>", *BYTE_NAMES, "▁", "h", "▁h"])}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "h")], unk_token="<unk>", byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        strip = decoders.Strip(" ", 1, 0)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
        )
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool>"])
    bos_id = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos_id)])
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    (path / "tokenizer_config.json").write_text(json.dumps({**tokens, **config}))
    return path


def test_a_hugging_face_directory_encodes_and_decodes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_hf_directory(write_directory(tmp_path / "model"))
    assert texts(tokenizer, "he you") == ["<s>", "he", "Ġ", "y", "o", "u"]
    assert texts(tokenizer, "<s>he<tool></s>") == ["<s>", "he", "<tool>", "</s>"]
    assert texts(tokenizer, "</s><tool>", add_special=False, parse_special=False) == [*"</s>", "<tool>"]
    assert tokenizer.decode(tokenizer.encode("he é<tool> €</s>")) == "he é<tool> €"
    assert (tokenizer.model, tokenizer.vocab_size) == ("bpe", 261)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert {tokenizer.token_text(token_id) for token_id in tokenizer.eos_token_ids} == {"</s>", "<|im_end|>"}


def test_a_directory_with_marks_and_byte_fallback(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_hf_directory(write_directory(tmp_path / "model", byte_level=False))
    assert tokenizer.model == "spm"
    assert texts(tokenizer, "h h€", add_special=False) == ["▁h", "▁h", "<0xE2>", "<0x82>", "<0xAC>"]
    assert tokenizer.decode(tokenizer.encode("h h€")) == "h h€"


def test_the_configuration_overrules_the_post_processor(tmp_path: Path) -> None:
    path = write_directory(tmp_path / "model", add_bos_token=False, add_eos_token=True)
    assert texts(Tokenizer.from_hf_directory(path), "he") == ["he", "</s>"]


def test_templates_and_end_tokens_come_from_the_files_beside_it(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "t"}]
    path = write_directory(tmp_path / "model", chat_template=listed)
    (path / "generation_config.json").write_text('{"eos_token_id": [258, 256]}')
    tokenizer = Tokenizer.from_hf_directory(path)
    assert tokenizer.chat_templates == {"default": "a", "tool_use": "t"}
    assert {256, 258} <= tokenizer.eos_token_ids
    (path / "chat_template.jinja").write_text("{{ bos_token }}b")
    assert Tokenizer.from_hf_directory(path).chat_template().render([]) == "<s>b"


def test_a_directory_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MalformedFile, match=r"has no tokenizer\.json"):
        Tokenizer.from_hf_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(Unsupported, match="save_pretrained"):
        Tokenizer.from_hf_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(MalformedFile, match="cannot be read as a tokenizer"):
        Tokenizer.from_hf_directory(tmp_path)
    (write_directory(tmp_path) / "tokenizer_config.json").write_text("[]")
    with pytest.raises(MalformedFile, match="holds a list"):
        Tokenizer.from_hf_directory(tmp_path)
    write_directory(tmp_path, eos_token="<nobody>")
    with pytest.raises(MalformedFile, match="names '<nobody>' as eos_token"):
        Tokenizer.from_hf_directory(tmp_path)


def test_bytes_are_their_own_ids() -> None:
    tokenizer = ByteTokenizer(add_eos=True)
    assert tokenizer.encode("hé") == [256, 104, 195, 169, 257]
    assert tokenizer.encode("<s>", add_special=False, parse_special=False) == [60, 115, 62]
    assert tokenizer.decode([256, 104, 195, 169, 257]) == "hé"
    assert tokenizer.decode([256, 104], skip_special=False) == "<s>h"
    assert (tokenizer.model, tokenizer.vocab_size, tokenizer.eos_token_ids) == ("bytes", 258, {257})


@pytest.mark.oracle
def test_random_texts_agree_with_sentencepiece(tmp_path: Path) -> None:
    import random

    import sentencepiece

    rng = random.Random(3)
    words = ["".join(rng.choice("abcdeé我 '.,") for _ in range(rng.randrange(1, 9))) for _ in range(300)]
    lines = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "model"),
        model_type="bpe",
        vocab_size=550,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model.model"))
    ids = range(model.vocab_size())
    kinds = [
        UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else BYTE if model.is_byte(i) else NORMAL
        for i in ids
    ]
    scores = [model.get_score(i) for i in ids]
    tokenizer = Tokenizer.from_gguf(metadata("llama", [model.id_to_piece(i) for i in ids], kinds, scores=scores))
    for _ in range(2000):
        text = "".join(rng.choice("abcdeé我 '.,\n🦙x") for _ in range(rng.randrange(1, 50)))
        token_ids = tokenizer.encode(text, add_special=False)
        assert token_ids == model.encode(text), text
        assert tokenizer.decode(token_ids) == text
