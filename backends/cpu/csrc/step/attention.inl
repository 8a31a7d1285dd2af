// Softmax attention over a paged KV cache for one instruction set, and the cache's layout; after rows.inl.
//
// A tile is up to kMaxTileRows query rows (heads of a group times tokens) of one KV head: keys and values are read once
// for all of them. Scores of up to 64 keys are made, softened and summed up before the next 64; what a row computes
// does not depend on the other rows of its tile: keys that it does not see weigh exactly zero.
#pragma once

#include "rows.h"

namespace {

using rt::AttentionTile;
using rt::KvCache;
using rt::kKvTile;

constexpr int kChunk = 64;                            // keys at a time
constexpr int kScoreRows = kLanes == 16 ? 12 : 4;     // rows x two vectors of keys fill the registers
constexpr int kValueRows = kLanes == 16 ? 6 : 4;
constexpr int kValueVectors = kLanes == 16 ? 4 : 2;
constexpr int kAheadRows = 8;
constexpr float kLog2E = 1.44269504088896341f;

// Two-byte formats: `words` hold pairs.
struct F16Pairs {
    static constexpr bool kDot = false, kPlain = false;
    static vf low(vu w) { return low_f16(w); }
    static vf high(vu w) { return high_f16(w); }
};
struct Bf16Pairs {
#if defined(RT_DOT_BF16)
    static constexpr bool kDot = true;
#else
    static constexpr bool kDot = false;
#endif
    static constexpr bool kPlain = false;
    static vf low(vu w) { return low_bf16(w); }
    static vf high(vu w) { return high_bf16(w); }
};
struct F32Pairs {
    static constexpr bool kDot = false, kPlain = true;
    static vf low(vu w) { return (vf)w; }
    static vf high(vu w) { return (vf)w; }
};

// One tile's working memory, on the stack of the thread that computes it.
struct Work {
    alignas(64) float scores[rt::kMaxTileRows][kChunk];    // then the weights, where these are f32
    alignas(64) uint16_t halves[rt::kMaxTileRows][kChunk];  // the weights in bf16
    // Bytes from what is read to what will be read next. The hardware fetches ahead within a run of bytes, but a head's
    // keys and values are too short a run for it to get up to speed.
    int64_t ahead;
};

// vectors of keys x rows: scores[i][key] = q[i] . k[key], element by element.
template <class F, int M, int NV, bool kAhead>
void score(const AttentionTile& t, const uint8_t* keys, int row, int vector, Work& work) {
    const int64_t pairs = t.cache->padded_dim() / 2;
    const int64_t pair_bytes = F::kPlain ? 8 * kKvTile : 4 * kKvTile;
    const uint8_t* k[NV];
    for (int v = 0; v < NV; v++) {
        const int token = (vector + v) * kLanes;
        k[v] = keys + token / kKvTile * pairs * pair_bytes + token % kKvTile * 4;
    }
    vf s[NV][M];
    for (int v = 0; v < NV; v++)
        for (int i = 0; i < M; i++) s[v][i] = vf{};
    if constexpr (F::kDot) {
#if defined(RT_DOT_BF16)
        const uint32_t* q = (const uint32_t*)t.q + row;
        for (int64_t j = 0; j < pairs; j++, q += t.rows) {
            vu w[NV];
            for (int v = 0; v < NV; v++) {
                w[v] = load_words(k[v] + j * pair_bytes);
                if constexpr (kAhead) __builtin_prefetch(k[v] + j * pair_bytes + work.ahead, 0, 2);
            }
            for (int i = 0; i < M; i++)
                for (int v = 0; v < NV; v++) s[v][i] = dot_bf16(s[v][i], w[v], q[i]);
        }
#endif
    } else {
        const float* q = (const float*)t.q + row;
        for (int64_t j = 0; j < pairs; j++, q += 2 * t.rows) {
            vf low[NV], high[NV];
            for (int v = 0; v < NV; v++) {
                const vu w = load_words(k[v] + j * pair_bytes);
                if constexpr (kAhead) __builtin_prefetch(k[v] + j * pair_bytes + work.ahead, 0, 2);
                low[v] = F::low(w);
                high[v] = F::kPlain ? (vf)load_words(k[v] + j * pair_bytes + 4 * kKvTile) : F::high(w);
            }
            for (int i = 0; i < M; i++)
                for (int v = 0; v < NV; v++) {
                    s[v][i] = fma(low[v], splat(q[i]), s[v][i]);
                    s[v][i] = fma(high[v], splat(q[t.rows + i]), s[v][i]);
                }
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) store(&work.scores[row + i][(vector + v) * kLanes], s[v][i]);
}

template <class F, int M, bool kAhead>
void score_rows(const AttentionTile& t, const uint8_t* keys, int row, int num_vectors, Work& work) {
    // Two vectors at a time: with sixteen lanes the keys are then read byte after byte.
    for (int v = 0; v < num_vectors; v += 2) score<F, M, 2, kAhead>(t, keys, row, v, work);
}

template <class F, bool kAhead>
void score_all(const AttentionTile& t, const uint8_t* keys, int num_keys, Work& work) {
    const int num_vectors = (num_keys + kKvTile - 1) / kKvTile * (kKvTile / kLanes);
    int row = 0;
    for (; row + kScoreRows <= t.rows; row += kScoreRows) score_rows<F, kScoreRows, kAhead>(t, keys, row, num_vectors, work);
    if constexpr (kScoreRows > 8)
        for (; row + 8 <= t.rows; row += 8) score_rows<F, 8, kAhead>(t, keys, row, num_vectors, work);
    for (; row + 4 <= t.rows; row += 4) score_rows<F, 4, kAhead>(t, keys, row, num_vectors, work);
    for (; row + 2 <= t.rows; row += 2) score_rows<F, 2, kAhead>(t, keys, row, num_vectors, work);
    for (; row < t.rows; row++) score_rows<F, 1, kAhead>(t, keys, row, num_vectors, work);
}

// Scores of one row become weights relative to the row's new maximum; sums so far are scaled to it.
template <bool kDot, bool kFull>
void soften_row(const AttentionTile& t, int row, int64_t key, int num_keys, Work& work) {
    constexpr int NV = kChunk / kLanes;
    const int num_vectors = kFull ? NV : (num_keys + kLanes - 1) / kLanes;
    float* scores = work.scores[row];
    vf x[NV], top = splat(-kInf);
    const int64_t first = t.first[row] - key, end = t.end[row] - key;
    const bool whole = first <= 0 && end >= num_vectors * kLanes;
    for (int v = 0; v < num_vectors; v++) {
        x[v] = load(scores + v * kLanes);
        if (t.softcap != 0) x[v] = t.softcap * tanh(x[v] * (t.scale / t.softcap)) * kLog2E;
        else x[v] = x[v] * (t.scale * kLog2E);
        if (t.slopes) {
            const vi behind = (int32_t)(t.positions[row] - key) - (lane_numbers() + v * kLanes);
            x[v] = x[v] - __builtin_convertvector(behind, vf) * (t.slopes[row] * kLog2E);
        }
        if (!whole) {
            const vi number = lane_numbers() + v * kLanes;
            const int32_t from = (int32_t)(first < 0 ? 0 : first), to = (int32_t)(end > kChunk ? kChunk : end);
            x[v] = select((number >= from) & (number < to), x[v], splat(-kInf));
        }
        top = larger(top, x[v]);
    }
    const float before = t.largest[row];
    const float now = std::fmax(before, max_lanes(top));
    const vf base = splat(now == -kInf ? 0.0f : now);
    vf sum = {};
    for (int v = 0; v < NV; v++) {
        const vf p = v < num_vectors ? exp2_negative(x[v] - base) : vf{};
        sum = sum + p;
        if constexpr (kDot) to_bf16(p, &work.halves[row][v * kLanes]);
        else store(scores + v * kLanes, p);
    }
    if (now > before) {
        const float shrink = before == -kInf ? 0.0f : std::exp2(before - now);
        t.total[row] *= shrink;
        float* o = t.sum + row * t.cache->padded_dim();
        for (int64_t d = 0; d < t.cache->padded_dim(); d += kLanes) store(o + d, load(o + d) * shrink);
        t.largest[row] = now;
    }
    t.total[row] += sum_lanes(sum);
}

template <bool kDot>
void soften(const AttentionTile& t, int row, int64_t key, int num_keys, Work& work) {
    if (num_keys == kChunk) soften_row<kDot, true>(t, row, key, num_keys, work);
    else soften_row<kDot, false>(t, row, key, num_keys, work);
}

// sum[i] += weights of pairs `first` .. `end - 1` times their values, for NV vectors of elements from d on. `low` and
// `high` are all ones, or zero where that token of the pair is beyond what may be read.
template <class F, int M, int NV, bool kAhead>
void weigh(const AttentionTile& t, const uint8_t* values, int row, int64_t d, int first, int end, uint32_t low,
           uint32_t high, const Work& work) {
    const int64_t dim = t.cache->padded_dim(), pair_bytes = (F::kPlain ? 8 : 4) * dim;
    vf a[M][NV];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) a[i][v] = load(t.sum + (row + i) * dim + d + v * kLanes);
    const uint8_t* p = values + first * pair_bytes + 4 * d;
    for (int j = first; j < end; j++, p += pair_bytes) {
        if constexpr (F::kDot) {
#if defined(RT_DOT_BF16)
            const uint32_t mask = (low & 0xffffu) | (high & 0xffff0000u);
            vu w[NV];
            for (int v = 0; v < NV; v++) {
                w[v] = load_words(p + 4 * v * kLanes) & mask;
                if constexpr (kAhead) __builtin_prefetch(p + 4 * v * kLanes + work.ahead, 0, 2);
            }
            for (int i = 0; i < M; i++) {
                uint32_t pair;
                std::memcpy(&pair, &work.halves[row + i][2 * j], 4);
                for (int v = 0; v < NV; v++) a[i][v] = dot_bf16(a[i][v], w[v], pair);
            }
#endif
        } else {
            vf even[NV], odd[NV];
            for (int v = 0; v < NV; v++) {
                const vu w = load_words(p + 4 * v * kLanes);
                if constexpr (kAhead) __builtin_prefetch(p + 4 * v * kLanes + work.ahead, 0, 2);
                const vu u = F::kPlain ? load_words(p + 4 * dim + 4 * v * kLanes) : w;
                even[v] = (vf)((vu)F::low(w) & low);
                odd[v] = (vf)((vu)F::high(u) & high);
            }
            for (int i = 0; i < M; i++) {
                const float* weight = &work.scores[row + i][2 * j];
                for (int v = 0; v < NV; v++) {
                    a[i][v] = fma(even[v], splat(weight[0]), a[i][v]);
                    a[i][v] = fma(odd[v], splat(weight[1]), a[i][v]);
                }
            }
        }
    }
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) store(t.sum + (row + i) * dim + d + v * kLanes, a[i][v]);
}

// Tokens first .. end - 1 of the chunk; a pair may be cut at either end.
template <class F, int M, int NV, bool kAhead>
void weigh_range(const AttentionTile& t, const uint8_t* values, int row, int64_t d, int first, int end,
                 const Work& work) {
    int pair = first / 2, last = end / 2;
    if (first & 1) {
        weigh<F, M, NV, kAhead>(t, values, row, d, pair, pair + 1, 0, ~0u, work);
        pair++;
    }
    if (pair < last) weigh<F, M, NV, kAhead>(t, values, row, d, pair, last, ~0u, ~0u, work);
    if ((end & 1) && last >= pair) weigh<F, M, NV, kAhead>(t, values, row, d, last, last + 1, ~0u, 0, work);
}

template <class F, int M, bool kAhead>
void weigh_rows(const AttentionTile& t, const uint8_t* values, int row, int first, int end, const Work& work) {
    const int64_t dim = t.cache->padded_dim();
    int64_t d = 0;
    for (; d + kValueVectors * kLanes <= dim; d += kValueVectors * kLanes)
        weigh_range<F, M, kValueVectors, kAhead>(t, values, row, d, first, end, work);
    for (; d < dim; d += kLanes) weigh_range<F, M, 1, kAhead>(t, values, row, d, first, end, work);
}

template <class F, bool kAhead>
void weigh_all(const AttentionTile& t, const uint8_t* values, int first, int end, const Work& work) {
    int row = 0;
    for (; row + kValueRows <= t.rows; row += kValueRows) weigh_rows<F, kValueRows, kAhead>(t, values, row, first, end, work);
    if constexpr (kValueRows > 4)
        for (; row + 4 <= t.rows; row += 4) weigh_rows<F, 4, kAhead>(t, values, row, first, end, work);
    for (; row + 2 <= t.rows; row += 2) weigh_rows<F, 2, kAhead>(t, values, row, first, end, work);
    for (; row < t.rows; row++) weigh_rows<F, 1, kAhead>(t, values, row, first, end, work);
}

// The keys of the tile's head in the block that holds `key`; its values lie behind them.
inline const uint8_t* head_of(const AttentionTile& t, int64_t key) {
    return t.cache->data + t.blocks[key / t.cache->block_size] * t.cache->block_bytes() +
           2 * t.head * t.cache->half_bytes();
}

template <class F, bool kAhead>
void attend_with(const AttentionTile& t) {
    const KvCache& cache = *t.cache;
    const int chunk = cache.block_size % kChunk ? kKvTile : kChunk;
    const int64_t half = cache.half_bytes(), token_bytes = (F::kPlain ? 4 : 2) * cache.padded_dim();
    Work work;
    for (int64_t key = t.key_first / chunk * chunk; key < t.key_end; key += chunk) {
        const int64_t offset = key % cache.block_size;
        const uint8_t* keys = head_of(t, key) + offset * token_bytes;
        const uint8_t* next = key + chunk < t.key_end ? head_of(t, key + chunk) : t.next;
        if (next && next != t.next) next += (key + chunk) % cache.block_size * token_bytes;
        work.ahead = next ? next - keys : 0;
        const int first = (int)(t.key_first > key ? t.key_first - key : 0);
        const int end = (int)(t.key_end < key + chunk ? t.key_end - key : chunk);
        score_all<F, kAhead>(t, keys, end, work);
        for (int row = 0; row < t.rows; row++) soften<F::kDot>(t, row, key, end, work);
        weigh_all<F, kAhead>(t, keys + half, first, end, work);
    }
}

template <class F>
void attend_as(const AttentionTile& t) {
    // More rows than registers hold read everything several times: then the arithmetic is what takes the time.
    if (t.rows <= kAheadRows) attend_with<F, true>(t);
    else attend_with<F, false>(t);
}

}  // namespace
