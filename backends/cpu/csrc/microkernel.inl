// The inner loops: a tile of MR rows of activations times NR panels of weights.
//
// One output element is always summed in the same order, whatever MR, NR, the instruction set or the slab of k: so
// results do not depend on batch size, tiling or threads. For quantised weights, per block of 32 k in exact integers,
// then  total += (sum0 * scale0 [+ min0 * activation_sum0] [+ ... of the second 16]) * activation_scale  with every
// operation rounded by itself: multiply and add rather than fused, because not every processor has the latter.
#pragma once

#include "activations.inl"
#include "formats/blocks32.h"

namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Where an instruction set is not TILED, its microkernels take one row at a time out of a tile of `tile_width`; elsewhere
// MR is the width.
constexpr int TILE_STRIDE = 2 * ROWS;  // floats between rows of a tile of totals: two panels side by side

// What a tile's microkernel fetches while it computes: the slab of k, or the panels, that come next. With few tiles to a
// slab the weights are new to the cache in one of them and wait for memory there, while the others leave it idle. The
// hardware cannot know which bytes come next; `step` bytes of each panel per block of k are a tile's part of them.
struct Ahead {
    const uint8_t* at;
    int64_t panel_bytes, step;
};

template <int NR>
RT_INLINE void fetch_ahead(Ahead& ahead) {
    for (int64_t i = 0; i < ahead.step; i += LINE)
        RT_UNROLL for (int n = 0; n < NR; ++n) __builtin_prefetch(ahead.at + i + n * ahead.panel_bytes, 0, 2);
    ahead.at += ahead.step;
}

// Block `b` of a unit, for the rows of vector `part` of each panel.
template <class I, class Format, int MR, int NR>
RT_INLINE void multiply_block(const typename Format::Header (&header)[NR], const uint8_t* unit, int64_t panel_bytes,
                              int b, int part, const uint8_t* activations, int width,
                              typename I::F (&total)[MR][NR]) {
    using V = typename I::V;
    using F = typename I::F;
    constexpr int SUBS = BLOCK_K / Format::SUB, STEPS = GROUPS / SUBS;
    constexpr int CHAINS = MR * NR <= 4 ? 2 : 1;  // a dot product takes four cycles; few rows need more of them in flight
    constexpr bool BIASED = Format::LOG_BIAS != NO_BIAS && !(Format::MAX == 255 && I::SIGNED_BYTES);
    const uint8_t* sums = activations + Int8Block::SUMS * width + (SUBS == 1 ? 8 * width : 0);

    F partial[MR][NR];
    RT_UNROLL for (int s = 0; s < SUBS; ++s) {
        V start[MR];
        typename I::template Dot<Format::MAX> dot[CHAINS][MR][NR];
        RT_UNROLL for (int m = 0; m < MR; ++m) {
            start[m] = BIASED ? I::shift_left(I::splat(sums + 4 * (s * width + m)), Format::LOG_BIAS) : V{};
            RT_UNROLL for (int n = 0; n < NR; ++n) {
                dot[0][m][n].begin(start[m]);
                if (CHAINS == 2) dot[CHAINS - 1][m][n].begin(V{});
            }
        }
        RT_UNROLL for (int j = 0; j < STEPS / 2; ++j) {
            V w[2][NR];
            RT_UNROLL for (int n = 0; n < NR; ++n)
                Format::pair(unit + n * panel_bytes, b, s * STEPS / 2 + j, part, w[0][n], w[1][n]);
            RT_UNROLL for (int i = 0; i < 2; ++i)
                RT_UNROLL for (int m = 0; m < MR; ++m) {
                    V a = I::splat(activations + 4 * ((s * STEPS + 2 * j + i) * width + m));
                    RT_UNROLL for (int n = 0; n < NR; ++n) {
                        if (CHAINS == 2) dot[CHAINS == 2 ? i : 0][m][n].step(w[i][n], a, j);
                        else dot[0][m][n].step(w[i][n], a, 2 * j + i);
                    }
                }
        }
        F scale[NR], minimum[NR];
        RT_UNROLL for (int n = 0; n < NR; ++n) {
            scale[n] = Format::scale(header[n], unit + n * panel_bytes, b, s, part);
            if (Format::HAS_MIN) minimum[n] = Format::minimum(header[n], unit + n * panel_bytes, b, s, part);
        }
        RT_UNROLL for (int m = 0; m < MR; ++m)
            RT_UNROLL for (int n = 0; n < NR; ++n) {
                V sum = dot[0][m][n].template end<STEPS / CHAINS>(start[m]);
                if (CHAINS == 2) sum += dot[CHAINS - 1][m][n].template end<STEPS / CHAINS>(V{});
                F product = I::to_float(sum) * scale[n];
                partial[m][n] = s == 0 ? product : partial[m][n] + product;
                if (Format::HAS_MIN)
                    partial[m][n] = partial[m][n] - minimum[n] * I::to_float(I::splat(sums + 4 * (s * width + m)));
            }
    }
    RT_UNROLL for (int m = 0; m < MR; ++m) {
        F scale = I::splat_float(activations + Int8Block::SCALES * width + 4 * m);
        RT_UNROLL for (int n = 0; n < NR; ++n) total[m][n] = total[m][n] + partial[m][n] * scale;
    }
}

// totals[MR][TILE_STRIDE] (+)= activations x `blocks` blocks of NR panels.
template <class I, class Format, int MR, int NR>
__attribute__((noinline)) void multiply_int8(const uint8_t* weights, int64_t panel_bytes, const uint8_t* activations,
                                             int64_t blocks, float* totals, bool first, int tile_width,
                                             Ahead ahead) {
    using F = typename I::F;
    const int width = I::TILED ? MR : tile_width;
    F total[I::PARTS][MR][NR];
    for (int part = 0; part < I::PARTS; ++part)
        RT_UNROLL for (int m = 0; m < MR; ++m)
            RT_UNROLL for (int n = 0; n < NR; ++n) {
                const float* from = totals + m * TILE_STRIDE + n * ROWS + part * I::LANES;
                total[part][m][n] = first ? F{} : I::load_float(from);
            }
    for (int64_t block = 0; block < blocks; block += Format::BLOCKS) {
        RT_NO_UNROLL for (int part = 0; part < I::PARTS; ++part) {
            const uint8_t* block_activations = activations;
            // or the compiler shares the broadcasts of all parts, and spills them for want of registers
            if (I::PARTS > 1) __asm__ volatile("" : "+r"(block_activations));
            typename Format::Header header[NR];
            RT_UNROLL for (int n = 0; n < NR; ++n) header[n] = Format::header(weights + n * panel_bytes, part);
            const auto multiply = [&](int b) __attribute__((always_inline)) {
                multiply_block<I, Format, MR, NR>(header, weights, panel_bytes, b, part,
                                                  block_activations + b * width * Int8Block::BYTES, width, total[part]);
            };
            // unrolled, shifts and addresses are constants, which counts where a weight is used once or twice
            if constexpr (I::TILED && MR * I::PARTS <= 2) {
                RT_UNROLL for (int b = 0; b < Format::BLOCKS; ++b) {
                    if (Format::BLOCKS < 8 && b > 0 && block + b >= blocks) break;
                    multiply(b);
                }
            } else {
                const int count = int(min_of(Format::BLOCKS, blocks - block));
                RT_NO_UNROLL for (int b = 0; b < count; ++b) {
                    if constexpr (I::TILED) {
                        if (part == 0) fetch_ahead<NR>(ahead);
                    }
                    multiply(b);
                }
            }
        }
        weights += Format::UNIT_BYTES;
        activations += Format::BLOCKS * width * Int8Block::BYTES;
    }
    for (int part = 0; part < I::PARTS; ++part)
        RT_UNROLL for (int m = 0; m < MR; ++m)
            RT_UNROLL for (int n = 0; n < NR; ++n)
                I::store_float(totals + m * TILE_STRIDE + n * ROWS + part * I::LANES, total[part][m][n]);
}

// One step of a plain format: two chains per output element, because a multiply-add takes four cycles and more.
template <class I, class Format, int MR, int NR>
RT_INLINE void multiply_step(const uint8_t* weights, int64_t panel_bytes, int64_t i, int part,
                             const uint8_t* activations, int width, typename I::F (&total)[2][MR][NR]) {
    if constexpr (Format::STEP == 4) {
        typename I::V w[2][NR];
        RT_UNROLL for (int n = 0; n < NR; ++n) Format::step(weights + n * panel_bytes, i, part, w[0][n], w[1][n]);
        RT_UNROLL for (int chain = 0; chain < 2; ++chain)
            RT_UNROLL for (int m = 0; m < MR; ++m) {
                typename I::V a = I::splat(activations + 4 * ((2 * i + chain) * width + m));
                RT_UNROLL for (int n = 0; n < NR; ++n)
                    total[chain][m][n] = I::dot_bf16(total[chain][m][n], w[chain][n], a);
            }
    } else {
        typename I::F w[2][NR];
        RT_UNROLL for (int n = 0; n < NR; ++n) Format::step(weights + n * panel_bytes, i, part, w[0][n], w[1][n]);
        RT_UNROLL for (int chain = 0; chain < 2; ++chain)
            RT_UNROLL for (int m = 0; m < MR; ++m) {
                typename I::F a = I::splat_float(activations + 4 * ((2 * i + chain) * width + m));
                RT_UNROLL for (int n = 0; n < NR; ++n)
                    total[chain][m][n] = I::fma(w[chain][n], a, total[chain][m][n]);
            }
    }
}

// totals[MR][TILE_STRIDE] (+)= activations x `steps` steps of NR panels. Chains end with each slab of k.
template <class I, class Format, int MR, int NR>
__attribute__((noinline)) void multiply_plain(const uint8_t* weights, int64_t panel_bytes, const uint8_t* activations,
                                              int64_t steps, float* totals, bool first, int tile_width, Ahead ahead) {
    using F = typename I::F;
    const int width = I::TILED ? MR : tile_width;
    RT_NO_UNROLL for (int part = 0; part < I::PARTS; ++part) {
        F total[2][MR][NR] = {};
        for (int64_t i = 0; i < steps; ++i) {
            if constexpr (I::TILED && MR > 1) {
                if (part == 0) fetch_ahead<NR>(ahead);
            }
            multiply_step<I, Format, MR, NR>(weights, panel_bytes, i, part, activations, width, total);
        }
        RT_UNROLL for (int m = 0; m < MR; ++m)
            RT_UNROLL for (int n = 0; n < NR; ++n) {
                float* to = totals + m * TILE_STRIDE + n * ROWS + part * I::LANES;
                F sum = total[0][m][n] + total[1][m][n];
                I::store_float(to, first ? sum : I::load_float(to) + sum);
            }
    }
}

}  // namespace
