// The tile registers of AMX: eight of up to 16 rows of 64 bytes.
//
// Instructions are written out: the intrinsics want literal numbers of registers, which a template's parameters are not,
// and not every compiler's tell it that a load reads memory.
#pragma once

#include <cstdint>

#define RT_INLINE_TILE static inline __attribute__((always_inline))

namespace {

// What `ldtilecfg` reads: palette 1, and the shape of each tile.
struct TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

struct Tiles {
    static constexpr const char* NAME = "amx";

    RT_INLINE_TILE void configure(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" ::"m"(shapes)); }
    RT_INLINE_TILE void release() { __asm__ volatile("tilerelease"); }
    template <int T>
    RT_INLINE_TILE void zero() {
        __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
    }
    // Rows `stride` bytes apart.
    template <int T>
    RT_INLINE_TILE void load(const void* from, int64_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
    }
    template <int T>
    RT_INLINE_TILE void store(void* to, int64_t stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
    }
    // sum[m][n] (int32) += a[m][4 k + i] (signed) * b[k][4 n + i] (unsigned) over k and i.
    template <int SUM, int A, int B>
    RT_INLINE_TILE void dot_bytes() {
        __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
    }
    // sum[m][n] (f32) += a[m][2 k + i] * b[k][2 n + i]: for each i the products of all k are summed from zero, fused, and
    // the two sums are added to each other, then to what is there; subnormal numbers count as zeros.
    template <int SUM, int A, int B>
    RT_INLINE_TILE void dot_bf16() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
    }
};

}  // namespace
