// 8 lanes: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#define RT_LANES 8
#include "types.h"

namespace {

inline vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline vf root(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
inline vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline vf from_f16(const uint16_t* p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void to_f16(vf x, uint16_t* p) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#define RT_FROM_INT8 1
inline vf from_int8(const int8_t* p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

}  // namespace
