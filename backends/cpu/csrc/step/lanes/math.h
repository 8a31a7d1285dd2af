// Arithmetic that all instruction sets share: loads with tails, sums in a fixed order, elementary functions.
#pragma once

#include <cmath>
#include <limits>

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

template <class V, class T>
inline V load_as(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof(V));
    return v;
}
inline vf load(const float* p) { return load_as<vf>(p); }
inline vu load_words(const void* p) { return load_as<vu>((const char*)p); }
inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof(v)); }
inline vf splat(float x) { return vf{} + x; }
inline vu splat_word(uint32_t x) { return vu{} + x; }

// The first n lanes; the others are `rest` or left alone.
inline vf load_part(const float* p, int n, float rest = 0) {
    vf v = splat(rest);
    std::memcpy(&v, p, 4 * n);
    return v;
}
inline void store_part(float* p, vf v, int n) { std::memcpy(p, &v, 4 * n); }
inline vf load_upto(const float* p, int64_t n, float rest = 0) {
    return n >= kLanes ? load(p) : load_part(p, (int)n, rest);
}
inline void store_upto(float* p, vf v, int64_t n) {
    if (n >= kLanes) store(p, v);
    else store_part(p, v, (int)n);
}

inline vf select(vi mask, vf a, vf b) { return mask ? a : b; }
inline bool any(vi mask) {
    uint64_t words[sizeof(vi) / 8], all = 0;
    std::memcpy(words, &mask, sizeof(mask));
    for (uint64_t w : words) all |= w;
    return all != 0;
}
inline vi lane_numbers() {
    vi v;
    for (int i = 0; i < kLanes; i++) v[i] = i;
    return v;
}

// Halves folded onto each other: the order depends on nothing but the number of lanes.
inline float sum_lanes(vf v) {
    for (int n = kLanes / 2; n > 0; n /= 2) v = v + __builtin_shuffle(v, lane_numbers() ^ n);
    return v[0];
}
inline float max_lanes(vf v) {
    for (int n = kLanes / 2; n > 0; n /= 2) v = larger(v, __builtin_shuffle(v, lane_numbers() ^ n));
    return v[0];
}

inline vf from_bf16(const uint16_t* p) { return (vf)(__builtin_convertvector(load_as<vh>(p), vu) << 16); }
#if !defined(RT_DOT_BF16)
inline void to_bf16(vf x, uint16_t* p) {
    const vu bits = (vu)x;
    const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    const vu quiet = (bits >> 16) | 0x40u;
    const vh h = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, vh);
    std::memcpy(p, &h, sizeof(h));
}
#endif
#if !defined(RT_FROM_INT8)  // compilers take such a conversion apart
inline vf from_int8(const int8_t* p) {
    vi v;
    for (int i = 0; i < kLanes; i++) v[i] = p[i];
    return __builtin_convertvector(v, vf);
}
#endif
inline uint16_t bf16_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// Nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
inline vf nearest(vf x) { return (x + 12582912.0f) - 12582912.0f; }
// x * 2^n for integral n in -252 .. 252, in two steps, so that results may be subnormal.
inline vf scale_by_power(vf x, vf n) {
    const vi i = __builtin_convertvector(n, vi), half = i >> 1;
    return x * (vf)((half + 127) << 23) * (vf)((i - half + 127) << 23);
}

// 2^x for x <= 0, relative error about 1e-7; what is below 2^-126 becomes 0. Taylor's series of 2^f, |f| <= 1/2.
inline vf exp2_negative(vf x) {
    const vf t = larger(x, splat(-127.0f));
    const vf n = nearest(t), f = t - n;
    vf p = splat(1.5403530e-4f);
    p = fma(p, f, splat(1.3333558e-3f));
    p = fma(p, f, splat(9.6181291e-3f));
    p = fma(p, f, splat(5.5504109e-2f));
    p = fma(p, f, splat(2.4022651e-1f));
    p = fma(p, f, splat(6.9314718e-1f));
    p = fma(p, f, splat(1.0f));
    const vf y = p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
    return select(x < -126.0f, vf{}, select(x == x, y, x));
}

// e^x within about one unit of the last place. ln 2 is split so that n * its larger part is exact (Cody and Waite).
inline vf exp(vf x) {
    const vf t = larger(splat(-104.0f), x > 89.0f ? splat(89.0f) : x);
    const vf n = nearest(t * 1.44269504f);
    vf r = fma(n, splat(-0.693359375f), t);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    const vf y = scale_by_power(fma(p * r, r, r) + 1.0f, n);
    return select(x == x, y, x);
}

inline vf sigmoid(vf x) {
    const vf small = exp((vf)((vu)x | 0x80000000u));  // of -|x|: no overflow
    return select(x >= 0.0f, splat(1.0f), small) / (small + 1.0f);
}

inline vf with_sign_of(vf magnitude, vf sign) { return (vf)((vu)magnitude | ((vu)sign & 0x80000000u)); }
inline vf absolute(vf x) { return (vf)((vu)x & 0x7fffffffu); }

// Cephes' tanhf: a polynomial where 1 - 2 / (e^2x + 1) would cancel.
inline vf tanh(vf x) {
    const vf a = absolute(x), z = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = fma(p, z, splat(2.06390887954e-2f));
    p = fma(p, z, splat(-5.37397155531e-2f));
    p = fma(p, z, splat(1.33314422036e-1f));
    p = fma(p, z, splat(-3.33332819422e-1f));
    const vf small = fma(p * z, x, x);
    const vf large = with_sign_of(1.0f - 2.0f / (exp(a + a) + 1.0f), x);
    return select(a < 0.625f, small, large);
}

// Cephes' erff and erfcf.
inline vf erf(vf x) {
    const vf a = absolute(x), z = x * x;
    vf t = splat(7.853861353153693e-5f);
    const float near[] = {-8.010193625184903e-4f, 5.188327685732524e-3f, -2.685381193529856e-2f,
                          1.128358514861418e-1f,  -3.761262582423300e-1f, 1.128379165726710e+0f};
    for (float c : near) t = fma(t, z, splat(c));
    const vf q = 1.0f / larger(a, splat(0.5f)), y = q * q;
    const float middle[] = {-1.387039388740657e-1f, 3.687424674597105e-1f, -5.824733027278666e-1f,
                            6.210004621745983e-1f,  -4.944515323274145e-1f, 3.404879937665872e-1f,
                            -2.741127028184656e-1f, 5.638259427386472e-1f};
    vf p = splat(2.326819970068386e-2f);
    for (float c : middle) p = fma(p, y, splat(c));
    const float far[] = {1.297719955372516e+1f, -7.495518717768503e+0f, 2.921019019210786e+0f, -1.015265279202700e+0f,
                         4.218463358204948e-1f, -2.820767439740514e-1f, 5.641895067754075e-1f};
    vf r = splat(-1.047766399936249e+1f);
    for (float c : far) r = fma(r, y, splat(c));
    const vf complement = exp(-z) * q * select(a < 2.0f, p, r);
    return select(a <= 1.0f, x * t, with_sign_of(1.0f - complement, x));
}

}  // namespace
