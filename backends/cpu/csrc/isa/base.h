// Any processor: GCC vector extensions of 128 bits, no intrinsics.
#pragma once

#define RT_VECTOR_BYTES 16
#include "vectors.h"

namespace {

struct Isa : Vectors {
    static constexpr const char* NAME = "base";
    static constexpr int TILE_PANELS = 1;        // panels side by side in the microkernel for many rows
    static constexpr bool TILED = false;           // several rows at once are not worth their code here
    static constexpr bool SIGNED_BYTES = false;  // whether Dot<255> takes weights off their bias of 128
    static constexpr bool HAS_BF16 = false;

    typedef int16_t S __attribute__((vector_size(16)));
    typedef uint16_t US __attribute__((vector_size(16)));

    // Sums of weight times activation over groups of four bytes; weights are 0 .. MAX, activations -127 .. 127.
    // A product fits 16 bits even for 255; it is widened at once.
    template <int MAX>
    struct Dot {
        V sum;
        inline __attribute__((always_inline)) void begin(V start) { sum = start; }
        inline __attribute__((always_inline)) void step(V w, V a, int) {
            S even = S(US(w) & 255) * (S(US(a) << 8) >> 8);
            S odd = S(US(w) >> 8) * (S(a) >> 8);
            if (MAX <= 127) {
                even += odd;
                sum += (V(even) << 16 >> 16) + (V(even) >> 16);
            } else {
                sum += (V(even) << 16 >> 16) + (V(even) >> 16) + (V(odd) << 16 >> 16) + (V(odd) >> 16);
            }
        }
        template <int STEPS>
        inline __attribute__((always_inline)) V end(V) { return sum; }
    };

    // The compiler must believe that `v` has changed.
    RT_INLINE void hide(V& v) { __asm__ volatile("" : "+m"(v)); }
    RT_INLINE F load_half(const void* p) {
        V h = load_u16(p);
        // shifted into place, the exponent is 112 too small; the product also turns subnormals into normals
        F magnitude = as_float((h & 0x7fff) << 13) * 5.192296858534828e33f;
        V infinite = (h & 0x7c00) == 0x7c00;
        return as_float(as_int(magnitude) | (infinite & 0x7f800000) | shift_left(h & 0x8000, 16));
    }
    RT_INLINE F fma(F a, F b, F c) { return a * b + c; }
    RT_INLINE V look_up(const uint8_t* table, V index) {
        uint8_t byte[16];
        store(byte, index);
        for (int i = 0; i < 16; ++i) byte[i] = table[byte[i]];
        return load(byte);
    }
};

}  // namespace
