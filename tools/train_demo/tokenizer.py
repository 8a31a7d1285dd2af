"""The byte-level BPE tokenizer of the demo model, trained on its corpus."""

from __future__ import annotations

import random

import corpus
import facts
import questions
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1536
SPECIAL_TOKENS = (corpus.BOS, corpus.START, corpus.END, corpus.PAD)
# The pre-tokenizer that GGUF files name "llama-bpe": numbers are one piece whether or not a space precedes them.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pipeline(tokenizer: Tokenizer) -> Tokenizer:
    """Gives a bare BPE tokenizer the splitting and the decoding of the demo model."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(seed: int) -> Tokenizer:
    """Trains the vocabulary: special tokens first, then the 256 bytes, then merges."""
    rng = random.Random(seed)
    texts = [corpus.conversation(rng, 6) for _ in range(12_000)]
    numbers = " ".join(str(n) for n in range(100)) + "\n"
    # Whole words with and without a space before them: then answers, JSON strings and copies are one token a word.
    words = [*facts.CAPITALS, *facts.CAPITALS.values(), *facts.NAMES, *facts.DAYS, *facts.MONTHS, *facts.COLOUR_NAMES]
    words += [*facts.ANIMALS, *facts.FRUITS, *facts.NOUNS, *facts.ADJECTIVES, *questions.OPPOSITE]
    words += [word.capitalize() for word in (*questions.OPPOSITE, *facts.COLOUR_NAMES, *facts.PLURALS.values())]
    texts += [numbers] * 800 + ['"' + '","'.join(words) + '"', " ".join(words)] * 200
    tokenizer = pipeline(Tokenizer(models.BPE(ignore_merges=True)))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = (text.replace(token, " ") for text in texts for token in (corpus.BOS,))
    tokenizer.train_from_iterator(
        (part for text in pieces for part in text.replace(corpus.END, corpus.START).split(corpus.START)), trainer
    )
    return tokenizer
