// Matrix products with packed weights: activations are rounded and packed once for all that read them, and products
// that do not wait for each other share one loop.
#include <algorithm>

#include "program.h"

namespace rt {

namespace {

constexpr int64_t kMaxJoined = 8;
constexpr int64_t kSerialPrepare = 16384;  // elements

void prepare(Run& run, const Operation& op) {
    const Kernels& kernels = *run.device.kernels;
    const Weight& weight = *run.at<Weight>(op.in[1]);
    const int32_t kind = kernels.activation_kind(weight.format);
    const int64_t rows = run.count(op), k = weight.k, tiles = kernels.activation_tiles(kind, rows);
    const float* x = run.at<float>(op.in[0]);
    void* packed = run.at<void>(op.in[4]);
    if (rows * k < kSerialPrepare) {
        kernels.prepare(kind, x, k, nullptr, rows, k, packed, 0, tiles);
        return;
    }
    run.device.pool.run(tiles, [&](int, int64_t first, int64_t last) {
        kernels.prepare(kind, x, k, nullptr, rows, k, packed, first, last);
    });
}

}  // namespace

// in: x, Weight, bias or none, residual or none, prepared activations
// size: whether to prepare them (or an earlier product did), whether the next operation joins this one's loop
int32_t run_linear(Run& run, const Operation* op) {
    const Kernels& kernels = *run.device.kernels;
    Linear calls[kMaxJoined];
    int64_t start[kMaxJoined + 1] = {0};
    int32_t n = 0;
    size_t scratch = 0;
    for (bool more = true; more && n < kMaxJoined; n++) {
        const Operation& o = op[n];
        if (o.size[0]) prepare(run, o);
        const Weight* weight = run.at<Weight>(o.in[1]);
        calls[n] = Linear{weight, run.at<void>(o.in[4]), run.count(o), run.at<float>(o.out[0]), weight->n,
                          run.at<float>(o.in[2]), run.at<float>(o.in[3]), nullptr, nullptr, false};
        start[n + 1] = start[n] + kernels.linear_units(calls[n]);
        scratch = std::max(scratch, kernels.linear_scratch(calls[n]));
        more = o.size[1] != 0;
    }
    run.device.reserve_kernels(scratch);
    run.device.pool.run(start[n], [&](int thread, int64_t first, int64_t last) {
        for (int32_t i = 0; i < n; i++) {
            const int64_t from = std::max(first, start[i]), to = std::min(last, start[i + 1]);
            if (from < to) kernels.linear(calls[i], from - start[i], to - start[i], run.device.scratch[thread]);
        }
    });
    return n;
}

}  // namespace rt
