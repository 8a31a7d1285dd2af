// What one instruction set offers beside matrix products: operations on rows, attention over a paged KV cache.
//
// Filled once per variant (variants/*.cpp), as the table of kernels.h. No result depends on the number of threads, on
// the other rows of a step, or on how a prompt was cut into steps: every sum has one order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rt {

enum Nonlinearity : int32_t { kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kSigmoid, kTanh, kQuickGelu, kSwigluOai };

constexpr int kKvTile = 32;         // tokens whose keys lie side by side
constexpr int kKvSplit = 512;       // keys that are summed up by themselves, counted from position 0
constexpr int kMaxTileRows = 64;    // query rows of one attention tile
constexpr int kWeightGroup = 512;   // columns whose weights are summed up together
constexpr int kNumNear = 5;
constexpr float kNear[kNumNear] = {3, 6, 9, 12, 16};

// One layer's cache. A block holds all KV heads of block_size tokens, one after the other: K, then V; elements are
// padded with zeros to a multiple of 16 per head:
//   K [token / 32][element / 2][32][2]     V [token / 2][element][2]
// so that a vector holds neighbouring elements of the keys of neighbouring tokens, or the values of two tokens for
// neighbouring elements: the operands of a dot product of pairs. For q8_0 (8-bit integers, a scale in f16 per 32
// elements) these are the integers, and behind them come
//   scales of K [token / 32][element / 32][32]     scales of V [element / 32][token]
struct KvCache {
    uint8_t* data;
    int32_t format;
    int32_t num_blocks, block_size, num_heads, head_dim;

    int64_t padded_dim() const { return (head_dim + 15) / 16 * 16; }
    int64_t num_scales() const { return (head_dim + 31) / 32; }
    int64_t half_bytes() const {  // K, or V, of one head in one block
        const int64_t elements = block_size * padded_dim();
        if (format == 0) return 4 * elements;
        if (format == 8) return (elements + 2 * block_size * num_scales() + 63) / 64 * 64;
        return 2 * elements;
    }
    int64_t block_bytes() const { return 2 * num_heads * half_bytes(); }
};

// Rows that attend to one KV head of one sequence, key by key of up to kKvSplit keys.
struct AttentionTile {
    const KvCache* cache;
    const int32_t* blocks;       // of the sequence
    int32_t head;                // KV head
    int32_t rows;                // at most kMaxTileRows
    int64_t key_first, key_end;  // within one split
    const int64_t* first;        // [rows] first and last key that each row sees, the last exclusive
    const int64_t* end;
    const void* q;               // from pack_queries
    float scale, softcap;
    const float* slopes;         // [rows] of ALiBi, or null
    const int64_t* positions;    // [rows]
    const uint8_t* next;         // keys that the thread reads after these, or null: they are fetched ahead
    float* largest;              // [rows] running maximum of scores, in units of ln 2
    float* total;                // [rows] sum of weights
    float* sum;                  // [rows][padded_dim] sum of weighted values
};

struct RowKernels {
    const char* name;
    int32_t lanes;
    bool dots_bf16;              // queries and probabilities are rounded to bf16 where the cache is bf16

    void (*rms_norm)(const float* x, const float* weight, int64_t runs, int64_t d, float eps, float offset, float* y);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t rows, int64_t k, float eps,
                       float* y);
    // `table` has per row cos[f], sin[f] (halves) or cos[2f], sin[2f] with alternating sign (pairs).
    void (*rope)(const float* x, const float* table, int64_t rows, int64_t heads, int64_t head_dim, int64_t f,
                 bool interleaved, float* y);
    void (*activation)(int32_t kind, const float* x, int64_t n, float* y);
    void (*glu)(int32_t kind, float alpha, float limit, const float* gate, const float* up, int64_t n, float* y);
    void (*add)(const float* a, const float* b, int64_t n, float* y);
    void (*mul)(const float* a, const float* b, float scale, int64_t n, float* y);  // b may be null
    void (*multiply_add)(const float* x, float factor, int64_t n, float* y);        // y += x * factor
    void (*softcap)(const float* x, float cap, int64_t n, float* y);
    void (*softmax)(const float* x, int64_t n, float scale, bool log, float* y);
    int64_t (*largest)(const float* x, int64_t n);       // index of the first largest; NaN counts as -inf
    // e[i] = exp((x[i] - top) / temperature) in f64; returns their sum.
    double (*weights)(const float* x, int64_t n, float top, double temperature, double* e);
    // sums[g] = the sum of these weights, each to about 1e-7, over the columns g * kWeightGroup and on; returns the sum
    // of all. near[c], unless null, is the sum over the columns whose (top - x) / temperature is at most kNear[c].
    double (*weight_sums)(const float* x, int64_t n, float top, double temperature, double* sums, double* near);
    void (*maxima)(const float* x, int64_t n, int64_t group, float* y);  // of each group of columns
    int64_t (*collect)(const float* x, int64_t n, float least, int32_t* ids);  // x >= least (or NaN, where that is -inf)
    bool (*has_nan)(const float* x, int64_t n);
    void (*from_f32)(int32_t format, const float* x, int64_t n, void* y);  // f32, f16, bf16
    void (*to_f32)(int32_t format, const void* x, int64_t n, float* y);

    // --- attention
    size_t (*query_bytes)(const KvCache& cache, int32_t rows);
    void (*pack_queries)(const KvCache& cache, const float* const* rows, int32_t count, void* q);
    void (*attend)(const AttentionTile& tile);
    // Add the sums of another split to those so far: `largest`, `total` and `sum` as in AttentionTile.
    void (*merge)(int32_t rows, int64_t width, const float* largest, const float* total, const float* sum,
                  float* all_largest, float* all_total, float* all_sum);
    // y = sum / total; a sink takes its share of the total. Zeros where nothing was seen.
    void (*finish)(int32_t head_dim, float largest, float total, const float* sum, const float* sink, float* y);
    // One token's keys or values of one head, [head_dim] f32, into or out of the cache.
    void (*kv_store)(const KvCache& cache, bool value, int64_t slot, int32_t head, const float* x);
    void (*kv_load)(const KvCache& cache, bool value, int64_t slot, int32_t head, float* x);
};

// One per set of lanes, where the compiler and the architecture can build it.
const RowKernels* rows_base();
const RowKernels* rows_avx2();
const RowKernels* rows_avx512();
const RowKernels* rows_avx512bf16();
const RowKernels* rows_neon();

}  // namespace rt
