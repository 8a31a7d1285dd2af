// Vector operations that compilers derive from the width alone, by GCC vector extensions. An instruction set inherits
// them and adds what the compiler cannot find by itself: dot products, half floats, table look-ups, fused multiply-add.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#define RT_UNROLL _Pragma("clang loop unroll(full)")
#define RT_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define RT_UNROLL _Pragma("GCC unroll 16")
#define RT_NO_UNROLL _Pragma("GCC unroll 1")
#endif
#define RT_INLINE static inline __attribute__((always_inline))

namespace {

// Vectors of RT_VECTOR_BYTES, which the including header defines (a macro, for GCC converts no vectors whose width is a
// template's parameter): LANES 32-bit lanes, one lane per output row. A panel line (64 bytes, 16 rows x 4 bytes) is
// PARTS vectors.
struct Vectors {
    static constexpr int BYTES = RT_VECTOR_BYTES, LANES = BYTES / 4, PARTS = 16 / LANES;

    typedef int32_t V __attribute__((vector_size(RT_VECTOR_BYTES)));
    typedef uint32_t U __attribute__((vector_size(RT_VECTOR_BYTES)));
    typedef float F __attribute__((vector_size(RT_VECTOR_BYTES)));
    typedef uint16_t Halves __attribute__((vector_size(RT_VECTOR_BYTES / 2)));
    typedef int8_t Bytes __attribute__((vector_size(RT_VECTOR_BYTES / 4)));

    RT_INLINE V load(const void* p) { V v; memcpy(&v, p, sizeof v); return v; }
    RT_INLINE void store(void* p, V v) { memcpy(p, &v, sizeof v); }
    RT_INLINE F load_float(const void* p) { F v; memcpy(&v, p, sizeof v); return v; }
    RT_INLINE void store_float(void* p, F v) { memcpy(p, &v, sizeof v); }
    RT_INLINE V load_u16(const void* p) { Halves h; memcpy(&h, p, sizeof h); return __builtin_convertvector(h, V); }

    RT_INLINE V set(int32_t x) { return V{} + x; }
    RT_INLINE V set_bytes(int x) { return V{} + int32_t(uint32_t(x) * 0x01010101u); }
    RT_INLINE F set_float(float x) { return x - F{}; }  // x - 0 keeps -0, x + 0 would not
    RT_INLINE V splat(const void* p) { int32_t x; memcpy(&x, p, 4); return set(x); }
    RT_INLINE F splat_float(const void* p) { float x; memcpy(&x, p, 4); return set_float(x); }

    RT_INLINE V shift_left(V v, int n) { return V(U(v) << n); }
    RT_INLINE V shift_right(V v, int n) { return V(U(v) >> n); }
    RT_INLINE V shift_right_signed(V v, int n) { return v >> n; }
    RT_INLINE V add(V a, V b) { return V(U(a) + U(b)); }

    RT_INLINE F to_float(V v) { return __builtin_convertvector(v, F); }
    RT_INLINE F as_float(V v) { return F(v); }
    RT_INLINE V as_int(F v) { return V(v); }

    // Round to nearest, ties to even; |v| < 2^22. The constant leaves no fraction bits in a float.
    RT_INLINE V round(F v) { return as_int(v + 12582912.0f) - as_int(set_float(12582912.0f)); }
    RT_INLINE void store_int8(void* p, V v) { Bytes b = __builtin_convertvector(v, Bytes); memcpy(p, &b, sizeof b); }

    RT_INLINE V max(V a, V b) { V greater = a > b; return (a & greater) | (b & ~greater); }
    RT_INLINE int32_t reduce_max(V v) {
        int32_t lane[LANES];
        store(lane, v);
        int32_t most = lane[0];
        for (int i = 1; i < LANES; ++i) most = lane[i] > most ? lane[i] : most;
        return most;
    }
    RT_INLINE int32_t reduce_add(V v) {
        int32_t lane[LANES], sum = 0;
        store(lane, v);
        for (int i = 0; i < LANES; ++i) sum += lane[i];
        return sum;
    }
};

}  // namespace
