// 16 lanes: AVX-512 F, BW, VL; bf16 dot products where the compiler was told of them.
#pragma once

#include <immintrin.h>

#define RT_LANES 16
#include "types.h"

namespace {

inline vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline vf root(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
inline vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline vf from_f16(const uint16_t* p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void to_f16(vf x, uint16_t* p) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#define RT_FROM_INT8 1
inline vf from_int8(const int8_t* p) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

#if defined(__AVX512BF16__)
#define RT_DOT_BF16 1
inline vf dot_bf16(vf sum, vu a, uint32_t b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_epi32((int)b));
}
inline void to_bf16(vf x, uint16_t* p) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }
#endif

}  // namespace
