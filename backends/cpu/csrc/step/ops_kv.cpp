// The KV cache between steps: written, copied, exported, imported.
#include <cstring>

#include "program.h"

namespace rt {

// in: KvCache, k, v, slot_mapping
int32_t run_kv_write(Run& run, const Operation* op) {
    const KvCache& cache = *run.at<KvCache>(op->in[0]);
    const float *k = run.at<float>(op->in[1]), *v = run.at<float>(op->in[2]);
    const int32_t* slots = run.at<int32_t>(op->in[3]);
    const int64_t rows = run.count(*op), capacity = (int64_t)cache.num_blocks * cache.block_size;
    const int64_t heads = cache.num_heads, dim = cache.head_dim;
    if (int32_t failed = run.check("slot_mapping", slots, rows, capacity, true)) return failed;
    // Two rows of one slot would be written by two threads; a stamp per slot finds them in one pass.
    auto& stamps = run.state.slot_stamps;
    if (stamps.size() < (size_t)capacity) stamps.resize((size_t)capacity);
    const int32_t stamp = ++run.state.stamp;
    for (int64_t r = 0; r < rows; r++) {
        if (slots[r] < 0) continue;
        if (stamps[slots[r]] == stamp)
            return run.fail(kInvalidArgument, "slot_mapping holds slot %d twice; rows must have different slots",
                            slots[r]);
        stamps[slots[r]] = stamp;
    }
    run.share(rows, rows * heads * dim * 4, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            if (slots[r] < 0) continue;
            for (int64_t h = 0; h < heads; h++) {
                run.rows().kv_store(cache, false, slots[r], (int32_t)h, k + (r * heads + h) * dim);
                run.rows().kv_store(cache, true, slots[r], (int32_t)h, v + (r * heads + h) * dim);
            }
        }
    });
    return 1;
}

// in: KvCache, source_blocks, target_blocks
int32_t run_kv_copy_blocks(Run& run, const Operation* op) {
    const KvCache& cache = *run.at<KvCache>(op->in[0]);
    const int32_t *sources = run.at<int32_t>(op->in[1]), *targets = run.at<int32_t>(op->in[2]);
    const int64_t n = run.count(*op), bytes = cache.block_bytes();
    if (int32_t failed = run.check("source_blocks", sources, n, cache.num_blocks)) return failed;
    if (int32_t failed = run.check("target_blocks", targets, n, cache.num_blocks)) return failed;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            if (targets[i] == sources[j] || (i != j && targets[i] == targets[j]))
                return run.fail(kInvalidArgument, "block %d is a target twice, or also a source", targets[i]);
    for (int64_t i = 0; i < n; i++)
        std::memcpy(cache.data + targets[i] * bytes, cache.data + sources[i] * bytes, (size_t)bytes);
    return 1;
}

namespace {

// body(block in the cache, half, slot, head, element of data [2, n, C, H, D]) for everything in the given blocks.
template <class Body>
void for_heads(Run& run, const KvCache& cache, const int32_t* blocks, int64_t n, const Body& body) {
    const int64_t size = cache.block_size, heads = cache.num_heads, dim = cache.head_dim;
    run.share(2 * n * size, 2 * n * size * heads * dim, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            const int64_t half = i / (n * size), block = i / size % n, token = i % size;
            for (int64_t h = 0; h < heads; h++)
                body(half != 0, (int64_t)blocks[block] * size + token, (int32_t)h, (i * heads + h) * dim);
        }
    });
}

}  // namespace

// in: KvCache, block_ids   out: [2, n, C, H, D] f32
int32_t run_kv_export(Run& run, const Operation* op) {
    const KvCache& cache = *run.at<KvCache>(op->in[0]);
    const int32_t* blocks = run.at<int32_t>(op->in[1]);
    float* data = run.at<float>(op->out[0]);
    const int64_t n = run.count(*op);
    if (int32_t failed = run.check("block_ids", blocks, n, cache.num_blocks)) return failed;
    for_heads(run, cache, blocks, n, [&](bool value, int64_t slot, int32_t head, int64_t at) {
        run.rows().kv_load(cache, value, slot, head, data + at);
    });
    return 1;
}

// in: KvCache, data [2, n, C, H, D] f32, block_ids
int32_t run_kv_import(Run& run, const Operation* op) {
    const KvCache& cache = *run.at<KvCache>(op->in[0]);
    const float* data = run.at<float>(op->in[1]);
    const int32_t* blocks = run.at<int32_t>(op->in[2]);
    const int64_t n = run.count(*op);
    if (int32_t failed = run.check("block_ids", blocks, n, cache.num_blocks)) return failed;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++)
            if (blocks[i] == blocks[j])
                return run.fail(kInvalidArgument, "block_ids holds block %d twice", blocks[i]);
    for_heads(run, cache, blocks, n, [&](bool value, int64_t slot, int32_t head, int64_t at) {
        run.rows().kv_store(cache, value, slot, head, data + at);
    });
    return 1;
}

}  // namespace rt
