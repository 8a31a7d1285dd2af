// AVX2 with FMA and F16C; with AVX-VNNI (or AVX-512 VNNI at 256 bits) when the compiler is told so.
#pragma once

#include <immintrin.h>

#define RT_VECTOR_BYTES 32
#include "vectors.h"

namespace {

struct Isa : Vectors {
    static constexpr int TILE_PANELS = 1;
    static constexpr bool TILED = true;
    static constexpr bool HAS_BF16 = false;

#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
    static constexpr bool SIGNED_BYTES = false;
#if defined(__AVXVNNI__)
    static constexpr const char* NAME = "avxvnni";
    RT_INLINE __m256i dpbusd(__m256i sum, __m256i w, __m256i a) { return _mm256_dpbusd_avx_epi32(sum, w, a); }
#else
    static constexpr const char* NAME = "avx512-256";
    RT_INLINE __m256i dpbusd(__m256i sum, __m256i w, __m256i a) { return _mm256_dpbusd_epi32(sum, w, a); }
#endif
    template <int MAX>
    struct Dot {
        V sum;
        inline __attribute__((always_inline)) void begin(V start) { sum = start; }
        inline __attribute__((always_inline)) void step(V w, V a, int) {
            sum = V(dpbusd(__m256i(sum), __m256i(w), __m256i(a)));
        }
        template <int STEPS>
        inline __attribute__((always_inline)) V end(V) { return sum; }
    };
#else
    static constexpr const char* NAME = "avx2";
    static constexpr bool SIGNED_BYTES = true;

    // vpmaddubsw saturates at 32767, and it is exact only while PAIRS * 2 * MAX * 127 stays below: so many of its
    // results are added in 16 bits before they are widened.
    template <int MAX>
    struct Dot {
        static constexpr int PAIRS = MAX <= 15 ? 8 : MAX <= 31 ? 4 : MAX <= 63 ? 2 : 1;
        __m256i narrow;
        V wide;
        inline __attribute__((always_inline)) void begin(V) {}
        inline __attribute__((always_inline)) void step(V w, V a, int i) {
            __m256i products;
            if (MAX > 127) {  // |w| <= 128 as unsigned, its sign moved to the activation
                __m256i weight = _mm256_xor_si256(__m256i(w), _mm256_set1_epi8(-128));
                products = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(__m256i(a), weight));
            } else {
                products = _mm256_maddubs_epi16(__m256i(w), __m256i(a));
            }
            narrow = i % PAIRS == 0 ? products : _mm256_add_epi16(narrow, products);
            if (i % PAIRS == PAIRS - 1) widen(i / PAIRS == 0);
        }
        // `steps` that were not a multiple of PAIRS leave a remainder in `narrow`
        template <int STEPS>
        inline __attribute__((always_inline)) V end(V start) {
            if (STEPS % PAIRS) widen(STEPS < PAIRS);
            return wide + start;
        }

      private:
        inline __attribute__((always_inline)) void widen(bool first) {
            V sums = V(_mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
            wide = first ? sums : wide + sums;
        }
    };
#endif

    // The compiler must believe that `v` has changed.
    RT_INLINE void hide(V& v) { __asm__ volatile("" : "+x"(v)); }
    RT_INLINE F load_half(const void* p) { return F(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))); }
    RT_INLINE F fma(F a, F b, F c) { return F(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c))); }
    RT_INLINE V look_up(const uint8_t* table, V index) {
        __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
        return V(_mm256_shuffle_epi8(entries, __m256i(index)));
    }
};

}  // namespace
