// AVX-512 F/BW/DQ/VL with VNNI, and BF16 when the compiler is told so.
#pragma once

#include <immintrin.h>

#define RT_VECTOR_BYTES 64
#include "vectors.h"

namespace {

struct Isa : Vectors {
#if defined(__AVX512BF16__)
    static constexpr const char* NAME = "avx512-bf16";
    static constexpr bool HAS_BF16 = true;
    RT_INLINE F dot_bf16(F sum, V w, V a) { return F(_mm512_dpbf16_ps(__m512(sum), __m512bh(w), __m512bh(a))); }
#else
    static constexpr const char* NAME = "avx512";
    static constexpr bool HAS_BF16 = false;
#endif
    static constexpr int TILE_PANELS = 2;
    static constexpr bool TILED = true;
    static constexpr bool SIGNED_BYTES = false;

    template <int MAX>
    struct Dot {
        V sum;
        inline __attribute__((always_inline)) void begin(V start) { sum = start; }
        inline __attribute__((always_inline)) void step(V w, V a, int) {
            sum = V(_mm512_dpbusd_epi32(__m512i(sum), __m512i(w), __m512i(a)));
        }
        template <int STEPS>
        inline __attribute__((always_inline)) V end(V) { return sum; }
    };

    // The compiler must believe that `v` has changed.
    RT_INLINE void hide(V& v) { __asm__ volatile("" : "+v"(v)); }
    RT_INLINE F load_half(const void* p) { return F(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))); }
    RT_INLINE F fma(F a, F b, F c) { return F(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c))); }
    RT_INLINE V look_up(const uint8_t* table, V index) {
        __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
        return V(_mm512_shuffle_epi8(entries, __m512i(index)));
    }
    RT_INLINE int32_t reduce_max(V v) { return _mm512_reduce_max_epi32(__m512i(v)); }
    RT_INLINE int32_t reduce_add(V v) { return _mm512_reduce_add_epi32(__m512i(v)); }
};

}  // namespace
