"""Ten thousand damaged GGUF headers: a typed error or a model, in bounded time and memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest

from runtime.errors import RuntimeFault
from runtime.formats import LazyArray, open_model

NUM_MUTANTS = 10_000
MAX_PEAK_BYTES = 8 << 20
MAX_SECONDS_EACH = 1.0

# Values that length, count, dimension and offset fields are inflated to.
EXTREMES = [0, 1, 31, 33, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip


def written(path, endianess):
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_bool("flag", True)
    writer.add_string("text", "héllo")
    writer.add_array("tokens", ["<s>", "a", "", "世界"] * 4)
    writer.add_array("scores", [0.5, -1.0, 2.0])
    writer.add_array("types", [1, 2, 3])
    writer.add_custom_alignment(64)
    writer.add_tensor("a", np.ones((4, 8), dtype=np.float32))
    writer.add_tensor("b", np.ones((3, 5), dtype=np.float16))
    writer.add_tensor("q", np.ones((2, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def seeds(tmp_path, make_gguf):
    little = written(tmp_path / "little.gguf", gguf.GGUFEndian.LITTLE)
    big = written(tmp_path / "big.gguf", gguf.GGUFEndian.BIG)
    version_2 = little[:4] + struct.pack("<I", 2) + little[8:]
    strings = struct.pack("<IQ", 8, 2) + struct.pack("<Q1sQ2s", 1, b"x", 2, b"yz")
    numbers = struct.pack("<IQ3i", 5, 3, 1, 2, 3)
    nested = (
        struct.pack("<IQ", 9, 2) + struct.pack("<IQ", 9, 2) + numbers + strings + struct.pack("<IQ", 9, 1) + strings
    )
    bools = struct.pack("<IQ3B", 7, 3, 0, 1, 1)
    by_hand = make_gguf([("n", 9, nested), ("b", 9, bools)], [("t", (), 0, 0), ("u", (4, 2), 1, 32)], bytes(64))
    vocabulary_only = make_gguf([("tokens", 9, strings), ("general.alignment", 4, struct.pack("<I", 8))])
    return [little, big, version_2, by_hand, vocabulary_only]


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(rng.choice(seeds))
    header = max(24, len(data) - 300)  # most of the changes go where they can do harm
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(6)
        at = rng.randrange(4, min(header, len(data)) or 5) if len(data) > 5 else 0
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data) + 1) :]
        elif kind == 2:
            data[at : at + 8] = struct.pack(rng.choice("<>") + "Q", rng.choice(EXTREMES))
        elif kind == 3:
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES) & 0xFFFFFFFF)
        elif kind == 4:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            data[at : at + rng.randrange(64)] = other[start : start + rng.randrange(64)]
        else:
            del data[at : at + rng.randrange(1, 24)]
    return bytes(data)


def use_everything(path) -> None:
    with open_model(path) as model:
        for value in model.metadata.values():
            materialise(value)
        for name, spec in model.tensors.items():
            assert len(model.data(name)) == spec.nbytes()


def materialise(value) -> None:
    if isinstance(value, LazyArray):
        assert len(value.tolist()) == len(value)
        for element in value:
            materialise(element)


def test_damaged_headers_give_typed_errors_in_bounded_time_and_memory(tmp_path, seeds):
    for seed in seeds:
        (tmp_path / "seed.gguf").write_bytes(seed)
        use_everything(tmp_path / "seed.gguf")  # imports, and the proof that the seeds themselves are whole
    rng = random.Random(20250)
    path = tmp_path / "mutant.gguf"
    outcomes = {"opened": 0, "refused": 0}
    slowest = 0.0
    tracemalloc.start()
    try:
        for _ in range(NUM_MUTANTS):
            mutant = mutate(rng, seeds)
            path.unlink(missing_ok=True)
            path.write_bytes(mutant)
            start = time.process_time()
            try:
                use_everything(path)
                outcomes["opened"] += 1
            except RuntimeFault as fault:
                outcomes["refused"] += bool(str(fault))
            slowest = max(slowest, time.process_time() - start)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(outcomes.values()) == NUM_MUTANTS
    assert min(outcomes.values()) > NUM_MUTANTS // 50, outcomes
    assert peak_bytes < MAX_PEAK_BYTES
    assert slowest < MAX_SECONDS_EACH
