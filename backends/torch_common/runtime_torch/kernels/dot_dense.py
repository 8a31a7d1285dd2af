"""One or two rows of x times rows of a weight of floats, as `dot_few` does it for blocks."""

import triton
import triton.language as tl

from runtime_torch.kernels.pieces import load, parts_of_x, split_neighbours, split_words


@triton.jit
def dot_dense(
    x, lo, scale, first, num_left, K: tl.constexpr, TOKENS: tl.constexpr, SCALE: tl.constexpr, EVEN: tl.constexpr,
    BN: tl.constexpr, BU: tl.constexpr,
):
    """Elements as they are, or pairs of bf16 as int32."""
    PER_WORD: tl.constexpr = 2 if SCALE == 3 and lo.dtype.element_ty == tl.int32 else 1
    WORDS: tl.constexpr = 128 // lo.dtype.element_ty.primitive_bitwidth
    PIECE: tl.constexpr = WORDS * PER_WORD
    WHOLE: tl.constexpr = K % (BU * PIECE) == 0
    ALL: tl.constexpr = EVEN and WHOLE
    lo += first * (K // PER_WORD)
    scale += first * (K // 128)
    row = tl.arange(0, BN)[:, None]
    acc = tl.zeros([BN, BU], dtype=tl.float32)
    second = tl.zeros([BN, BU], dtype=tl.float32)
    for start in range(0, K, BU * PIECE):
        words = start // PER_WORD + tl.arange(0, BU * WORDS)[None, :]
        v = load(lo + (row * (K // PER_WORD) + words), (row < num_left) & (words < K // PER_WORD), ALL)
        if PER_WORD == 1:
            v = v.to(tl.float32)
        vs = split_neighbours(tl.reshape(v, [BN, BU, WORDS]), BN, BU, WORDS, 1)
        if SCALE == 4:
            pieces = start // PIECE + tl.arange(0, BU)[None, :]
            at = row * (K // 128) + pieces // (128 // PIECE)
            s = load(scale + at, (row < num_left) & (pieces < K // PIECE), ALL)
        xs = parts_of_x(x, start, K, PIECE // 4, 4, BU)
        if SCALE == 4:
            acc = tl.fma(s, add_elements(vs, xs, tl.zeros([BN, BU], dtype=tl.float32), PER_WORD, PIECE, BN, BU), acc)
        else:
            acc = add_elements(vs, xs, acc, PER_WORD, PIECE, BN, BU)
        if TOKENS == 2:
            xs = parts_of_x(x + K, start, K, PIECE // 4, 4, BU)
            if SCALE == 4:
                dot = add_elements(vs, xs, tl.zeros([BN, BU], dtype=tl.float32), PER_WORD, PIECE, BN, BU)
                second = tl.fma(s, dot, second)
            else:
                second = add_elements(vs, xs, second, PER_WORD, PIECE, BN, BU)
    return acc, second


@triton.jit
def add_elements(vs, xs, acc, PER_WORD: tl.constexpr, PIECE: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr):
    """acc [BN, BU] plus the products of pieces."""
    for four in tl.static_range(PIECE // 4):
        neighbours = split_words(xs[four], 1, BU, 4)
        for i in tl.static_range(4):
            v = tl.reshape(vs[(4 * four + i) // PER_WORD], [BN, BU])
            if PER_WORD == 2:
                # the upper half of a float32 is a bf16
                if i % 2 == 0:
                    v = (v << 16).to(tl.float32, bitcast=True)
                else:
                    v = (v & -65536).to(tl.float32, bitcast=True)
            acc = tl.fma(v, tl.broadcast_to(neighbours[i], [BN, BU]), acc)
    return acc
