// Formats with 256 elements a block: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS. A unit is one block of 16 rows.
//
// Scale bytes stay in the order of GGUF, four to a word, words of 16 rows to a line: a scale is then a shift and a mask
// of a 32-bit lane. Scales are multiplied by the block's f16 exactly (at most 8 times 11 bits).
#pragma once

#include "blocks32.h"

namespace {

// Byte i of a line's words.
template <class I>
RT_INLINE typename I::V scale_byte(const uint8_t* lines, int i, int part) {
    return I::shift_right(I::load(lines + LINE * (i / 4) + I::BYTES * part), 8 * (i % 4));
}

// Q4_K and Q5_K: 3 lines of scales and minima, [16] d, [16] dmin, then per block [line of fifth bits] and 4 of nibbles.
template <class I, bool FIVE_BITS>
struct Nibbles256 {
    using V = typename I::V;
    using F = typename I::F;
    using L = Lines<I>;

    static constexpr int HEADER = 256, STRIDE = 256 + (FIVE_BITS ? LINE : 0);
    static constexpr int BLOCK = 256, BLOCK_BYTES = FIVE_BITS ? 176 : 144;
    static constexpr int BLOCKS = 8, UNIT_BYTES = HEADER + 8 * STRIDE, SUB = 32, LOG_BIAS = NO_BIAS;
    static constexpr int MAX = FIVE_BITS ? 31 : 15;
    static constexpr bool HAS_MIN = true, DIRECT = false;

    struct Header {
        V line[3];
        F d, negative_dmin;
    };
    RT_INLINE Header header(const uint8_t* unit, int part) {
        Header h;
        RT_UNROLL for (int i = 0; i < 3; ++i) h.line[i] = I::load(unit + LINE * i + I::BYTES * part);
        h.d = I::load_half(unit + 192 + 2 * I::LANES * part);
        h.negative_dmin = -I::load_half(unit + 224 + 2 * I::LANES * part);
        return h;
    }
    // Scales 0-3 are the low six bits of bytes 0-3, minima those of bytes 4-7; the low nibbles of scales 4-7 are those of
    // bytes 8-11, of the minima their high ones; the top bits of bytes 0-7 complete them.
    RT_INLINE F scale(const Header& h, const uint8_t*, int b, int, int) {
        const int at = 8 * (b & 3);
        if (b < 4) return I::to_float(I::shift_right(h.line[0], at) & 63) * h.d;
        return I::to_float((I::shift_right(h.line[2], at) & 15) | (I::shift_right(h.line[0], at + 2) & 48)) * h.d;
    }
    RT_INLINE F minimum(const Header& h, const uint8_t*, int b, int, int) {
        const int at = 8 * (b & 3);
        if (b < 4) return I::to_float(I::shift_right(h.line[1], at) & 63) * h.negative_dmin;
        return I::to_float((I::shift_right(h.line[2], at + 4) & 15) | (I::shift_right(h.line[1], at + 2) & 48)) *
               h.negative_dmin;
    }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        const uint8_t* p = unit + UNIT_BYTES - 8 * STRIDE + STRIDE * b + I::BYTES * part;
        L::nibbles(p + STRIDE - 256 + LINE * j, w0, w1);
        if (FIVE_BITS) {
            V fifth = I::load(p);
            w0 |= L::field(fifth, 2 * j, 4, 16);
            w1 |= L::field(fifth, 2 * j + 1, 4, 16);
        }
    }

    RT_INLINE void pack(Rows rows, int, uint8_t* unit) {
        alignas(64) uint8_t lines[8 * LINE];
        L::gather(rows, 4, 3, unit);
        L::gather_u16(rows, 0, unit + 192);
        L::gather_u16(rows, 2, unit + 224);
        if (FIVE_BITS) {
            L::gather(rows, 16, 8, lines);
            L::transpose_bits(lines);
            for (int b = 0; b < 8; ++b) memcpy(unit + HEADER + STRIDE * b, lines + LINE * b, LINE);
        }
        for (int b = 0; b < 8; b += 2) {
            uint8_t* first = unit + HEADER + STRIDE * b + STRIDE - 256;
            L::gather(rows, BLOCK_BYTES - 128 + 16 * b, 8, lines);
            L::nibbles_from_planes(lines, first, first + STRIDE);
        }
    }
};
template <class I> using Q4_KPanel = Nibbles256<I, false>;
template <class I> using Q5_KPanel = Nibbles256<I, true>;

// 4 lines of int8 scales, [16] d, 32 bytes of padding, then per half block a line of bit pairs (pair x of a byte belongs
// to group 4 half + x) and 2 lines of nibbles.
template <class I>
struct Q6_KPanel {
    using V = typename I::V;
    using F = typename I::F;
    using L = Lines<I>;

    static constexpr int HEADER = 320, STRIDE = 384, HALF = 192;
    static constexpr int BLOCK = 256, BLOCK_BYTES = 210, BLOCKS = 8, UNIT_BYTES = 3392, SUB = 16, LOG_BIAS = 5, MAX = 63;
    static constexpr bool HAS_MIN = false, DIRECT = false;

    struct Header {
        F d;
    };
    RT_INLINE Header header(const uint8_t* unit, int part) { return {I::load_half(unit + 256 + 2 * I::LANES * part)}; }
    RT_INLINE F scale(const Header& h, const uint8_t* unit, int b, int s, int part) {
        const int i = 2 * b + s;
        V line = I::load(unit + LINE * (i / 4) + I::BYTES * part);
        return I::to_float(I::shift_right_signed(I::shift_left(line, 24 - 8 * (i % 4)), 24)) * h.d;
    }
    RT_INLINE F minimum(const Header&, const uint8_t*, int, int, int) { return F{}; }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        const uint8_t* p = unit + HEADER + STRIDE * b + HALF * (j / 2) + I::BYTES * part;
        L::nibbles(p + LINE + LINE * (j % 2), w0, w1);
        V pairs = I::load(p);
        w0 |= L::field(pairs, 4 * (j % 2), 4, 0x30);
        w1 |= L::field(pairs, 4 * (j % 2) + 2, 4, 0x30);
    }

    RT_INLINE void pack(Rows rows, int, uint8_t* unit) {
        alignas(64) uint8_t lines[8 * LINE], low[8 * LINE];
        L::gather(rows, 192, 4, unit);
        L::gather_u16(rows, 208, unit + 256);
        memset(unit + 288, 0, 32);
        for (int half = 0; half < 2; ++half) {  // 128 elements: blocks 4 half .. 4 half + 3
            uint8_t* block = unit + HEADER + 4 * half * STRIDE;
            L::gather(rows, 128 + 32 * half, 8, lines);
            for (int h = 0; h < 2; ++h) {
                L::transpose_pairs(lines + 4 * h * LINE);
                for (int b = 0; b < 4; ++b) memcpy(block + STRIDE * b + HALF * h, lines + (4 * h + b) * LINE, LINE);
            }
            for (int b = 0; b < 2; ++b) {  // low nibbles are block b, high ones block b + 2
                L::gather(rows, 64 * half + 32 * b, 8, lines);
                L::nibbles_from_planes(lines, low, low + 4 * LINE);
                for (int i = 0; i < 4; ++i) {
                    uint8_t* to = block + STRIDE * (b + 2 * (i / 2)) + HALF * (i % 2) + LINE;
                    memcpy(to, low + 2 * i * LINE, 2 * LINE);
                }
            }
        }
    }
};

// What Q2_K and Q3_K share: 2 lines of bit pairs per block, pair x of line h belonging to group 4 h + x.
template <class I>
struct BitPairs {
    using V = typename I::V;

    RT_INLINE void pair(const uint8_t* lines, int j, int part, V& w0, V& w1) {
        V pairs = I::load(lines + LINE * (j / 2) + I::BYTES * part);
        w0 = I::shift_right(pairs, 4 * (j % 2)) & I::set_bytes(3);
        w1 = I::shift_right(pairs, 4 * (j % 2) + 2) & I::set_bytes(3);
    }
    RT_INLINE void pack(Rows rows, int offset, uint8_t* first, int stride) {
        alignas(64) uint8_t lines[8 * LINE];
        for (int half = 0; half < 2; ++half) {
            Lines<I>::gather(rows, offset + 32 * half, 8, lines);
            for (int h = 0; h < 2; ++h) {
                Lines<I>::transpose_pairs(lines + 4 * h * LINE);
                for (int b = 0; b < 4; ++b)
                    memcpy(first + stride * (4 * half + b) + LINE * h, lines + (4 * h + b) * LINE, LINE);
            }
        }
    }
};

// 4 lines of scales (low nibble) and minima (high), [16] d, [16] dmin, then 2 lines per block.
template <class I>
struct Q2_KPanel {
    using V = typename I::V;
    using F = typename I::F;

    static constexpr int HEADER = 320, STRIDE = 128;
    static constexpr int BLOCK = 256, BLOCK_BYTES = 84, BLOCKS = 8, UNIT_BYTES = 1344, SUB = 16, LOG_BIAS = NO_BIAS, MAX = 3;
    static constexpr bool HAS_MIN = true, DIRECT = false;

    struct Header {
        F d, negative_dmin;
    };
    RT_INLINE Header header(const uint8_t* unit, int part) {
        return {I::load_half(unit + 256 + 2 * I::LANES * part), -I::load_half(unit + 288 + 2 * I::LANES * part)};
    }
    RT_INLINE F scale(const Header& h, const uint8_t* unit, int b, int s, int part) {
        return I::to_float(scale_byte<I>(unit, 2 * b + s, part) & 15) * h.d;
    }
    RT_INLINE F minimum(const Header& h, const uint8_t* unit, int b, int s, int part) {
        return I::to_float(I::shift_right(scale_byte<I>(unit, 2 * b + s, part), 4) & 15) * h.negative_dmin;
    }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        BitPairs<I>::pair(unit + HEADER + STRIDE * b, j, part, w0, w1);
    }

    RT_INLINE void pack(Rows rows, int, uint8_t* unit) {
        Lines<I>::gather(rows, 0, 4, unit);
        Lines<I>::gather_u16(rows, 80, unit + 256);
        Lines<I>::gather_u16(rows, 82, unit + 288);
        BitPairs<I>::pack(rows, 16, unit + HEADER, STRIDE);
    }
};

// 3 lines of scales, [16] d, 32 bytes of padding, then per block a line of third bits (bit g: group g) and 2 lines.
template <class I>
struct Q3_KPanel {
    using V = typename I::V;
    using F = typename I::F;
    using L = Lines<I>;

    static constexpr int HEADER = 256, STRIDE = 192;
    static constexpr int BLOCK = 256, BLOCK_BYTES = 110, BLOCKS = 8, UNIT_BYTES = 1792, SUB = 16, LOG_BIAS = 2, MAX = 7;
    static constexpr bool HAS_MIN = false, DIRECT = false;

    struct Header {
        F d;
    };
    RT_INLINE Header header(const uint8_t* unit, int part) { return {I::load_half(unit + 192 + 2 * I::LANES * part)}; }
    // Scale i has its low four bits in byte i % 8 (nibble i / 8), the other two in byte 8 + i % 4 (pair i / 4), and 32 more.
    RT_INLINE F scale(const Header& h, const uint8_t* unit, int b, int s, int part) {
        const int i = 2 * b + s;
        V low = I::shift_right(scale_byte<I>(unit, i % 8, part), 4 * (i / 8)) & 15;
        V high = I::shift_right(scale_byte<I>(unit, 8 + i % 4, part), 2 * (i / 4)) & 3;
        return I::to_float((low | (high << 4)) - 32) * h.d;
    }
    RT_INLINE F minimum(const Header&, const uint8_t*, int, int, int) { return F{}; }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        const uint8_t* lines = unit + HEADER + STRIDE * b;
        BitPairs<I>::pair(lines + LINE, j, part, w0, w1);
        V third = I::load(lines + I::BYTES * part);
        w0 |= L::field(third, 2 * j, 2, 4);
        w1 |= L::field(third, 2 * j + 1, 2, 4);
    }

    RT_INLINE void pack(Rows rows, int, uint8_t* unit) {
        alignas(64) uint8_t lines[8 * LINE];
        L::gather(rows, 96, 3, unit);
        L::gather_u16(rows, 108, unit + 192);
        memset(unit + 224, 0, 32);
        BitPairs<I>::pack(rows, 32, unit + HEADER + LINE, STRIDE);
        L::gather(rows, 0, 8, lines);
        L::transpose_bits(lines);
        for (int b = 0; b < 8; ++b) memcpy(unit + HEADER + STRIDE * b, lines + LINE * b, LINE);
    }
};

// A line of low nibbles of the scales, [16] d, [16] u16 of their upper two bits, then 4 lines of nibbles per block.
template <class I>
struct IQ4_XSPanel {
    using V = typename I::V;
    using F = typename I::F;

    static constexpr int HEADER = 128, STRIDE = 256;
    static constexpr int BLOCK = 256, BLOCK_BYTES = 136, BLOCKS = 8, UNIT_BYTES = 2176, SUB = 32, LOG_BIAS = 7, MAX = 255;
    static constexpr bool HAS_MIN = false, DIRECT = false;

    struct Header {
        V low, high;
        F d;
    };
    RT_INLINE Header header(const uint8_t* unit, int part) {
        return {I::load(unit + I::BYTES * part), I::load_u16(unit + 96 + 2 * I::LANES * part),
                I::load_half(unit + 64 + 2 * I::LANES * part)};
    }
    RT_INLINE F scale(const Header& h, const uint8_t*, int b, int, int) {
        V low = I::shift_right(h.low, 4 * b) & 15, high = I::shift_right(h.high, 2 * b) & 3;
        return I::to_float((low | (high << 4)) - 32) * h.d;
    }
    RT_INLINE F minimum(const Header&, const uint8_t*, int, int, int) { return F{}; }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        Lines<I>::nibbles(unit + HEADER + STRIDE * b + LINE * j + I::BYTES * part, w0, w1);
        w0 = decode<I, IQ4>(w0);
        w1 = decode<I, IQ4>(w1);
    }

    RT_INLINE void pack(Rows rows, int, uint8_t* unit) {
        alignas(64) uint8_t lines[4 * LINE];
        Lines<I>::gather(rows, 4, 1, unit);
        Lines<I>::gather_u16(rows, 0, unit + 64);
        Lines<I>::gather_u16(rows, 2, unit + 96);
        for (int b = 0; b < 8; ++b) {
            Lines<I>::gather(rows, 8 + 16 * b, 4, lines);
            Lines<I>::nibbles_from_halves(lines, unit + HEADER + STRIDE * b);
        }
    }
};

}  // namespace
