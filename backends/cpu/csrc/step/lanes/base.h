// 4 lanes in the compiler's own vectors: any processor.
#pragma once

#define RT_LANES 4
#include "types.h"

#include <cmath>

namespace {

inline vf fma(vf a, vf b, vf c) { return a * b + c; }
inline vf root(vf a) { return vf{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]), std::sqrt(a[3])}; }
inline vf larger(vf a, vf b) { return a > b ? a : b; }

// Half precision by integer arithmetic (the exponent is rebased by a multiplication, which also handles subnormals).
inline vf half_bits(vu h) {
    const vu sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
    const vf scale = vf{} + 0x1p112f;
    const vu value = (vu)((vf)rest * scale);
    const vu special = rest | 0x7f800000u;  // infinity and NaN keep their mantissa
    return (vf)(sign | (rest >= 0x0f800000u ? special : value));
}
inline vf from_f16(const uint16_t* p) { return half_bits(vu{p[0], p[1], p[2], p[3]}); }
inline void to_f16(vf x, uint16_t* p) {
    const vu bits = (vu)x, sign = bits & 0x80000000u, rest = bits ^ sign;
    // Subnormal halves: adding 1/2 leaves their bits, rounded to nearest even, at the bottom of the word.
    const vu small = (vu)((vf)rest + 0.5f) - 0x3f000000u;
    const vu normal = (rest + 0xc8000fffu + ((rest >> 13) & 1)) >> 13;
    const vu large = rest > 0x7f800000u ? vu{} + 0x7e00u : vu{} + 0x7c00u;
    const vu h = rest >= 0x47800000u ? large : rest < 0x38800000u ? small : normal;
    for (int i = 0; i < 4; i++) p[i] = (uint16_t)(h[i] | (sign[i] >> 16));
}

}  // namespace
