// Formats with 32 elements a block: Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, Q8_0, MXFP4.
#pragma once

#include "lines.h"

namespace {

// `kvalues_iq4nl` of llama.cpp, plus 128.
constexpr uint8_t IQ4_CODES[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
// Twice the e2m1 values of OCP MX 1.0, plus 16.
constexpr uint8_t E2M1_CODES[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

enum Codes { LINEAR, IQ4, E2M1 };

template <class I, Codes CODES>
RT_INLINE typename I::V decode(typename I::V nibbles) {
    if (CODES == LINEAR) return nibbles;
    return I::look_up(CODES == IQ4 ? IQ4_CODES : E2M1_CODES, nibbles);
}

// A unit is 64 k: [16 scales f16] x 2, [16 minima f16] x 2 (HAS_MIN), then per block [line of fifth bits] (FIVE_BITS; bit
// g of a byte belongs to group g) and 4 lines of nibbles, groups 2 j (low) and 2 j + 1 (high).
template <class I, bool MINIMA, bool FIVE_BITS, int LOG_BIAS_, Codes CODES>
struct Nibbles32 {
    using V = typename I::V;
    using F = typename I::F;
    using L = Lines<I>;

    static constexpr int SCALES = MINIMA ? 2 : 1, NIBBLES = 64 * SCALES + (FIVE_BITS ? LINE : 0);
    static constexpr int STRIDE = 256 + (FIVE_BITS ? LINE : 0);
    static constexpr int BLOCK = 32, BLOCK_BYTES = 2 * SCALES + (FIVE_BITS ? 4 : 0) + 16;
    static constexpr int BLOCKS = 2, UNIT_BYTES = 64 * SCALES + 2 * STRIDE, SUB = 32, LOG_BIAS = LOG_BIAS_;
    static constexpr int MAX = CODES == IQ4 ? 255 : FIVE_BITS ? 31 : 15;
    static constexpr bool HAS_MIN = MINIMA, DIRECT = !FIVE_BITS && CODES == LINEAR;

    struct Header {};
    RT_INLINE Header header(const uint8_t*, int) { return {}; }
    RT_INLINE F scale(const Header&, const uint8_t* unit, int b, int, int part) {
        return I::load_half(unit + 32 * b + 2 * I::LANES * part);
    }
    RT_INLINE F minimum(const Header&, const uint8_t* unit, int b, int, int part) {
        return I::load_half(unit + 64 + 32 * b + 2 * I::LANES * part);
    }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        const uint8_t* p = unit + NIBBLES + STRIDE * b + I::BYTES * part;
        L::nibbles(p + LINE * j, w0, w1);
        w0 = decode<I, CODES>(w0);
        w1 = decode<I, CODES>(w1);
        if (FIVE_BITS) {
            V fifth = I::load(p - LINE);
            w0 |= L::field(fifth, 2 * j, 4, 16);
            w1 |= L::field(fifth, 2 * j + 1, 4, 16);
        }
    }

    RT_INLINE void pack(Rows rows, int b, uint8_t* unit) {
        alignas(64) uint8_t lines[4 * LINE];
        L::gather_u16(rows, 0, unit + 32 * b);
        if (MINIMA) L::gather_u16(rows, 2, unit + 64 + 32 * b);
        if (FIVE_BITS) {
            L::gather(rows, 2 * SCALES, 1, unit + NIBBLES - LINE + STRIDE * b);
            rotate_bits(unit + NIBBLES - LINE + STRIDE * b);
        }
        L::gather(rows, BLOCK_BYTES - 16, 4, lines);
        L::nibbles_from_halves(lines, unit + NIBBLES + STRIDE * b);
    }

  private:
    // Bit 4 g + i of a row's word to bit 8 i + g. Each step exchanges two bits of the bit's number.
    RT_INLINE void rotate_bits(uint8_t* line) {
        for (int at = 0; at < LINE; at += I::BYTES) {
            V v = I::load(line + at);
            swap_bits(v, 14, 0x0000cccc);
            swap_bits(v, 7, 0x00aa00aa);
            swap_bits(v, 2, 0x0c0c0c0c);
            swap_bits(v, 1, 0x22222222);
            I::store(line + at, v);
        }
    }
    RT_INLINE void swap_bits(V& v, int shift, int32_t mask) {
        V difference = (v ^ I::shift_right(v, shift)) & mask;
        v ^= difference ^ I::shift_left(difference, shift);
    }
};

template <class I> using Q4_0Panel = Nibbles32<I, false, false, 3, LINEAR>;
template <class I> using Q4_1Panel = Nibbles32<I, true, false, NO_BIAS, LINEAR>;
template <class I> using Q5_0Panel = Nibbles32<I, false, true, 4, LINEAR>;
template <class I> using Q5_1Panel = Nibbles32<I, true, true, NO_BIAS, LINEAR>;
template <class I> using IQ4_NLPanel = Nibbles32<I, false, false, 7, IQ4>;

// A unit is 64 k: [16 scales f16] x 2, then 8 lines per block, each a group, weights + 128.
template <class I>
struct Q8_0Panel {
    using V = typename I::V;
    using F = typename I::F;

    static constexpr int BLOCK = 32, BLOCK_BYTES = 34, BLOCKS = 2, UNIT_BYTES = 1088, SUB = 32, LOG_BIAS = 7, MAX = 255;
    static constexpr bool HAS_MIN = false, DIRECT = true;

    struct Header {};
    RT_INLINE Header header(const uint8_t*, int) { return {}; }
    RT_INLINE F scale(const Header&, const uint8_t* unit, int b, int, int part) {
        return I::load_half(unit + 32 * b + 2 * I::LANES * part);
    }
    RT_INLINE F minimum(const Header&, const uint8_t*, int, int, int) { return F{}; }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        const uint8_t* p = unit + 64 + 512 * b + 2 * LINE * j + I::BYTES * part;
        w0 = I::load(p);
        w1 = I::load(p + LINE);
    }

    RT_INLINE void pack(Rows rows, int b, uint8_t* unit) {
        uint8_t* lines = unit + 64 + 512 * b;
        Lines<I>::gather_u16(rows, 0, unit + 32 * b);
        Lines<I>::gather(rows, 2, 8, lines);
        for (int at = 0; at < 8 * LINE; at += I::BYTES) I::store(lines + at, I::load(lines + at) ^ I::set_bytes(0x80));
    }
};

// A unit is 128 k: a line of scale exponents (byte b of a row for block b), then 4 lines of nibbles per block.
template <class I>
struct MXFP4Panel {
    using V = typename I::V;
    using F = typename I::F;

    static constexpr int BLOCK = 32, BLOCK_BYTES = 17, BLOCKS = 4, UNIT_BYTES = 1088, SUB = 32, LOG_BIAS = 4, MAX = 31;
    static constexpr bool HAS_MIN = false, DIRECT = false;

    struct Header {};
    RT_INLINE Header header(const uint8_t*, int) { return {}; }
    // 2 ** (e - 128), the codes being doubled; in two factors, because it reaches down to subnormals.
    RT_INLINE F scale(const Header&, const uint8_t* unit, int b, int, int part) {
        V e = I::shift_right(I::load(unit + I::BYTES * part), 8 * b) & 255;
        V half = I::shift_right(e, 1);
        return I::as_float((half + 63) << 23) * I::as_float((e - half + 63) << 23);
    }
    RT_INLINE F minimum(const Header&, const uint8_t*, int, int, int) { return F{}; }
    RT_INLINE void pair(const uint8_t* unit, int b, int j, int part, V& w0, V& w1) {
        Lines<I>::nibbles(unit + LINE + 256 * b + LINE * j + I::BYTES * part, w0, w1);
        w0 = decode<I, E2M1>(w0);
        w1 = decode<I, E2M1>(w1);
    }

    RT_INLINE void pack(Rows rows, int b, uint8_t* unit) {
        alignas(64) uint8_t lines[4 * LINE];
        for (int r = 0; r < ROWS; ++r) unit[4 * r + b] = rows[r][0];
        Lines<I>::gather(rows, 1, 4, lines);
        Lines<I>::nibbles_from_halves(lines, unit + LINE + 256 * b);
    }
};

}  // namespace
