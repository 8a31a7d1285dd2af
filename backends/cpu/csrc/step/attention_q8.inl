// Attention over keys and values in 8 bits with a scale per 32 elements; after attention.inl.
#pragma once

#include "rows.h"

namespace {

typedef uint16_t vw __attribute__((vector_size(2 * RT_LANES)));

// Two signed bytes per 16-bit word: token or element pairs as in the other formats.
struct Q8Pair {
    vf low, high;
};
inline Q8Pair load_q8_pair(const uint8_t* p) {
    const vi words = __builtin_convertvector(load_as<vw>(p), vi);
    return {__builtin_convertvector(words << 24 >> 24, vf), __builtin_convertvector(words << 16 >> 24, vf)};
}

inline const uint16_t* q8_scales(const KvCache& c, const uint8_t* half) {
    return (const uint16_t*)(half + c.block_size * c.padded_dim());
}

template <int M>
void score_q8(const AttentionTile& t, const uint8_t* half, int64_t offset, int row, int num_keys, Work& work) {
    const KvCache& c = *t.cache;
    const int64_t pairs = c.padded_dim() / 2, groups = c.num_scales();
    const uint16_t* scales = q8_scales(c, half);
    for (int token = 0; token < num_keys; token += kLanes) {
        const int64_t at = offset + token, tile = at / kKvTile, lane = at % kKvTile;
        vf s[M];
        for (int i = 0; i < M; i++) s[i] = vf{};
        for (int64_t g = 0; g < groups; g++) {
            vf part[M];
            for (int i = 0; i < M; i++) part[i] = vf{};
            const int64_t end = 16 * g + 16 < pairs ? 16 * g + 16 : pairs;
            for (int64_t j = 16 * g; j < end; j++) {
                const Q8Pair k = load_q8_pair(half + 2 * ((tile * pairs + j) * kKvTile + lane));
                const float* q = (const float*)t.q + 2 * (j * t.rows + row);
                for (int i = 0; i < M; i++) {
                    part[i] = fma(k.low, splat(q[2 * i]), part[i]);
                    part[i] = fma(k.high, splat(q[2 * i + 1]), part[i]);
                }
            }
            const vf scale = from_f16(scales + (tile * groups + g) * kKvTile + lane);
            for (int i = 0; i < M; i++) s[i] = fma(part[i], scale, s[i]);
        }
        for (int i = 0; i < M; i++) store(&work.scores[row + i][token], s[i]);
    }
}

// Elements of one group, NV vectors of them: the scales are in the weights already.
template <int M, int NV>
void weigh_q8_part(const AttentionTile& t, const uint8_t* values, int row, int64_t d, int first, int end,
                   const float (*weight)[kChunk]) {
    const int64_t dim = t.cache->padded_dim();
    vf a[M][NV];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) a[i][v] = load(t.sum + (row + i) * dim + d + v * kLanes);
    for (int j = first & ~1; j < end; j += 2) {
        for (int v = 0; v < NV; v++) {
            const Q8Pair x = load_q8_pair(values + j * dim + 2 * (d + v * kLanes));
            for (int i = 0; i < M; i++) {
                a[i][v] = fma(x.low, splat(weight[i][j]), a[i][v]);
                a[i][v] = fma(x.high, splat(weight[i][j + 1]), a[i][v]);
            }
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) store(t.sum + (row + i) * dim + d + v * kLanes, a[i][v]);
}

template <int M>
void weigh_q8(const AttentionTile& t, const uint8_t* half, int64_t offset, int row, int first, int end,
              const Work& work) {
    const KvCache& c = *t.cache;
    const int64_t dim = c.padded_dim(), groups = c.num_scales();
    constexpr int kVectors = kLanes == 16 ? 2 : 1;
    for (int64_t g = 0; g < groups; g++) {
        const uint16_t* scales = q8_scales(c, half) + g * c.block_size + offset;
        alignas(64) float weight[M][kChunk];
        for (int j = 0; j < end; j += kLanes) {
            // what lies in free slots may be anything, NaN too
            const vi number = lane_numbers() + j;
            const vf scale = select((number >= first) & (number < end), from_f16(scales + j), vf{});
            for (int i = 0; i < M; i++) store(&weight[i][j], load(&work.scores[row + i][j]) * scale);
        }
        int64_t d = 32 * g;
        const int64_t stop = d + 32 < dim ? d + 32 : dim;
        for (; d + kVectors * kLanes <= stop; d += kVectors * kLanes)
            weigh_q8_part<M, kVectors>(t, half + offset * dim, row, d, first, end, weight);
        for (; d < stop; d += kLanes) weigh_q8_part<M, 1>(t, half + offset * dim, row, d, first, end, weight);
    }
}

template <int M>
void attend_q8_rows(const AttentionTile& t, const uint8_t* half, int64_t offset, int64_t key, int row, int first,
                    int end, Work& work) {
    score_q8<M>(t, half, offset, row, end, work);
    for (int i = 0; i < M; i++) soften<false>(t, row + i, key, end, work);
    weigh_q8<M>(t, half + t.cache->half_bytes(), offset, row, first, end, work);
}

void attend_q8(const AttentionTile& t) {
    const KvCache& c = *t.cache;
    const int chunk = c.block_size % kChunk ? kKvTile : kChunk;
    Work work;
    for (int64_t key = t.key_first / chunk * chunk; key < t.key_end; key += chunk) {
        const uint8_t* half =
            c.data + t.blocks[key / c.block_size] * c.block_bytes() + 2 * t.head * c.half_bytes();
        const int first = (int)(t.key_first > key ? t.key_first - key : 0);
        const int end = (int)(t.key_end < key + chunk ? t.key_end - key : chunk);
        const int64_t offset = key % c.block_size;
        int row = 0;
        for (; row + 4 <= t.rows; row += 4) attend_q8_rows<4>(t, half, offset, key, row, first, end, work);
        for (; row < t.rows; row++) attend_q8_rows<1>(t, half, offset, key, row, first, end, work);
    }
}

// As GGML's quantize_row_q8_0: the scale is rounded to f16 after the integers are made with it in f32.
int64_t element_offset(const KvCache& c, bool value, int64_t token, int64_t d);

inline int64_t scale_offset(const KvCache& c, bool value, int64_t token, int64_t g) {
    if (value) return g * c.block_size + token;
    return (token / kKvTile * c.num_scales() + g) * kKvTile + token % kKvTile;
}

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
    const uint16_t* scales = q8_scales(c, half);
    for (int64_t d = 0; d < c.head_dim; d++) {
        uint16_t h[kLanes] = {scales[scale_offset(c, value, token, d / 32)]};
        x[d] = (float)(int8_t)half[element_offset(c, value, token, d)] * from_f16(h)[0];
    }
}

}  // namespace
