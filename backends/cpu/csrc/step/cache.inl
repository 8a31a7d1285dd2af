// Keys and values in and out of the cache, queries in the order of their use, partial sums; after attention.inl.
#pragma once

#include "attention_dots.inl"
#include "cache_q8.inl"

namespace {

inline bool uses_dots(const KvCache& cache) { return cache.format == 30 && kHasDots; }

size_t query_bytes(const KvCache& cache, int32_t rows) {
    return (size_t)(uses_dots(cache) ? 2 : 4) * cache.padded_dim() * rows;
}

// Pairs of elements, all rows side by side: [dim / 2][rows][2] of bf16 or f32.
void pack_queries(const KvCache& cache, const float* const* rows, int32_t count, void* q) {
    const int64_t dim = cache.head_dim, pairs = cache.padded_dim() / 2;
    std::memset(q, 0, query_bytes(cache, count));
    for (int32_t r = 0; r < count; r++) {
        const float* x = rows[r];
        if (uses_dots(cache)) {
            uint32_t* words = (uint32_t*)q + r;
            for (int64_t j = 0; j < pairs && 2 * j < dim; j++) {
                const uint32_t high = 2 * j + 1 < dim ? bf16_of(x[2 * j + 1]) : 0;
                words[j * count] = bf16_of(x[2 * j]) | high << 16;
            }
        } else {
            float* elements = (float*)q + 2 * r;
            for (int64_t d = 0; d < dim; d++) elements[d / 2 * 2 * count + d % 2] = x[d];
        }
    }
}

void attend(const AttentionTile& t) {
    switch (t.cache->format) {
        case 0: return attend_as<F32Elements>(t);
        case 1: return attend_as<F16Elements>(t);
        case 8: return attend_as<Q8Elements>(t);
        default: return attend_dots(t);
    }
}

void merge(int32_t rows, int64_t width, const float* largest, const float* total, const float* sum, float* all_largest,
           float* all_total, float* all_sum) {
    for (int32_t r = 0; r < rows; r++, sum += width, all_sum += width) {
        if (largest[r] == -kInf) continue;
        if (all_largest[r] == -kInf) {
            all_largest[r] = largest[r];
            all_total[r] = total[r];
            std::memcpy(all_sum, sum, 4 * (size_t)width);
            continue;
        }
        const float top = std::fmax(largest[r], all_largest[r]);
        const float a = std::exp2(all_largest[r] - top), b = std::exp2(largest[r] - top);
        all_largest[r] = top;
        all_total[r] = all_total[r] * a + total[r] * b;
        for (int64_t d = 0; d < width; d += kLanes)
            store(all_sum + d, fma(load(all_sum + d), splat(a), load(sum + d) * b));
    }
}

void finish(int32_t head_dim, float largest, float total, const float* sum, const float* sink, float* y) {
    float factor = 1.0f;
    if (sink) {
        const float score = *sink * kLog2E, top = std::fmax(largest, score);
        factor = largest == -kInf ? 0.0f : std::exp2(largest - top);
        total = total * factor + std::exp2(score - top);
    }
    if (total == 0) factor = 0, total = 1;
    map(sum, head_dim, y, [&](vf v) { return v * factor / total; });
}


// Byte of element d of a slot's keys or values within the half block.
inline int64_t element_offset(const KvCache& c, bool value, int64_t token, int64_t d) {
    const int64_t dim = c.padded_dim(), bytes = c.format == 0 ? 4 : c.format == 8 ? 1 : 2;
    if (value) return bytes * (token / 2 * 2 * dim + 2 * d + token % 2);
    const int64_t pair = token / kKvTile * (dim / 2) + d / 2;
    return bytes * (pair * 2 * kKvTile + 2 * (token % kKvTile) + d % 2);
}

inline uint8_t* half_of(const KvCache& c, bool value, int64_t slot, int32_t head) {
    return c.data + slot / c.block_size * c.block_bytes() + (2 * head + value) * c.half_bytes();
}

void kv_store(const KvCache& c, bool value, int64_t slot, int32_t head, const float* x) {
    uint8_t* half = half_of(c, value, slot, head);
    const int64_t token = slot % c.block_size;
    if (c.format == 8) return store_q8(c, half, value, token, x);
    uint8_t* p = half + element_offset(c, value, token, 0);
    const int64_t bytes = c.format == 0 ? 4 : 2;
    const int64_t step = bytes * (value ? 4 : 2 * kKvTile), second = bytes * (value ? 2 : 1);  // from pair to pair, within one
    for (int64_t d = 0; d < c.head_dim; d += kLanes, p += kLanes / 2 * step) {
        const int64_t n = c.head_dim - d < kLanes ? c.head_dim - d : kLanes;
        if (c.format == 0) {
            for (int64_t i = 0; i < n; i++) std::memcpy(p + i / 2 * step + i % 2 * second, x + d + i, 4);
            continue;
        }
        uint16_t small[kLanes];
        const vf v = load_upto(x + d, n);
        if (c.format == 1) to_f16(v, small);
        else to_bf16(v, small);
        for (int64_t i = 0; i < n; i++) std::memcpy(p + i / 2 * step + i % 2 * second, small + i, 2);
    }
}

void kv_load(const KvCache& c, bool value, int64_t slot, int32_t head, float* x) {
    const uint8_t* half = half_of(c, value, slot, head);
    const int64_t token = slot % c.block_size;
    if (c.format == 8) return load_q8(c, half, value, token, x);
    for (int64_t d = 0; d < c.head_dim; d++) {
        const uint8_t* p = half + element_offset(c, value, token, d);
        uint16_t h[kLanes] = {};
        std::memcpy(c.format == 0 ? (void*)(x + d) : (void*)h, p, c.format == 0 ? 4 : 2);
        if (c.format == 1) x[d] = from_f16(h)[0];
        if (c.format == 30) x[d] = from_bf16(h)[0];
    }
}

}  // namespace
