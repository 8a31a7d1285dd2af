// Attention by dot products of bf16 pairs: queries and weights are rounded to bf16 as keys and values are; after
// attention.inl.
#pragma once

#include "rows.h"

namespace {

#if defined(RT_DOT_BF16)
constexpr bool kHasDots = true;

// rows x NV vectors of keys: scores[i][key] = q[i] . k[key], pair by pair.
template <int M, int NV, bool kAhead>
void score_dots(const AttentionTile& t, const uint8_t* keys, int row, int token, Work& work) {
    const int64_t pairs = t.cache->padded_dim() / 2, line = 4 * kKvTile;
    const uint8_t* k[NV];
    for (int v = 0; v < NV; v++) {
        const int at = token + v * kLanes;
        k[v] = keys + at / kKvTile * pairs * line + at % kKvTile * 4;
    }
    vf s[NV][M];
    for (int v = 0; v < NV; v++)
        for (int i = 0; i < M; i++) s[v][i] = vf{};
    const uint32_t* q = (const uint32_t*)t.q + row;
    for (int64_t j = 0; j < pairs; j++, q += t.rows) {
        vu w[NV];
        for (int v = 0; v < NV; v++) {
            w[v] = load_words(k[v] + j * line);
            if constexpr (kAhead) __builtin_prefetch(k[v] + j * line + work.ahead, 0, 2);
        }
        for (int i = 0; i < M; i++)
            for (int v = 0; v < NV; v++) s[v][i] = dot_bf16(s[v][i], w[v], q[i]);
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) store(&work.scores[row + i][token + v * kLanes], s[v][i]);
}

template <int M, bool kAhead>
void score_dots_rows(const AttentionTile& t, const uint8_t* keys, int row, int num_keys, Work& work) {
    for (int token = 0; token < num_keys; token += 2 * kLanes) score_dots<M, 2, kAhead>(t, keys, row, token, work);
}

// sum[i] += weights of pairs `first` .. `end - 1` times their values, for NV vectors of elements from d on, of whose pairs
// only the bits of `mask` are read.
template <int M, int NV, bool kAhead>
void weigh_dots(const AttentionTile& t, const uint8_t* values, int row, int64_t d, int first, int end, uint32_t mask,
                const Work& work) {
    const int64_t dim = t.cache->padded_dim();
    vf a[M][NV];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) a[i][v] = load(t.sum + (row + i) * dim + d + v * kLanes);
    const uint8_t* p = values + (first * dim + d) * 4;
    for (int j = first; j < end; j++, p += 4 * dim) {
        vu w[NV];
        for (int v = 0; v < NV; v++) {
            w[v] = load_words(p + 4 * v * kLanes) & mask;
            if constexpr (kAhead) __builtin_prefetch(p + 4 * v * kLanes + work.ahead, 0, 2);
        }
        for (int i = 0; i < M; i++) {
            const uint32_t pair = load_as<uint32_t>(&work.halves[row + i][2 * j]);
            for (int v = 0; v < NV; v++) a[i][v] = dot_bf16(a[i][v], w[v], pair);
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) store(t.sum + (row + i) * dim + d + v * kLanes, a[i][v]);
}

// Tokens first .. end - 1 of the chunk; a pair may be cut at either end.
template <int M, int NV, bool kAhead>
void weigh_dots_range(const AttentionTile& t, const uint8_t* values, int row, int64_t d, int first, int end,
                      const Work& work) {
    int pair = first / 2;
    const int last = end / 2;
    if (first & 1) {
        weigh_dots<M, NV, kAhead>(t, values, row, d, pair, pair + 1, 0xffff0000u, work);
        pair++;
    }
    if (pair < last) weigh_dots<M, NV, kAhead>(t, values, row, d, pair, last, ~0u, work);
    if ((end & 1) && last >= pair) weigh_dots<M, NV, kAhead>(t, values, row, d, last, last + 1, 0xffffu, work);
}

template <int M, bool kAhead>
void weigh_dots_rows(const AttentionTile& t, const uint8_t* values, int row, int first, int end, const Work& work) {
    const int64_t dim = t.cache->padded_dim();
    int64_t d = 0;
    for (; d + kValueVectors * kLanes <= dim; d += kValueVectors * kLanes)
        weigh_dots_range<M, kValueVectors, kAhead>(t, values, row, d, first, end, work);
    for (; d < dim; d += kLanes) weigh_dots_range<M, 1, kAhead>(t, values, row, d, first, end, work);
}

template <bool kAhead>
void dots_chunk(const AttentionTile& t, const Chunk& c, Work& work) {
    const int first = c.first, end = c.end;
    int row = 0;
    for (; row + 12 <= t.rows; row += 12) score_dots_rows<12, kAhead>(t, c.keys, row, end, work);
    for (; row + 8 <= t.rows; row += 8) score_dots_rows<8, kAhead>(t, c.keys, row, end, work);
    for (; row + 4 <= t.rows; row += 4) score_dots_rows<4, kAhead>(t, c.keys, row, end, work);
    for (; row + 2 <= t.rows; row += 2) score_dots_rows<2, kAhead>(t, c.keys, row, end, work);
    for (; row < t.rows; row++) score_dots_rows<1, kAhead>(t, c.keys, row, end, work);
    for (row = 0; row < t.rows; row++) soften<true>(t, row, c.key, end, work);
    row = 0;
    for (; row + 6 <= t.rows; row += 6) weigh_dots_rows<6, kAhead>(t, c.values, row, first, end, work);
    for (; row + 4 <= t.rows; row += 4) weigh_dots_rows<4, kAhead>(t, c.values, row, first, end, work);
    for (; row + 2 <= t.rows; row += 2) weigh_dots_rows<2, kAhead>(t, c.values, row, first, end, work);
    for (; row < t.rows; row++) weigh_dots_rows<1, kAhead>(t, c.values, row, first, end, work);
}

void attend_dots(const AttentionTile& t) {
    for_chunks(t, 2, [&](const Chunk& c, Work& work) {
        if (t.rows <= kAheadRows) dots_chunk<true>(t, c, work);
        else dots_chunk<false>(t, c, work);
    });
}
#else
constexpr bool kHasDots = false;
void attend_dots(const AttentionTile& t) { attend_as<Bf16Elements>(t); }
#endif

}  // namespace
