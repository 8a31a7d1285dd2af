// Formats without scales: F32, F16, BF16, padded to whole steps of k.
//
// A step is what the microkernel consumes at once: two operands w0 and w1 for two chains of accumulation.
#pragma once

#include "lines.h"

namespace {

// [k][16] f32.
template <class I>
struct F32Panel {
    using F = typename I::F;
    static constexpr int ELEMENT = 4, STEP = 2;

    RT_INLINE void step(const uint8_t* p, int64_t i, int part, F& w0, F& w1) {
        p += 2 * LINE * i + I::BYTES * part;
        w0 = I::load_float(p);
        w1 = I::load_float(p + LINE);
    }
    RT_INLINE void put(uint8_t* panel, int64_t k, int row, const uint8_t* from) {
        memcpy(panel + (k * ROWS + row) * 4, from, 4);
    }
};

// [k][16] f16.
template <class I>
struct F16Panel {
    using F = typename I::F;
    static constexpr int ELEMENT = 2, STEP = 2;

    RT_INLINE void step(const uint8_t* p, int64_t i, int part, F& w0, F& w1) {
        p += LINE * i + I::BYTES / 2 * part;
        w0 = I::load_half(p);
        w1 = I::load_half(p + LINE / 2);
    }
    RT_INLINE void put(uint8_t* panel, int64_t k, int row, const uint8_t* from) {
        memcpy(panel + (k * ROWS + row) * 2, from, 2);
    }
};

// [k / 2][16][2] bf16: the operand of vdpbf16ps, and two floats by shift and mask.
template <class I>
struct BF16Panel {
    using V = typename I::V;
    using F = typename I::F;
    static constexpr int ELEMENT = 2, STEP = I::HAS_BF16 ? 4 : 2;

    RT_INLINE void step(const uint8_t* p, int64_t i, int part, F& w0, F& w1) {
        V both = I::load(p + LINE * i + I::BYTES * part);
        w0 = I::as_float(I::shift_left(both, 16));
        w1 = I::as_float(both & int32_t(0xffff0000));
    }
    RT_INLINE void step(const uint8_t* p, int64_t i, int part, V& w0, V& w1) {
        p += 2 * LINE * i + I::BYTES * part;
        w0 = I::load(p);
        w1 = I::load(p + LINE);
    }
    RT_INLINE void put(uint8_t* panel, int64_t k, int row, const uint8_t* from) {
        memcpy(panel + (k / 2 * ROWS + row) * 4 + k % 2 * 2, from, 2);
    }
};

constexpr int PLAIN_PAD = 4;  // k is padded to a multiple of the longest step
constexpr int64_t padded(int64_t k) { return (k + PLAIN_PAD - 1) / PLAIN_PAD * PLAIN_PAD; }

}  // namespace
