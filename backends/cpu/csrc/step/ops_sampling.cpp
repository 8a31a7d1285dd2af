// From logits to tokens.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "program.h"
#include "sampling.h"

namespace rt {

// in: x   size: k   out: indices
int32_t run_argmax(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float* x = run.at<float>(op->in[0]);
    int32_t* y = run.at<int32_t>(op->out[0]);
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) y[r] = (int32_t)run.rows().largest(x + r * k, k);
    });
    return 1;
}

// in: x   size: columns, k   out: values, indices
int32_t run_topk(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), n = op->size[0], k = op->size[1];
    const float* x = run.at<float>(op->in[0]);
    float* values = run.at<float>(op->out[0]);
    int32_t* indices = run.at<int32_t>(op->out[1]);
    run.device.reserve_threads(Chooser::bytes(n));
    run.device.pool.run(rows, [&](int thread, int64_t first, int64_t last) {
        Chooser chooser(run.rows(), n, run.device.thread_memory[thread].data());
        for (int64_t r = first; r < last; r++) chooser.topk(x + r * n, k, values + r * k, indices + r * k);
    });
    return 1;
}

// in: logits, token_ids, output_counts, repetition, presence, frequency, bias_ids or none, bias_values or none
// size: vocabulary, dim of H (or -1), H, dim of X (or -1), X
int32_t run_penalize(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), vocab = op->size[0];
    const int64_t history = op->size[1] < 0 ? op->size[2] : run.dim(op->size[1]);
    const int64_t biases = op->size[3] < 0 ? op->size[4] : run.dim(op->size[3]);
    const float* logits = run.at<float>(op->in[0]);
    const int32_t *ids = run.at<int32_t>(op->in[1]), *counts = run.at<int32_t>(op->in[2]);
    const float *repetition = run.at<float>(op->in[3]), *presence = run.at<float>(op->in[4]);
    const float *frequency = run.at<float>(op->in[5]), *bias_values = run.at<float>(op->in[7]);
    const int32_t* bias_ids = run.at<int32_t>(op->in[6]);
    float* y = run.at<float>(op->out[0]);
    if (int32_t failed = run.check("token_ids", ids, rows * history, vocab, true)) return failed;
    if (bias_ids)
        if (int32_t failed = run.check("bias_ids", bias_ids, rows * biases, vocab, true)) return failed;
    run.share(rows, rows * vocab, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            float* row = y + r * vocab;
            std::memcpy(row, logits + r * vocab, 4 * (size_t)vocab);
            for (int64_t i = r * history; i < (r + 1) * history; i++) {
                if (ids[i] < 0) continue;
                const double x = row[ids[i]], seen = x > 0 ? x / repetition[r] : x * repetition[r];
                row[ids[i]] = (float)(seen - (counts[i] > 0 ? (double)presence[r] : 0.0) -
                                      (double)frequency[r] * counts[i]);
            }
            for (int64_t i = r * biases; bias_ids && i < (r + 1) * biases; i++)
                if (bias_ids[i] >= 0) row[bias_ids[i]] += bias_values[i];
        }
    });
    return 1;
}

// in: logits, temperature, top_k, top_p, min_p, typical_p, uniform   size: vocabulary   out: token_ids
int32_t run_sample(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), vocab = op->size[0];
    const float *logits = run.at<float>(op->in[0]), *temperature = run.at<float>(op->in[1]);
    const int32_t* top_k = run.at<int32_t>(op->in[2]);
    const float *top_p = run.at<float>(op->in[3]), *min_p = run.at<float>(op->in[4]);
    const float *typical_p = run.at<float>(op->in[5]), *uniform = run.at<float>(op->in[6]);
    int32_t* y = run.at<int32_t>(op->out[0]);
    run.device.reserve_threads(Chooser::bytes(vocab));
    run.device.pool.run(rows, [&](int thread, int64_t first, int64_t last) {
        Chooser chooser(run.rows(), vocab, run.device.thread_memory[thread].data());
        for (int64_t r = first; r < last; r++)
            y[r] = chooser.sample(logits + r * vocab, {temperature[r], top_k[r], top_p[r], min_p[r], typical_p[r]},
                                  uniform[r]);
    });
    return 1;
}

}  // namespace rt
