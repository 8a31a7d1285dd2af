// Operations on rows for one instruction set; included by variants/*.cpp after the file of its lanes.
#pragma once

#include "lanes/math.h"
#include "rows.h"

namespace {

using rt::Nonlinearity;

// Sum over i of f(i-th vector, ...) with four running sums, whatever n is.
template <class F>
inline float sum_over(int64_t n, const F& f) {
    vf s[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes)
        for (int j = 0; j < 4; j++) s[j] = f(s[j], i + j * kLanes, (int64_t)kLanes);
    for (int j = 0; i < n; i += kLanes, j++) s[j] = f(s[j], i, n - i);
    return sum_lanes((s[0] + s[1]) + (s[2] + s[3]));
}

// y[i] = f(x) for every element.
template <class F>
inline void map(const float* x, int64_t n, float* y, const F& f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(x + i)));
    if (i < n) store_part(y + i, f(load_part(x + i, (int)(n - i))), (int)(n - i));
}
template <class F>
inline void map(const float* a, const float* b, int64_t n, float* y, const F& f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(a + i), load(b + i)));
    if (i < n) {
        const int m = (int)(n - i);
        store_part(y + i, f(load_part(a + i, m), load_part(b + i, m)), m);
    }
}

void rms_norm(const float* x, const float* weight, int64_t runs, int64_t d, float eps, float offset, float* y) {
    for (int64_t r = 0; r < runs; r++, x += d, y += d) {
        const float squares = sum_over(d, [&](vf s, int64_t i, int64_t n) {
            const vf v = load_upto(x + i, n);
            return fma(v, v, s);
        });
        const vf factor = splat(1.0f / std::sqrt(squares / (float)d + eps));
        map(x, weight, d, y, [&](vf v, vf w) { return v * factor * (w + offset); });
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t rows, int64_t k, float eps, float* y) {
    for (int64_t r = 0; r < rows; r++, x += k, y += k) {
        const float mean =
            sum_over(k, [&](vf s, int64_t i, int64_t n) { return s + load_upto(x + i, n); }) / (float)k;
        const float squares = sum_over(k, [&](vf s, int64_t i, int64_t n) {
            const vf v = load_upto(x + i, n, mean) - mean;
            return fma(v, v, s);
        });
        const vf factor = splat(1.0f / std::sqrt(squares / (float)k + eps));
        map(x, weight, k, y, [&](vf v, vf w) { return (v - mean) * factor * w; });
        if (bias) map(y, bias, k, y, [](vf v, vf b) { return v + b; });
    }
}

void rope_halves(const float* x, const float* table, int64_t f, float* y) {
    for (int64_t i = 0; i < f; i += kLanes) {
        const int64_t n = f - i;
        const vf a = load_upto(x + i, n), b = load_upto(x + f + i, n);
        const vf c = load_upto(table + i, n), s = load_upto(table + f + i, n);
        store_upto(y + i, a * c - b * s, n);
        store_upto(y + f + i, fma(a, s, b * c), n);
    }
}

void rope_pairs(const float* x, const float* table, int64_t f, float* y) {
    vi partner = lane_numbers() ^ 1;
    for (int64_t i = 0; i < 2 * f; i += kLanes) {
        const int64_t n = 2 * f - i;
        const vf a = load_upto(x + i, n);
        const vf c = load_upto(table + i, n), s = load_upto(table + 2 * f + i, n);
        store_upto(y + i, fma(__builtin_shuffle(a, partner), s, a * c), n);
    }
}

void rope(const float* x, const float* table, int64_t rows, int64_t heads, int64_t head_dim, int64_t f,
          bool interleaved, float* y) {
    const int64_t width = interleaved ? 4 * f : 2 * f;
    for (int64_t r = 0; r < rows; r++, table += width)
        for (int64_t h = 0; h < heads; h++, x += head_dim, y += head_dim) {
            if (interleaved) rope_pairs(x, table, f, y);
            else rope_halves(x, table, f, y);
            if (y != x) std::memcpy(y + 2 * f, x + 2 * f, 4 * (size_t)(head_dim - 2 * f));
        }
}

inline vf gelu(vf x) { return 0.5f * x * (erf(x * 0.70710678118654752f) + 1.0f); }
inline vf gelu_tanh(vf x) {
    const vf inner = 0.79788456080286536f * fma(0.044715f * x * x, x, x);
    return 0.5f * x * (tanh(inner) + 1.0f);
}

template <class Run>
inline void with_activation(int32_t kind, const Run& run) {
    switch (kind) {
        case rt::kSilu: return run([](vf x) { return x * sigmoid(x); });
        case rt::kGelu: return run([](vf x) { return gelu(x); });
        case rt::kGeluTanh: return run([](vf x) { return gelu_tanh(x); });
        // larger gives its second argument where one is NaN
        case rt::kRelu: return run([](vf x) { return larger(vf{}, x); });
        case rt::kRelu2: return run([](vf x) { return larger(vf{}, x) * larger(vf{}, x); });
        case rt::kSigmoid: return run([](vf x) { return sigmoid(x); });
        case rt::kTanh: return run([](vf x) { return tanh(x); });
        default: return run([](vf x) { return x * sigmoid(1.702f * x); });
    }
}

void activation(int32_t kind, const float* x, int64_t n, float* y) {
    with_activation(kind, [&](auto f) { map(x, n, y, f); });
}

void glu(int32_t kind, float alpha, float limit, const float* gate, const float* up, int64_t n, float* y) {
    if (kind == rt::kSwigluOai) {
        const vf most = splat(limit);
        map(gate, up, n, y, [&](vf g, vf u) {
            g = g > most ? most : g;
            u = larger(-most, u > most ? most : u);
            return g * sigmoid(alpha * g) * (u + 1.0f);
        });
        return;
    }
    with_activation(kind, [&](auto f) { map(gate, up, n, y, [&](vf g, vf u) { return f(g) * u; }); });
}

void add(const float* a, const float* b, int64_t n, float* y) {
    map(a, b, n, y, [](vf u, vf v) { return u + v; });
}

void mul(const float* a, const float* b, float scale, int64_t n, float* y) {
    if (b) map(a, b, n, y, [&](vf u, vf v) { return u * v * scale; });
    else map(a, n, y, [&](vf u) { return u * scale; });
}

void multiply_add(const float* x, float factor, int64_t n, float* y) {
    map(x, y, n, y, [&](vf u, vf v) { return fma(u, splat(factor), v); });
}

void softcap(const float* x, float cap, int64_t n, float* y) {
    map(x, n, y, [&](vf v) { return cap * tanh(v / cap); });
}

float largest_value(const float* x, int64_t n) {
    vf m = splat(-kInf);
    for (int64_t i = 0; i < n; i += kLanes) {
        const vf v = load_upto(x + i, n - i, -kInf);
        m = select(v > m, v, m);  // false for NaN
    }
    return max_lanes(m);
}

void softmax(const float* x, int64_t n, float scale, bool log, float* y) {
    map(x, n, y, [&](vf v) { return v * scale; });
    float top = largest_value(y, n);
    if (top == -kInf) top = 0;
    map(y, n, y, [&](vf v) { return v - top; });
    const auto exponential = [&](int64_t i, int64_t rest) { return exp(load_upto(y + i, rest, -kInf)); };
    const float sum = sum_over(n, [&](vf s, int64_t i, int64_t rest) { return s + exponential(i, rest); });
    const float total = sum == 0 ? 1.0f : sum;
    if (log) {
        const vf shift = splat(std::log(total));
        map(y, n, y, [&](vf v) { return v - shift; });
    } else {
        map(y, n, y, [&](vf v) { return exp(v) / total; });
    }
}

int64_t largest(const float* x, int64_t n) {
    const float top = largest_value(x, n);
    for (int64_t i = 0; i < n; i += kLanes) {
        const vi found = load_upto(x + i, n - i, -kInf) == top;
        if (!any(found)) continue;
        for (int64_t j = i; j < n && j < i + kLanes; j++)
            if (x[j] == top) return j;
    }
    return 0;  // nothing but NaN: all count as -inf, and the first is the largest
}

void maxima(const float* x, int64_t n, int64_t group, float* y) {
    for (int64_t i = 0; i < n; i += group) *y++ = largest_value(x + i, n - i < group ? n - i : group);
}

int64_t collect(const float* x, int64_t n, float least, int32_t* ids) {
    int64_t count = 0;
    if (least == -kInf) {
        for (int64_t i = 0; i < n; i++) ids[count++] = (int32_t)i;
        return count;
    }
    for (int64_t i = 0; i < n; i += kLanes) {
        const vi found = load_upto(x + i, n - i, -kInf) >= least;
        if (!any(found)) continue;
        const int end = n - i < kLanes ? (int)(n - i) : kLanes;
        for (int j = 0; j < end; j++) {  // without a branch on what cannot be foreseen
            ids[count] = (int32_t)(i + j);
            count -= found[j];
        }
    }
    return count;
}

bool has_nan(const float* x, int64_t n) {
    vi found = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        const vf v = load_upto(x + i, n - i);
        found |= v != v;
    }
    return any(found);
}

void from_f32(int32_t format, const float* x, int64_t n, void* y) {
    if (format == 0) {
        std::memcpy(y, x, 4 * (size_t)n);
        return;
    }
    uint16_t* out = (uint16_t*)y;
    for (int64_t i = 0; i < n; i += kLanes) {
        uint16_t part[kLanes];
        const vf v = load_upto(x + i, n - i);
        if (format == 1) to_f16(v, part);
        else to_bf16(v, part);
        std::memcpy(out + i, part, 2 * (size_t)(n - i < kLanes ? n - i : kLanes));
    }
}

void to_f32(int32_t format, const void* x, int64_t n, float* y) {
    if (format == 0) {
        std::memcpy(y, x, 4 * (size_t)n);
        return;
    }
    const uint16_t* in = (const uint16_t*)x;
    for (int64_t i = 0; i < n; i += kLanes) {
        uint16_t part[kLanes] = {};
        std::memcpy(part, in + i, 2 * (size_t)(n - i < kLanes ? n - i : kLanes));
        store_upto(y + i, format == 1 ? from_f16(part) : from_bf16(part), n - i);
    }
}

typedef float vhalf __attribute__((vector_size(2 * RT_LANES)));
typedef double vd __attribute__((vector_size(4 * RT_LANES)));
typedef int64_t vl __attribute__((vector_size(4 * RT_LANES)));

// e^x for x <= 0 in f64, relative error below 2e-15; what is below e^-700 becomes 0.
inline vd exp_f64(vd x) {
    const vd low = vd{} - 700.0;
    const vd t = x > low ? x : low;
    const vd magic = vd{} + 6755399441055744.0;  // 1.5 * 2^52
    const vd shifted = t * 1.4426950408889634 + magic, n = shifted - magic;
    vd r = t - n * 6.93147180369123816490e-01;
    r = r - n * 1.90821492927058770002e-10;
    static const double c[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                               1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5,         1.0};
    vd p = vd{} + 1.0 / 6227020800.0;
    for (double a : c) p = p * r + a;
    p = p * r + 1.0;
    const vl power = ((vl)shifted - (vl)magic + 1023) << 52;
    return x > low ? p * (vd)power : vd{};
}

double weights(const float* x, int64_t n, float top, double temperature, double* e) {
    constexpr int L = kLanes / 2;
    const double scale = 1 / temperature;
    vd total = {};
    for (int64_t i = 0; i < n; i += L) {
        vhalf part = vhalf{} - kInf;
        const bool whole = i + L <= n;
        if (whole) part = load_as<vhalf>(x + i);
        else std::memcpy(&part, x + i, 4 * (size_t)(n - i));
        const vd w = exp_f64((__builtin_convertvector(part, vd) - (double)top) * scale);
        total += w;
        std::memcpy(e + i, &w, whole ? sizeof(w) : 8 * (size_t)(n - i));
    }
    double sum = 0;
    for (int j = 0; j < L; j++) sum += total[j];
    return sum;
}

inline double sum_in_f64(vf x) {
    double sum = 0;
    for (int j = 0; j < kLanes; j++) sum += x[j];
    return sum;
}

template <bool kWithNear>
double sum_weights(const float* x, int64_t n, float top, double temperature, double* sums, double* near) {
    constexpr double kLog2E = 1.4426950408889634;
    // The scale is finite, so that the largest column's weight is 1 however cold it is.
    const float scale = (float)(temperature > 1e-30 ? kLog2E / temperature : 1e30);
    double total = 0;
    for (int64_t first = 0; first < n; first += rt::kWeightGroup) {
        const int64_t end = n - first < rt::kWeightGroup ? n : first + rt::kWeightGroup;
        vf even = {}, odd = {}, part[rt::kNumNear] = {};
        for (int64_t i = first; i < end; i += 2 * kLanes) {
            const vf s = (load_upto(x + i, end - i, -kInf) - top) * scale, w = exp2_negative(s);
            vf t = splat(-kInf);
            if (i + kLanes < end) t = (load_upto(x + i + kLanes, end - i - kLanes, -kInf) - top) * scale;
            const vf v = exp2_negative(t);
            even += w;
            odd += v;
            if constexpr (kWithNear)
                for (int c = 0; c < rt::kNumNear; c++) {
                    const float least = -rt::kNear[c] * (float)kLog2E;
                    part[c] += select(s >= least, w, vf{}) + select(t >= least, v, vf{});
                }
        }
        total += *sums++ = sum_in_f64(even + odd);
        if constexpr (kWithNear)
            for (int c = 0; c < rt::kNumNear; c++) near[c] += sum_in_f64(part[c]);
    }
    return total;
}

double weight_sums(const float* x, int64_t n, float top, double temperature, double* sums, double* near) {
    if (!near) return sum_weights<false>(x, n, top, temperature, sums, near);
    for (int c = 0; c < rt::kNumNear; c++) near[c] = 0;
    return sum_weights<true>(x, n, top, temperature, sums, near);
}

}  // namespace
