// Activations rounded and laid out for the microkernel: tiles of up to six rows, every tile only as wide as its rows.
#pragma once

#include <cmath>

#include "formats/plain.h"
#include "kernels.h"

namespace {

using namespace rt;

constexpr int TILE_ROWS = 6;

// What `prepare` writes. Equal kinds are interchangeable between formats.
enum ActivationKind : int32_t {
    AS_F32 = 0,        // [k][width] f32, k padded with zeros
    AS_BF16 = 1,       // [k / 2][width][2] bf16, k padded with zeros
    AS_INT8 = 2,       // per 32 k an Int8Block
    AS_BF16_WIDE = 3,  // rounded to bf16, stored as AS_F32: for instruction sets without a bf16 dot product
};

// A block of 32 k of a tile, in memory: [8 groups][width][4] int8, then per row the negated sums of the first 16, the
// last 16 and all 32 values (int32, [3][width]), then the scales (f32, [width]).
struct Int8Block {
    static constexpr int SUMS = 32, SCALES = 44, BYTES = 48;  // times the width
};

inline uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class I>
struct Activations {
    using V = typename I::V;
    using F = typename I::F;

    // Bytes of one row, whatever the width of its tile.
    static int64_t row_bytes(int32_t kind, int64_t k) {
        if (kind == AS_INT8) return k / BLOCK_K * Int8Block::BYTES;
        return padded(k) * (kind == AS_BF16 ? 2 : 4);
    }
    // 64 bytes beyond the end keep vectors of other kernels from reading foreign memory.
    static size_t bytes(int32_t kind, int64_t rows, int64_t k) { return size_t(rows * row_bytes(kind, k) + 64); }
    static int64_t tiles(int32_t, int64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

    static void prepare(int32_t kind, const float* x, int64_t x_stride, const int32_t* gather, int64_t rows, int64_t k,
                        void* dst, int64_t tile0, int64_t tile1) {
        for (int64_t tile = tile0; tile < tile1; ++tile) {
            const int64_t first = tile * TILE_ROWS;
            const int width = int(rows - first < TILE_ROWS ? rows - first : TILE_ROWS);
            uint8_t* out = static_cast<uint8_t*>(dst) + first * row_bytes(kind, k);
            for (int m = 0; m < width; ++m) {
                const float* row = x + (gather ? gather[first + m] : first + m) * x_stride;
                if (kind == AS_INT8) quantise(row, k / BLOCK_K, out, m, width);
                else if (kind == AS_BF16) round_bf16(row, k, out, m, width);
                else copy(row, k, kind == AS_BF16_WIDE, out, m, width);
            }
        }
    }

  private:
    // int8 to nearest even with scale amax / 127. A block with an infinity or NaN gets the scale NaN, so that it shows.
    static void quantise(const float* x, int64_t blocks, uint8_t* out, int m, int width) {
        for (int64_t b = 0; b < blocks; ++b, x += BLOCK_K, out += Int8Block::BYTES * width) {
            constexpr int N = BLOCK_K / I::LANES;
            F value[N];
            V most = V{};
            RT_UNROLL for (int i = 0; i < N; ++i) {
                value[i] = I::load_float(x + i * I::LANES);
                most = I::max(most, I::as_int(value[i]) & 0x7fffffff);  // magnitudes order like integers, NaN on top
            }
            const int32_t bits = I::reduce_max(most);
            float amax, scale, inverse;
            memcpy(&amax, &bits, 4);
            if (bits >= 0x7f800000) {
                scale = NAN;
                inverse = 0;
                for (F& v : value) v = F{};
            } else {
                const bool negligible = amax < 1e-30f;  // 127 / amax must not overflow
                scale = negligible ? 0 : amax / 127;
                inverse = negligible ? 0 : 127 / amax;
            }
            int8_t q[BLOCK_K];
            V sum[2] = {};
            RT_UNROLL for (int i = 0; i < N; ++i) {
                V rounded = I::round(value[i] * inverse);
                sum[i / (N / 2)] += rounded;
                I::store_int8(q + i * I::LANES, rounded);
            }
            for (int g = 0; g < GROUPS; ++g) memcpy(out + (g * width + m) * 4, q + 4 * g, 4);
            const int32_t first = -I::reduce_add(sum[0]), last = -I::reduce_add(sum[1]), all = first + last;
            uint8_t* sums = out + Int8Block::SUMS * width + 4 * m;
            memcpy(sums, &first, 4);
            memcpy(sums + 4 * width, &last, 4);
            memcpy(sums + 8 * width, &all, 4);
            memcpy(sums + 12 * width, &scale, 4);
        }
    }

    // As to_bf16, in the low halves of the lanes.
    RT_INLINE V round_lanes(F x) {
        const V bits = I::as_int(x), nan = (bits & 0x7fffffff) > 0x7f800000;
        const V rounded = I::add(bits, (I::shift_right(bits, 16) & 1) + 0x7fff);
        return I::shift_right((rounded & ~nan) | ((bits | 0x400000) & nan), 16);
    }

    static void round_bf16(const float* x, int64_t k, uint8_t* out, int m, int width) {
        int64_t i = 0;
        for (; i + I::LANES <= k; i += I::LANES) {
            uint64_t pairs[I::LANES / 2];
            I::store(pairs, round_lanes(I::load_float(x + i)));
            for (int j = 0; j < I::LANES / 2; ++j) {
                const uint32_t both = uint32_t(pairs[j]) | uint32_t(pairs[j] >> 16);
                memcpy(out + ((i / 2 + j) * width + m) * 4, &both, 4);
            }
        }
        for (; i < padded(k); i += 2) {
            uint32_t low = i < k ? to_bf16(x[i]) : 0, high = i + 1 < k ? to_bf16(x[i + 1]) : 0;
            uint32_t both = low | high << 16;
            memcpy(out + (i / 2 * width + m) * 4, &both, 4);
        }
    }

    static void copy(const float* x, int64_t k, bool to_bfloat, uint8_t* out, int m, int width) {
        for (int64_t i = 0; i < padded(k); ++i) {
            float value = i < k ? x[i] : 0;
            if (to_bfloat) {
                uint32_t bits = uint32_t(to_bf16(value)) << 16;
                memcpy(&value, &bits, 4);
            }
            memcpy(out + (i * width + m) * 4, &value, 4);
        }
    }
};

}  // namespace
