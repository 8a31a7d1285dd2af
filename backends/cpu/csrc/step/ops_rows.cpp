// Operations whose rows are independent of each other.
#include <cmath>
#include <cstring>

#include "program.h"

namespace rt {

// in: token_ids, table in GGUF order   size: vocabulary, k, format, bytes of a row   number: scale
int32_t run_embed(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), vocab = op->size[0], k = op->size[1], row_bytes = op->size[3];
    const int32_t format = (int32_t)op->size[2];
    const int32_t* ids = run.at<int32_t>(op->in[0]);
    const uint8_t* table = run.at<uint8_t>(op->in[1]);
    float* y = run.at<float>(op->out[0]);
    if (int32_t failed = run.check("token_ids", ids, rows, vocab)) return failed;
    const float scale = (float)op->number[0];
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            decode_row(format, table + ids[r] * row_bytes, k, y + r * k);
            if (scale != 1.0f) run.rows().mul(y + r * k, nullptr, scale, k, y + r * k);
        }
    });
    return 1;
}

// in: x, weight   size: k, d   number: eps, weight_offset
int32_t run_rms_norm(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0], d = op->size[1];
    const float *x = run.at<float>(op->in[0]), *weight = run.at<float>(op->in[1]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        run.rows().rms_norm(x + first * k, weight, (last - first) * (k / d), d, (float)op->number[0],
                            (float)op->number[1], y + first * k);
    });
    return 1;
}

// in: x, weight, bias or none   size: k   number: eps
int32_t run_layer_norm(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float *x = run.at<float>(op->in[0]), *weight = run.at<float>(op->in[1]), *bias = run.at<float>(op->in[2]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        run.rows().layer_norm(x + first * k, weight, bias, last - first, k, (float)op->number[0], y + first * k);
    });
    return 1;
}

// Cosines and sines of a step's positions, made once for all layers.
// in: positions, inv_freq   size: f, interleaved   number: scale   out: [rows][2 f, or 4 f when interleaved]
int32_t run_rope_table(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), f = op->size[0];
    const bool interleaved = op->size[1] != 0;
    const int32_t* positions = run.at<int32_t>(op->in[0]);
    const float* inv_freq = run.at<float>(op->in[1]);
    float* table = run.at<float>(op->out[0]);
    for (int64_t r = 0; r < rows; r++)
        if (positions[r] < 0)
            return run.fail(kInvalidArgument, "positions[%lld] = %d; a position is 0 or more", (long long)r,
                            positions[r]);
    const int64_t width = interleaved ? 4 * f : 2 * f;
    run.share(rows, rows * f * 8, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            float* row = table + r * width;
            for (int64_t i = 0; i < f; i++) {
                const double angle = (double)positions[r] * (double)inv_freq[i];
                const float c = (float)(std::cos(angle) * op->number[0]), s = (float)(std::sin(angle) * op->number[0]);
                if (interleaved) {
                    row[2 * i] = row[2 * i + 1] = c;
                    row[2 * f + 2 * i] = -s, row[2 * f + 2 * i + 1] = s;
                } else {
                    row[i] = c, row[f + i] = s;
                }
            }
        }
    });
    return 1;
}

// in: x, table   size: heads, head_dim, f, interleaved
int32_t run_rope(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), heads = op->size[0], head_dim = op->size[1], f = op->size[2];
    const bool interleaved = op->size[3] != 0;
    const int64_t k = heads * head_dim, width = interleaved ? 4 * f : 2 * f;
    const float *x = run.at<float>(op->in[0]), *table = run.at<float>(op->in[1]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        run.rows().rope(x + first * k, table + first * width, last - first, heads, head_dim, f, interleaved,
                        y + first * k);
    });
    return 1;
}

// in: gate, up   size: k, kind   number: alpha, limit
int32_t run_glu(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float *gate = run.at<float>(op->in[0]), *up = run.at<float>(op->in[1]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, 2 * rows * k, [&](int64_t first, int64_t last) {
        run.rows().glu((int32_t)op->size[1], (float)op->number[0], (float)op->number[1], gate + first * k,
                       up + first * k, (last - first) * k, y + first * k);
    });
    return 1;
}

// in: x   size: k, kind
int32_t run_activation(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float* x = run.at<float>(op->in[0]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, 2 * rows * k, [&](int64_t first, int64_t last) {
        run.rows().activation((int32_t)op->size[1], x + first * k, (last - first) * k, y + first * k);
    });
    return 1;
}

// in: a, b   size: k
int32_t run_add(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float *a = run.at<float>(op->in[0]), *b = run.at<float>(op->in[1]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        run.rows().add(a + first * k, b + first * k, (last - first) * k, y + first * k);
    });
    return 1;
}

// in: a, b or none   size: k   number: scale
int32_t run_mul(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float *a = run.at<float>(op->in[0]), *b = run.at<float>(op->in[1]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        run.rows().mul(a + first * k, b ? b + first * k : nullptr, (float)op->number[0], (last - first) * k,
                       y + first * k);
    });
    return 1;
}

// in: x   size: k   number: cap
int32_t run_softcap(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float* x = run.at<float>(op->in[0]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, 2 * rows * k, [&](int64_t first, int64_t last) {
        run.rows().softcap(x + first * k, (float)op->number[0], (last - first) * k, y + first * k);
    });
    return 1;
}

// in: x, rows   size: k, dim of x's rows (or -1), x's rows where that is -1
int32_t run_gather_rows(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const int64_t given = op->size[1] < 0 ? op->size[2] : run.dim(op->size[1]);
    const float* x = run.at<float>(op->in[0]);
    const int32_t* index = run.at<int32_t>(op->in[1]);
    float* y = run.at<float>(op->out[0]);
    if (int32_t failed = run.check("rows", index, rows, given)) return failed;
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) std::memcpy(y + r * k, x + index[r] * k, 4 * (size_t)k);
    });
    return 1;
}

// Some columns of x become some columns of y: a part of concat and split.
// in: x   size: columns, width of x, first column in x, width of y, first column in y
int32_t run_copy_columns(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), n = op->size[0];
    const float* x = run.at<float>(op->in[0]) + op->size[2];
    float* y = run.at<float>(op->out[0]) + op->size[4];
    run.share(rows, rows * n, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++)
            std::memcpy(y + r * op->size[3], x + r * op->size[1], 4 * (size_t)n);
    });
    return 1;
}

// in: x   size: k, log   number: scale
int32_t run_softmax(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const float* x = run.at<float>(op->in[0]);
    float* y = run.at<float>(op->out[0]);
    run.share(rows, 4 * rows * k, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++)
            run.rows().softmax(x + r * k, k, (float)op->number[0], op->size[1] != 0, y + r * k);
    });
    return 1;
}

// in: x in f32   size: k, format of y (f32, f16, bf16)
int32_t run_convert(Run& run, const Operation* op) {
    const int64_t rows = run.count(*op), k = op->size[0];
    const int32_t format = (int32_t)op->size[1];
    const float* x = run.at<float>(op->in[0]);
    uint8_t* y = run.at<uint8_t>(op->out[0]);
    const int64_t bytes = format == F32 ? 4 : 2;
    run.share(rows, rows * k, [&](int64_t first, int64_t last) {
        run.rows().from_f32(format, x + first * k, (last - first) * k, y + first * k * bytes);
    });
    return 1;
}

}  // namespace rt
