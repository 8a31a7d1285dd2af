// 4 lanes: NEON of 64-bit Arm.
#pragma once

#include <arm_neon.h>

#define RT_LANES 4
#include "types.h"

namespace {

inline vf fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
inline vf root(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
inline vf larger(vf a, vf b) { return a > b ? a : b; }
inline vf widen(uint16x4_t h) { return (vf)vcvt_f32_f16(vreinterpret_f16_u16(h)); }
inline vf from_f16(const uint16_t* p) { return widen(vld1_u16(p)); }
inline void to_f16(vf x, uint16_t* p) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x))); }
inline vf low_f16(vu x) { return widen(vmovn_u32((uint32x4_t)x)); }
inline vf high_f16(vu x) { return widen(vshrn_n_u32((uint32x4_t)x, 16)); }

}  // namespace
