// Mixture of experts: the choice of experts, and the products of the chosen ones, grouped by expert.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "program.h"

namespace rt {

namespace {

// Scores of one row, as preferences; the weights follow from those that are chosen.
void route_row(const RowKernels& rows, const float* logits, const float* bias, int64_t experts, int64_t top_k,
               int64_t score, bool normalize, double scale, float* scores, double* exact, int32_t* ids,
               float* weights) {
    if (score == 0) {
        const double sum = rows.weights(logits, experts, logits[rows.largest(logits, experts)], 1.0, exact);
        for (int64_t e = 0; e < experts; e++) scores[e] = (float)(exact[e] / sum);
    } else if (score == 1) {
        rows.activation(kSigmoid, logits, experts, scores);
    } else {
        std::memcpy(scores, logits, 4 * (size_t)experts);
    }
    for (int64_t j = 0; j < top_k; j++) {
        int64_t best = -1;
        float best_value = 0;
        for (int64_t e = 0; e < experts; e++) {
            bool taken = false;
            for (int64_t i = 0; i < j; i++) taken |= ids[i] == e;
            const float value = scores[e] + (bias ? bias[e] : 0.0f);
            if (!taken && (best < 0 || value > best_value)) best = e, best_value = value;
        }
        ids[j] = (int32_t)best;
        weights[j] = scores[best];
    }
    double total = 0;
    if (score == 2) {
        const float top = *std::max_element(weights, weights + top_k);
        for (int64_t j = 0; j < top_k; j++) total += std::exp((double)weights[j] - top);
        for (int64_t j = 0; j < top_k; j++)
            weights[j] = (float)(std::exp((double)weights[j] - top) / total * scale);
        return;
    }
    for (int64_t j = 0; j < top_k; j++) total += weights[j];
    const double factor = normalize ? scale / (total + 1e-20) : scale;
    for (int64_t j = 0; j < top_k; j++) weights[j] = (float)(weights[j] * factor);
}

struct Expert {
    Linear call;
    int64_t unit, tile, tiles;
    void* prepared;
};

}  // namespace

// in: logits, bias or none   size: experts, top_k, score (0 softmax, 1 sigmoid, 2 softmax of the selected), normalize
// number: scale   out: expert_ids, expert_weights
int32_t run_moe_route(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), experts = op->size[0], top_k = op->size[1];
    const float *logits = run.at<float>(op->in[0]), *bias = run.at<float>(op->in[1]);
    int32_t* ids = run.at<int32_t>(op->out[0]);
    float* weights = run.at<float>(op->out[1]);
    run.device.reserve_threads((size_t)experts * 12 + 128);
    const auto body = [&](int thread, int64_t first, int64_t last) {
        Carver carver(run.device.thread_memory[thread].data());
        float* scores = carver.take<float>(experts);
        double* exact = carver.take<double>(experts);
        for (int64_t r = first; r < last; r++)
            route_row(run.rows(), logits + r * experts, bias, experts, top_k, op->size[2], op->size[3] != 0,
                      op->number[0], scores, exact, ids + r * top_k, weights + r * top_k);
    };
    if (rows * experts * top_k < 8192) body(0, 0, rows);
    else run.device.pool.run(rows, body);
    return 1;
}

// in: x, Weight[experts], bias [experts, n] or none, expert_ids, expert_weights or none, runs [rows, top_k, n] (where
//     weights combine them)
// size: experts, top_k, per_expert_input, whether the previous moe_linear has sorted and prepared the same x and ids
int32_t run_moe_linear(Run& run, const Operation* op) {
    const Kernels& kernels = *run.device.kernels;
    const int64_t rows = run.count(*op), experts = op->size[0], top_k = op->size[1], pairs = rows * top_k;
    const bool per_expert = op->size[2] != 0;
    const float* x = run.at<float>(op->in[0]);
    const Weight* weights = run.at<Weight>(op->in[1]);
    const float* bias = run.at<float>(op->in[2]);
    const int32_t* ids = run.at<int32_t>(op->in[3]);
    const float* shares = run.at<float>(op->in[4]);
    float* y = run.at<float>(op->out[0]);
    float* runs = shares ? run.at<float>(op->in[5]) : y;
    const int64_t n = weights[0].n, k = weights[0].k;
    const int32_t kind = kernels.activation_kind(weights[0].format);
    if (int32_t failed = run.check("expert_ids", ids, pairs, experts)) return failed;

    // Counting sort of (row, choice) by expert: `rows_of` is the row of y, `sources` the row of x.
    State& state = run.state;
    state.pairs.reserve((size_t)(2 * pairs + experts + 1) * 4);
    state.experts.reserve((size_t)experts * sizeof(Expert));
    int32_t* starts = state.pairs.as<int32_t>();
    int32_t *rows_of = starts + experts + 1, *sources = rows_of + pairs;
    std::memset(starts, 0, 4 * (size_t)(experts + 1));
    for (int64_t p = 0; p < pairs; p++) starts[ids[p] + 1]++;
    for (int64_t e = 0; e < experts; e++) starts[e + 1] += starts[e];
    for (int64_t p = 0; p < pairs; p++) {
        const int32_t at = starts[ids[p]]++;
        rows_of[at] = (int32_t)p;
        sources[at] = (int32_t)(per_expert ? p : p / top_k);
    }
    Expert* used = state.experts.as<Expert>();
    int64_t num_used = 0, units = 0, tiles = 0;
    size_t prepared = 0, scratch = 0;
    for (int64_t e = 0, first = 0; e < experts; first = starts[e++]) {
        const int64_t count = starts[e] - first;
        if (count == 0) continue;
        Expert& expert = used[num_used++];
        expert.call = Linear{weights + e, nullptr, count, runs, n, bias ? bias + e * n : nullptr, nullptr,
                             rows_of + first, nullptr, false};
        expert.unit = units, expert.tile = tiles;
        expert.tiles = kernels.activation_tiles(kind, count);
        expert.prepared = reinterpret_cast<void*>(prepared);
        units += kernels.linear_units(expert.call);
        tiles += expert.tiles;
        prepared += (kernels.activation_bytes(kind, count, k) + 63) / 64 * 64;
        scratch = std::max(scratch, kernels.linear_scratch(expert.call));
    }
    const bool reuse = op->size[3] != 0 && state.prepared_kind == kind;
    if (!reuse) state.prepared.reserve(prepared);
    state.prepared_kind = kind;
    run.device.reserve_kernels(scratch);
    for (int64_t i = 0; i < num_used; i++) {
        used[i].prepared = state.prepared.data() + reinterpret_cast<size_t>(used[i].prepared);
        used[i].call.activations = used[i].prepared;
    }
    if (!reuse) {
        run.share(tiles, pairs * k, [&](int64_t first, int64_t last) {
            for (int64_t i = 0; i < num_used; i++) {
                const Expert& e = used[i];
                const int64_t from = std::max(first, e.tile) - e.tile, to = std::min(last, e.tile + e.tiles) - e.tile;
                if (from < to)
                    kernels.prepare(kind, x, k, sources + (e.call.scatter - rows_of), e.call.rows, k, e.prepared, from, to);
            }
        });
    }
    run.device.pool.run(units, [&](int thread, int64_t first, int64_t last) {
        for (int64_t i = 0; i < num_used; i++) {
            const int64_t end = i + 1 < num_used ? used[i + 1].unit : units;
            const int64_t from = std::max(first, used[i].unit), to = std::min(last, end);
            if (from < to)
                kernels.linear(used[i].call, from - used[i].unit, to - used[i].unit, run.device.scratch[thread]);
        }
    });
    if (!shares) return 1;
    run.share(rows, pairs * n, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            run.rows().mul(runs + r * top_k * n, nullptr, shares[r * top_k], n, y + r * n);
            for (int64_t j = 1; j < top_k; j++)
                run.rows().multiply_add(runs + (r * top_k + j) * n, shares[r * top_k + j], n, y + r * n);
        }
    });
    return 1;
}

}  // namespace rt
