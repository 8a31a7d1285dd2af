// 64-bit Arm: NEON, with the dot products of Armv8.2 when the compiler is told of them.
#pragma once

#include <arm_neon.h>

#define RT_VECTOR_BYTES 16
#include "vectors.h"

namespace {

struct Isa : Vectors {
    static constexpr int TILE_PANELS = 1;
    static constexpr bool TILED = true;
    static constexpr bool SIGNED_BYTES = true;  // there is no product of unsigned with signed bytes
    static constexpr bool HAS_BF16 = false;

    // Weights up to 127 are the same as signed bytes; others are taken off their bias of 128.
    template <int MAX>
    RT_INLINE int8x16_t signed_weight(V w) {
        const int8x16_t bytes = vreinterpretq_s8_s32((int32x4_t)w);
        return MAX > 127 ? veorq_s8(bytes, vdupq_n_s8(-128)) : bytes;
    }

#if defined(__ARM_FEATURE_DOTPROD)
    static constexpr const char* NAME = "neon-dotprod";

    template <int MAX>
    struct Dot {
        V sum;
        inline __attribute__((always_inline)) void begin(V start) { sum = start; }
        inline __attribute__((always_inline)) void step(V w, V a, int) {
            sum = V(vdotq_s32((int32x4_t)sum, signed_weight<MAX>(w), vreinterpretq_s8_s32((int32x4_t)a)));
        }
        template <int STEPS>
        inline __attribute__((always_inline)) V end(V) { return sum; }
    };
#else
    static constexpr const char* NAME = "neon";

    // Two products of |w| <= 128 and |a| <= 127 fit 16 bits.
    template <int MAX>
    struct Dot {
        V sum;
        inline __attribute__((always_inline)) void begin(V start) { sum = start; }
        inline __attribute__((always_inline)) void step(V w, V a, int) {
            const int8x16_t weight = signed_weight<MAX>(w), activation = vreinterpretq_s8_s32((int32x4_t)a);
            const int16x8_t low = vmull_s8(vget_low_s8(weight), vget_low_s8(activation));
            const int16x8_t high = vmull_high_s8(weight, activation);
            sum = V(vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high)));
        }
        template <int STEPS>
        inline __attribute__((always_inline)) V end(V) { return sum; }
    };
#endif

    // The compiler must believe that `v` has changed.
    RT_INLINE void hide(V& v) { __asm__ volatile("" : "+w"(v)); }
    RT_INLINE F load_half(const void* p) {
        return F(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const uint16_t*>(p)))));
    }
    RT_INLINE F fma(F a, F b, F c) { return F(vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b)); }
    RT_INLINE V look_up(const uint8_t* table, V index) {
        return V(vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32((int32x4_t)index))));
    }
    RT_INLINE V max(V a, V b) { return V(vmaxq_s32((int32x4_t)a, (int32x4_t)b)); }
    RT_INLINE int32_t reduce_max(V v) { return vmaxvq_s32((int32x4_t)v); }
    RT_INLINE int32_t reduce_add(V v) { return vaddvq_s32((int32x4_t)v); }
};

}  // namespace
