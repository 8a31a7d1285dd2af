// Softmax attention over a paged KV cache for one instruction set, and the cache's layout; after rows.inl.
//
// A tile is up to kMaxTileRows query rows (heads of a group times tokens) of one KV head: keys and values are read once
// for all of them. Scores of up to 64 keys are made, softened and summed up before the next 64; what a row computes
// does not depend on the other rows of its tile: keys that it does not see weigh exactly zero.
#pragma once

#include <type_traits>

#include "rows.h"

namespace {

using rt::AttentionTile;
using rt::KvCache;
using rt::kKvTile;

constexpr int kChunk = 64;                            // keys at a time
constexpr int kScoreRows = kLanes == 16 ? 12 : 4;     // rows x two vectors of keys fill the registers
constexpr int kValueRows = kLanes == 16 ? 6 : 4;
constexpr int kValueVectors = kLanes == 16 ? 4 : 2;
constexpr int kAheadRows = 8;                         // more rows than these read everything several times
constexpr int64_t kScale = 32;                        // elements of a token that share a scale
constexpr int64_t kExpandedDim = 256;                 // largest head whose chunks may be expanded
constexpr float kLog2E = 1.44269504088896341f;

// How elements of a cache are read: a vector of neighbours, which are pairs of elements of one token (keys), or pairs of
// tokens for one element (values). A sum of products over pairs therefore has two parts, one for either place in a pair.
struct F32Elements {
    static constexpr int kBytes = 4;
    static constexpr bool kScaled = false;
    static vf read(const uint8_t* p) { return load((const float*)p); }
};
struct F16Elements {
    static constexpr int kBytes = 2;
    static constexpr bool kScaled = false;
    static vf read(const uint8_t* p) { return from_f16((const uint16_t*)p); }
};
struct Bf16Elements {
    static constexpr int kBytes = 2;
    static constexpr bool kScaled = false;
    static vf read(const uint8_t* p) { return from_bf16((const uint16_t*)p); }
};
// The integers; kScale of them of one token share a scale.
struct Q8Elements {
    static constexpr int kBytes = 1;
    static constexpr bool kScaled = true;
    static vf read(const uint8_t* p) { return from_int8((const int8_t*)p); }
};
// What was expanded from them.
struct ExpandedQ8 : F32Elements {
    static constexpr bool kScaled = true;
};

// One tile's working memory, on the stack of the thread that computes it.
struct Work {
    alignas(64) float scores[rt::kMaxTileRows][kChunk];     // then the weights, where these are f32
    alignas(64) uint16_t halves[rt::kMaxTileRows][kChunk];  // the weights in bf16
    alignas(64) float scaled[kValueRows][kChunk];           // weights times the scales of values
    alignas(64) float expanded[kChunk * kExpandedDim];      // a chunk of keys or values in f32, for many rows
    // Bytes from what is read to what will be read next. The hardware fetches ahead within a run of bytes, but a head's
    // keys and values are too short a run for it to get up to speed.
    int64_t ahead;
};

// Keys that are dealt with together.
struct Chunk {
    const uint8_t *keys, *values;
    const uint16_t *key_scales, *value_scales;  // of the chunk's first key in the layout of KvCache, where there are any
    int64_t key;                                // number of the first
    int first, end;                             // which of them are wanted
};

typedef int64_t vpair __attribute__((vector_size(4 * RT_LANES)));

// Two floats, again and again.
inline vf splat_pair(const float* p) { return (vf)(vpair{} + load_as<int64_t>(p)); }
// The two parts of 2 kLanes / 2 sums in two vectors, added.
inline vf join_parts(vf a, vf b) {
    const vi even = lane_numbers() * 2;
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + 1);
}

// rows x NV vectors of half as many keys: scores[i][key] = q[i] . k[key], pair by pair; where there are scales, those of
// their elements are summed up first.
template <class F, int M, int NV, bool kAhead>
void score(const AttentionTile& t, const Chunk& c, int row, int token, Work& work) {
    const int64_t pairs = t.cache->padded_dim() / 2, tile = token / kKvTile, lane = token % kKvTile;
    const uint8_t* k = c.keys + (tile * pairs * kKvTile + lane) * 2 * F::kBytes;
    const float* q = (const float*)t.q + 2 * row;
    const int64_t step = F::kScaled ? kScale / 2 : pairs;
    for (int64_t from = 0; from < pairs; from += step) {
        const int64_t count = pairs - from < step ? pairs - from : step;
        vf s[NV][M];
        for (int v = 0; v < NV; v++)
            for (int i = 0; i < M; i++) s[v][i] = vf{};
        for (int64_t j = 0; j < count; j++, k += 2 * kKvTile * F::kBytes, q += 2 * t.rows) {
            vf x[NV];
            for (int v = 0; v < NV; v++) {
                const int at = v * kLanes * F::kBytes;
                x[v] = F::read(k + at);
                if (kAhead && at % 64 == 0) __builtin_prefetch(k + at + work.ahead, 0, 2);
            }
            for (int i = 0; i < M; i++) {
                const vf pair = splat_pair(q + 2 * i);
                for (int v = 0; v < NV; v++) s[v][i] = fma(x[v], pair, s[v][i]);
            }
        }
        for (int v = 0; v < NV; v += 2) {
            vf scale = {};
            if constexpr (F::kScaled)
                scale = from_f16(c.key_scales + tile * t.cache->num_scales() * kKvTile + from / step * kKvTile + lane +
                                 v * (kLanes / 2));
            for (int i = 0; i < M; i++) {
                float* to = &work.scores[row + i][token + v * (kLanes / 2)];
                vf sum = join_parts(s[v][i], s[v + 1][i]);
                if constexpr (F::kScaled) sum = fma(sum, scale, from ? load(to) : vf{});
                store(to, sum);
            }
        }
    }
}

template <class F, int M, bool kAhead>
void score_rows(const AttentionTile& t, const Chunk& c, int row, Work& work) {
    constexpr int NV = kLanes == 16 && M <= 4 ? 4 : 2;  // four: keys are then read byte after byte
    for (int token = 0; token < c.end; token += NV * kLanes / 2) score<F, M, NV, kAhead>(t, c, row, token, work);
}

template <class F, bool kAhead>
void score_all(const AttentionTile& t, const Chunk& c, Work& work) {
    int row = 0;
    for (; row + kScoreRows <= t.rows; row += kScoreRows) score_rows<F, kScoreRows, kAhead>(t, c, row, work);
    if constexpr (kScoreRows > 8)
        for (; row + 8 <= t.rows; row += 8) score_rows<F, 8, kAhead>(t, c, row, work);
    for (; row + 4 <= t.rows; row += 4) score_rows<F, 4, kAhead>(t, c, row, work);
    for (; row + 2 <= t.rows; row += 2) score_rows<F, 2, kAhead>(t, c, row, work);
    for (; row < t.rows; row++) score_rows<F, 1, kAhead>(t, c, row, work);
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

// sum[i] += weights of the chunk's tokens times their values, for NV vectors of half as many elements from d on. A pair
// that the range of tokens cuts is read whole, and what must not be read becomes zero.
template <class F, int M, int NV, bool kAhead>
void weigh(const AttentionTile& t, const Chunk& c, const float (*weights)[kChunk], int row, int64_t d, const Work& work) {
    const int64_t dim = t.cache->padded_dim();
    vf a[M][NV];
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v++) a[i][v] = vf{};
    const auto add = [&](int j, auto keep) __attribute__((always_inline)) {
        const uint8_t* p = c.values + (j * dim + d) * 2 * F::kBytes;
        vf x[NV];
        for (int v = 0; v < NV; v++) {
            const int at = v * kLanes * F::kBytes;
            x[v] = keep(F::read(p + at));
            if (kAhead && at % 64 == 0) __builtin_prefetch(p + at + work.ahead, 0, 2);
        }
        for (int i = 0; i < M; i++) {
            const vf pair = splat_pair(&weights[i][2 * j]);
            for (int v = 0; v < NV; v++) a[i][v] = fma(x[v], pair, a[i][v]);
        }
    };
    const auto keep_part = [](int part) {
        return [part](vf x) { return select((lane_numbers() & 1) == part, x, vf{}); };
    };
    int pair = c.first / 2;
    if (c.first & 1) add(pair++, keep_part(1));
    for (; pair < c.end / 2; pair++) add(pair, [](vf x) { return x; });
    if ((c.end & 1) && pair <= c.end / 2) add(c.end / 2, keep_part(0));
    for (int i = 0; i < M; i++)
        for (int v = 0; v < NV; v += 2) {
            float* sum = t.sum + (row + i) * dim + d + v * (kLanes / 2);
            store(sum, load(sum) + join_parts(a[i][v], a[i][v + 1]));
        }
}

// Weights times the scales of values; what lies in free slots may be anything, NaN too.
template <int M>
void scale_weights(const Chunk& c, const uint16_t* scales, int row, Work& work) {
    for (int j = 0; j < c.end; j += kLanes) {
        const vi number = lane_numbers() + j;
        const vf scale = select((number >= c.first) & (number < c.end), from_f16(scales + j), vf{});
        for (int i = 0; i < M; i++) store(&work.scaled[i][j], load(&work.scores[row + i][j]) * scale);
    }
}

template <class F, int M, bool kAhead>
void weigh_rows(const AttentionTile& t, const Chunk& c, int row, Work& work) {
    const int64_t dim = t.cache->padded_dim(), step = F::kScaled ? kScale : dim;
    const float (*weights)[kChunk] = F::kScaled ? work.scaled : work.scores + row;
    for (int64_t from = 0; from < dim; from += step) {
        if constexpr (F::kScaled) scale_weights<M>(c, c.value_scales + from / step * t.cache->block_size, row, work);
        const int64_t end = from + step < dim ? from + step : dim;
        int64_t d = from;
        for (; d + kValueVectors * kLanes / 2 <= end; d += kValueVectors * kLanes / 2)
            weigh<F, M, kValueVectors, kAhead>(t, c, weights, row, d, work);
        for (; d < end; d += kLanes) weigh<F, M, 2, kAhead>(t, c, weights, row, d, work);
    }
}

template <class F, bool kAhead>
void weigh_all(const AttentionTile& t, const Chunk& c, Work& work) {
    int row = 0;
    for (; row + kValueRows <= t.rows; row += kValueRows) weigh_rows<F, kValueRows, kAhead>(t, c, row, work);
    if constexpr (kValueRows > 4)
        for (; row + 4 <= t.rows; row += 4) weigh_rows<F, 4, kAhead>(t, c, row, work);
    for (; row + 2 <= t.rows; row += 2) weigh_rows<F, 2, kAhead>(t, c, row, work);
    for (; row < t.rows; row++) weigh_rows<F, 1, kAhead>(t, c, row, work);
}

// The keys of the tile's head in the block that holds `key`; its values lie behind them.
inline const uint8_t* head_of(const AttentionTile& t, int64_t key) {
    return t.cache->data + t.blocks[key / t.cache->block_size] * t.cache->block_bytes() +
           2 * t.head * t.cache->half_bytes();
}

// step(chunk, work) for every chunk of the tile's keys.
template <class Step>
void for_chunks(const AttentionTile& t, int element_bytes, const Step& step) {
    const KvCache& cache = *t.cache;
    const int length = cache.block_size % kChunk ? kKvTile : kChunk;
    const int64_t half = cache.half_bytes(), token_bytes = element_bytes * cache.padded_dim();
    Work work;
    for (int64_t key = t.key_first / length * length; key < t.key_end; key += length) {
        const uint8_t* head = head_of(t, key);
        const int64_t offset = key % cache.block_size;
        const uint16_t* scales = (const uint16_t*)(head + cache.block_size * token_bytes);
        Chunk c;
        c.keys = head + offset * token_bytes, c.values = c.keys + half;
        c.key_scales = scales + offset * cache.num_scales(), c.value_scales = scales + half / 2 + offset;
        c.key = key;
        c.first = (int)(t.key_first > key ? t.key_first - key : 0);
        c.end = (int)(t.key_end < key + length ? t.key_end - key : length);
        const uint8_t* next = key + length < t.key_end ? head_of(t, key + length) : t.next;
        if (next && next != t.next) next += (key + length) % cache.block_size * token_bytes;
        work.ahead = next ? next - c.keys : 0;
        step(c, work);
    }
}

template <class F>
const uint8_t* expand(const uint8_t* from, int64_t count, Work& work) {
    for (int64_t i = 0; i < count; i += kLanes) store(work.expanded + i, F::read(from + i * F::kBytes));
    return (const uint8_t*)work.expanded;
}

template <class F>
void attend_as(const AttentionTile& t) {
    using Expanded = std::conditional_t<F::kScaled, ExpandedQ8, F32Elements>;
    const int64_t dim = t.cache->padded_dim();
    const bool many = t.rows > kAheadRows, expands = many && F::kBytes < 4 && dim <= kExpandedDim;
    for_chunks(t, F::kBytes, [&](const Chunk& c, Work& work) {
        Chunk wide = c;
        if (expands) wide.keys = expand<F>(c.keys, (c.end + kKvTile - 1) / kKvTile * kKvTile * dim, work);
        if (expands) score_all<Expanded, false>(t, wide, work);
        else if (many) score_all<F, false>(t, c, work);
        else score_all<F, true>(t, c, work);
        for (int row = 0; row < t.rows; row++) soften<false>(t, row, c.key, c.end, work);
        if (expands) wide.values = expand<F>(c.values, (c.end + 1) / 2 * 2 * dim, work);
        if (expands) weigh_all<Expanded, false>(t, wide, work);
        else if (many) weigh_all<F, false>(t, c, work);
        else weigh_all<F, true>(t, c, work);
    });
}

}  // namespace
