// What the formats share: reading and writing panel lines.
//
// A panel is 16 output rows. A line is 64 bytes: 16 rows x 4 bytes, the four bytes of a row belonging to four successive
// k ("a group"). A block is 32 k: groups 0 .. 7. All formats pack by gathering 32-bit words of 16 rows into lines, then
// moving bits within and between lines; so the same few lines of vector code serve every instruction set.
//
// A quantised format is a struct with
//   BLOCK, BLOCK_BYTES   elements and bytes of one GGUF block
//   BLOCKS, UNIT_BYTES   blocks of 32 k and bytes of one packed unit: header first, then the blocks in order
//   SUB                  k per scale, 32 or 16
//   HAS_MIN              whether an offset accompanies each scale: weight = scale * u + minimum
//   LOG_BIAS             else weight = scale * (u - 2 ** LOG_BIAS)
//   MAX                  largest u, what the dot product may rely on
//   Header, header()     what is decoded once per unit
//   scale(), minimum()   of sub-block s of block b, for the rows of one vector
//   pair()               u of groups 2 j and 2 j + 1 of block b
//   pack()               one GGUF block of 16 rows, `b` counting such blocks within the unit
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr int ROWS = 16, LINE = 64, BLOCK_K = 32, GROUPS = 8;

// Pointers to the same GGUF block of 16 rows.
using Rows = const uint8_t* const (&)[ROWS];

template <class I>
struct Lines {
    using V = typename I::V;

    // --- reading
    RT_INLINE void nibbles(const uint8_t* line, V& low, V& high) {
        V both = I::load(line);
        low = both & I::set_bytes(15);
        high = I::shift_right(both, 4) & I::set_bytes(15);
    }
    // Bits of `v` starting at `from`, moved to `to`, under a byte mask already moved.
    RT_INLINE V field(V v, int from, int to, int mask) {
        V moved = from > to ? I::shift_right(v, from - to) : I::shift_left(v, to - from);
        return moved & I::set_bytes(mask);
    }

    // --- writing
    // Words of `rows` at byte `offset`, as `count` lines.
    RT_INLINE void gather(Rows rows, int offset, int count, uint8_t* lines) {
        for (int w = 0; w < count; ++w)
            for (int r = 0; r < ROWS; ++r) memcpy(lines + LINE * w + 4 * r, rows[r] + offset + 4 * w, 4);
    }
    RT_INLINE void gather_u16(Rows rows, int offset, uint8_t* out) {
        for (int r = 0; r < ROWS; ++r) memcpy(out + 2 * r, rows[r] + offset, 2);
    }
    // Lines whose low nibbles are groups 0-3 and high nibbles groups 4-7 (element i and i + 16 in one byte), to lines of
    // successive groups: 4 lines to 4.
    RT_INLINE void nibbles_from_halves(const uint8_t* lines, uint8_t* out) {
        const V low = I::set_bytes(15), high = I::set_bytes(0xf0);
        for (int at = 0; at < LINE; at += I::BYTES) {
            V l0 = I::load(lines + at), l1 = I::load(lines + LINE + at);
            V l2 = I::load(lines + 2 * LINE + at), l3 = I::load(lines + 3 * LINE + at);
            I::store(out + at, (l0 & low) | (I::shift_left(l1, 4) & high));
            I::store(out + LINE + at, (l2 & low) | (I::shift_left(l3, 4) & high));
            I::store(out + 2 * LINE + at, (I::shift_right(l0, 4) & low) | (l1 & high));
            I::store(out + 3 * LINE + at, (I::shift_right(l2, 4) & low) | (l3 & high));
        }
    }
    // 8 lines, low nibbles one block and high nibbles another: 4 lines for each.
    RT_INLINE void nibbles_from_planes(const uint8_t* lines, uint8_t* first, uint8_t* second) {
        const V low = I::set_bytes(15), high = I::set_bytes(0xf0);
        for (int j = 0; j < 4; ++j)
            for (int at = 0; at < LINE; at += I::BYTES) {
                V even = I::load(lines + 2 * j * LINE + at), odd = I::load(lines + (2 * j + 1) * LINE + at);
                I::store(first + j * LINE + at, (even & low) | (I::shift_left(odd, 4) & high));
                I::store(second + j * LINE + at, (I::shift_right(even, 4) & low) | (odd & high));
            }
    }
    // Exchange the bits of `a` under mask << shift with those of `b` under mask.
    RT_INLINE void exchange(V& a, V& b, int shift, int mask) {
        V difference = (I::shift_right(a, shift) ^ b) & I::set_bytes(mask);
        b ^= difference;
        a ^= I::shift_left(difference, shift);
    }
    // 8 lines, one per group, bit s of a byte belonging to block s: to 8 lines, one per block, bit g for group g.
    RT_INLINE void transpose_bits(uint8_t* lines) {
        for (int at = 0; at < LINE; at += I::BYTES) {
            V v[8];
            RT_UNROLL for (int i = 0; i < 8; ++i) v[i] = I::load(lines + i * LINE + at);
            RT_UNROLL for (int i = 0; i < 8; i += 2) exchange(v[i], v[i + 1], 1, 0x55);
            RT_UNROLL for (int i = 0; i < 8; ++i) if (!(i & 2)) exchange(v[i], v[i + 2], 2, 0x33);
            RT_UNROLL for (int i = 0; i < 4; ++i) exchange(v[i], v[i + 4], 4, 0x0f);
            RT_UNROLL for (int i = 0; i < 8; ++i) I::store(lines + i * LINE + at, v[i]);
        }
    }
    // 4 lines, one per group, bit pair f of a byte belonging to block f: to 4 lines, one per block, pair g for group g.
    RT_INLINE void transpose_pairs(uint8_t* lines) {
        for (int at = 0; at < LINE; at += I::BYTES) {
            V v[4];
            RT_UNROLL for (int i = 0; i < 4; ++i) v[i] = I::load(lines + i * LINE + at);
            exchange(v[0], v[1], 2, 0x33);
            exchange(v[2], v[3], 2, 0x33);
            exchange(v[0], v[2], 4, 0x0f);
            exchange(v[1], v[3], 4, 0x0f);
            RT_UNROLL for (int i = 0; i < 4; ++i) I::store(lines + i * LINE + at, v[i]);
        }
    }
};

// Formats without a bias.
constexpr int NO_BIAS = -1;

}  // namespace
