// Keys and values in 8 bits with a scale per 32 elements, in and out of the cache; after attention.inl.
#pragma once

#include "rows.h"

namespace {

int64_t element_offset(const KvCache& c, bool value, int64_t token, int64_t d);

inline int64_t scale_offset(const KvCache& c, bool value, int64_t token, int64_t g) {
    if (value) return g * c.block_size + token;
    return (token / kKvTile * c.num_scales() + g) * kKvTile + token % kKvTile;
}

// As GGML's quantize_row_q8_0: the scale is rounded to f16 after the integers are made with it in f32.
void store_q8(const KvCache& c, uint8_t* half, bool value, int64_t token, const float* x) {
    uint16_t* scales = (uint16_t*)(half + c.block_size * c.padded_dim());
    for (int64_t g = 0; g < c.num_scales(); g++) {
        const int64_t end = 32 * g + 32 < c.head_dim ? 32 * g + 32 : c.head_dim;
        float most = 0;
        for (int64_t d = 32 * g; d < end; d++) most = std::fmax(most, std::fabs(x[d]));
        const float scale = most / 127.0f, inverse = scale != 0 ? 1.0f / scale : 0.0f;
        uint16_t h[kLanes];
        to_f16(splat(scale), h);
        scales[scale_offset(c, value, token, g)] = h[0];
        for (int64_t d = 32 * g; d < end; d++)
            half[element_offset(c, value, token, d)] = (uint8_t)(int8_t)std::round(x[d] * inverse);
    }
}

void load_q8(const KvCache& c, const uint8_t* half, bool value, int64_t token, float* x) {
    const uint16_t* scales = (const uint16_t*)(half + c.block_size * c.padded_dim());
    for (int64_t d = 0; d < c.head_dim; d++) {
        uint16_t h[kLanes] = {scales[scale_offset(c, value, token, d / 32)]};
        x[d] = (float)(int8_t)half[element_offset(c, value, token, d)] * from_f16(h)[0];
    }
}

}  // namespace
