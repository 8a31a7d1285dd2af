// The form that compressed panels are unpacked to when many rows of activations share them.
#pragma once

#include <type_traits>

#include "formats/lines.h"

namespace {

// Per block of 32 k: 8 lines of bytes, [32 / SUB][16] f32 scales, [32 / SUB][16] f32 minima (HAS_MIN).
template <class I, int SUB_, bool MINIMA, int LOG_BIAS_, int MAX_>
struct BytePanel {
    using V = typename I::V;
    using F = typename I::F;

    static constexpr int BLOCKS = 1, SUB = SUB_, LOG_BIAS = LOG_BIAS_, MAX = MAX_, SUBS = BLOCK_K / SUB;
    static constexpr int SCALES = 8 * LINE, MINIMUMS = SCALES + SUBS * LINE;
    static constexpr int UNIT_BYTES = MINIMUMS + (MINIMA ? SUBS * LINE : 0);
    static constexpr bool HAS_MIN = MINIMA;

    struct Header {};
    RT_INLINE Header header(const uint8_t*, int) { return {}; }
    RT_INLINE F scale(const Header&, const uint8_t* unit, int, int s, int part) {
        return I::load_float(unit + SCALES + LINE * s + I::BYTES * part);
    }
    RT_INLINE F minimum(const Header&, const uint8_t* unit, int, int s, int part) {
        return I::load_float(unit + MINIMUMS + LINE * s + I::BYTES * part);
    }
    RT_INLINE void pair(const uint8_t* unit, int, int j, int part, V& w0, V& w1) {
        const uint8_t* p = unit + 2 * LINE * j + I::BYTES * part;
        w0 = I::load(p);
        w1 = I::load(p + LINE);
    }
};

template <class I, class Format>
struct UnpackedPanel : BytePanel<I, Format::SUB, Format::HAS_MIN, Format::LOG_BIAS, Format::MAX> {
    using Base = BytePanel<I, Format::SUB, Format::HAS_MIN, Format::LOG_BIAS, Format::MAX>;

    static void unpack(const uint8_t* unit, int64_t blocks, uint8_t* out) {
        for (int64_t block = 0; block < blocks; block += Format::BLOCKS, unit += Format::UNIT_BYTES)
            RT_NO_UNROLL for (int part = 0; part < I::PARTS; ++part) {
                const typename Format::Header header = Format::header(unit, part);
                for (int b = 0; b < Format::BLOCKS && block + b < blocks; ++b) {
                    unpack_block(header, unit, b, part, out + (block + b) * Base::UNIT_BYTES + I::BYTES * part);
                }
            }
    }

  private:
    RT_INLINE void unpack_block(const typename Format::Header& header, const uint8_t* unit, int b, int part, uint8_t* out) {
        RT_UNROLL for (int j = 0; j < GROUPS / 2; ++j) {
            typename I::V w0, w1;
            Format::pair(unit, b, j, part, w0, w1);
            I::store(out + 2 * LINE * j, w0);
            I::store(out + 2 * LINE * j + LINE, w1);
        }
        RT_UNROLL for (int s = 0; s < Base::SUBS; ++s) {
            I::store_float(out + Base::SCALES + LINE * s, Format::scale(header, unit, b, s, part));
            if (Format::HAS_MIN)
                I::store_float(out + Base::MINIMUMS + LINE * s, Format::minimum(header, unit, b, s, part));
        }
    }
};

}  // namespace
