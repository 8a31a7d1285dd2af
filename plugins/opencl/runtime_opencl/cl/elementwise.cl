// One item per element. Comparisons are written so that NaN passes through.

float sigmoid_of(float x)
{
    const float e = exp(-fabs(x)); // never overflows, and keeps its precision where the result is tiny
    return x >= 0.0f ? 1.0f / (1.0f + e) : e / (1.0f + e);
}

#define KIND_SILU 0
#define KIND_GELU 1
#define KIND_GELU_TANH 2
#define KIND_RELU 3
#define KIND_RELU2 4
#define KIND_SIGMOID 5
#define KIND_TANH 6
#define KIND_QUICK_GELU 7
#define KIND_SWIGLU_OAI 8

float apply(int kind, float x)
{
    switch (kind) {
    case KIND_SILU:
        return x * sigmoid_of(x);
    case KIND_GELU:
        return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
    case KIND_GELU_TANH:
        return 0.5f * x * (1.0f + tanh_of(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case KIND_SIGMOID:
        return sigmoid_of(x);
    case KIND_TANH:
        return tanh_of(x);
    case KIND_QUICK_GELU:
        return x * sigmoid_of(1.702f * x);
    default: {
        const float positive = x < 0.0f ? 0.0f : x;
        return kind == KIND_RELU2 ? positive * positive : positive;
    }
    }
}

__kernel void activation(const __global float *x, __global float *y, ulong size, int kind)
{
    const size_t i = get_global_id(0);
    if (i < size)
        y[i] = apply(kind, x[i]);
}

__kernel void glu(const __global float *gate, const __global float *up, __global float *y, ulong size, int kind,
                  float alpha, float limit)
{
    const size_t i = get_global_id(0);
    if (i >= size)
        return;
    float g = gate[i], u = up[i];
    if (kind != KIND_SWIGLU_OAI) {
        y[i] = apply(kind, g) * u;
        return;
    }
    g = g > limit ? limit : g;
    u = u > limit ? limit : u < -limit ? -limit : u;
    y[i] = g * sigmoid_of(alpha * g) * (u + 1.0f);
}

__kernel void add(const __global float *a, const __global float *b, __global float *y, ulong size)
{
    const size_t i = get_global_id(0);
    if (i < size)
        y[i] = a[i] + b[i];
}

// The rounding error of a * b and the low part of the scale are carried along: about one rounding in all.
__kernel void mul(const __global float *a, const __global float *b, __global float *y, ulong size, int has_b,
                  float scale, float scale_low)
{
    const size_t i = get_global_id(0);
    if (i >= size)
        return;
    const float factor = has_b ? b[i] : 1.0f, product = a[i] * factor, plain = product * scale;
    if (isfinite(plain)) {
        const float error = fma(a[i], factor, -product);
        y[i] = fma(product, scale, fma(product, scale_low, error * scale));
    } else {
        y[i] = plain;
    }
}

__kernel void softcap(const __global float *x, __global float *y, ulong size, float cap)
{
    const size_t i = get_global_id(0);
    if (i < size)
        y[i] = cap * tanh_of(x[i] / cap);
}

// FROM_ and TO_ F32, F16 or BF16; ties to even, too large becomes infinity, NaN stays NaN.
#ifdef CONVERT
__kernel void convert(const __global void *x, __global void *y, ulong size)
{
    const size_t i = get_global_id(0);
    if (i >= size)
        return;
#if defined(FROM_F32)
    const float value = ((const __global float *)x)[i];
#elif defined(FROM_F16)
    const float value = vload_half(i, (const __global half *)x);
#else
    const float value = as_float((uint)((const __global ushort *)x)[i] << 16);
#endif
#if defined(TO_F32)
    ((__global float *)y)[i] = value;
#elif defined(TO_F16)
    vstore_half_rte(value, i, (__global half *)y);
#else
    const uint bits = as_uint(value);
    const uint rounded = isnan(value) ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
    ((__global ushort *)y)[i] = (ushort)(rounded >> 16);
#endif
}
#endif
