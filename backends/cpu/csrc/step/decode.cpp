// Rows of weights in GGUF order, decoded element by element: for embeddings, where only a few rows are wanted.
//
// The blocks are those of GGML (ggml-common.h); the arithmetic is that of runtime.dtypes, bit for bit.
#include <cmath>
#include <cstring>

#include "program.h"

namespace rt {

namespace {

float half(const uint8_t* p) {
    const uint32_t h = (uint32_t)(p[0] | p[1] << 8), sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
    float value;
    std::memcpy(&value, &rest, 4);
    value *= 0x1p112f;  // rebases the exponent, subnormals included
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = sign | (rest >= 0x0f800000u ? rest | 0x7f800000u : bits);
    std::memcpy(&value, &bits, 4);
    return value;
}

const int8_t kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t kFloat4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // doubled

int nibble(const uint8_t* p, int i, int n) { return i < n ? p[i] & 15 : p[i - n] >> 4; }
int fifth(const uint8_t* bits, int i) { return (bits[i / 8] >> (i % 8) & 1) << 4; }
int field(const uint8_t* p, int i) { return p[i % 32] >> (2 * (i / 32)) & 3; }  // i < 128: planes of 32 bytes

void q4_0(const uint8_t* b, float* y) {
    for (int i = 0; i < 32; i++) y[i] = (float)(nibble(b + 2, i, 16) - 8) * half(b);
}
void q4_1(const uint8_t* b, float* y) {
    for (int i = 0; i < 32; i++) y[i] = (float)nibble(b + 4, i, 16) * half(b) + half(b + 2);
}
void q5_0(const uint8_t* b, float* y) {
    for (int i = 0; i < 32; i++) y[i] = (float)((nibble(b + 6, i, 16) | fifth(b + 2, i)) - 16) * half(b);
}
void q5_1(const uint8_t* b, float* y) {
    for (int i = 0; i < 32; i++) y[i] = (float)(nibble(b + 8, i, 16) | fifth(b + 4, i)) * half(b) + half(b + 2);
}
void q8_0(const uint8_t* b, float* y) {
    for (int i = 0; i < 32; i++) y[i] = (float)(int8_t)b[2 + i] * half(b);
}
void iq4_nl(const uint8_t* b, float* y) {
    for (int i = 0; i < 32; i++) y[i] = (float)kNonLinear[nibble(b + 2, i, 16)] * half(b);
}
void mxfp4(const uint8_t* b, float* y) {
    const float scale = std::ldexp(1.0f, b[0] - 128);
    for (int i = 0; i < 32; i++) y[i] = (float)kFloat4[nibble(b + 1, i, 16)] * scale;
}

void q2_k(const uint8_t* b, float* y) {
    const float d = half(b + 80), m = half(b + 82);
    for (int i = 0; i < 256; i++) {
        const int q = field(b + 16 + i / 128 * 32, i % 128);
        y[i] = (float)q * (d * (float)(b[i / 16] & 15)) - m * (float)(b[i / 16] >> 4);
    }
}
void q3_k(const uint8_t* b, float* y) {
    const float d = half(b + 108);
    for (int i = 0; i < 256; i++) {
        const int g = i / 16, high = b[i % 32] >> (i / 32) & 1;
        const int low = g < 8 ? b[96 + g] & 15 : b[96 + g - 8] >> 4, top = b[104 + g % 4] >> (2 * (g / 4)) & 3;
        const int q = (high << 2 | field(b + 32 + i / 128 * 32, i % 128)) - 4;
        y[i] = (float)q * (d * (float)((top << 4 | low) - 32));
    }
}
// The g-th of eight 6-bit scales and minima in 12 bytes.
int k_scale(const uint8_t* p, int g) { return g < 4 ? p[g] & 63 : (p[g + 4] & 15) | (p[g - 4] >> 2 & 48); }
int k_minimum(const uint8_t* p, int g) { return g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | (p[g] >> 2 & 48); }

void q4_k(const uint8_t* b, float* y) {
    const float d = half(b), m = half(b + 2);
    for (int i = 0; i < 256; i++) {
        const int g = i / 32, q = nibble(b + 16 + i / 64 * 32, i % 64, 32);
        y[i] = (float)q * (d * (float)k_scale(b + 4, g)) - m * (float)k_minimum(b + 4, g);
    }
}
void q5_k(const uint8_t* b, float* y) {
    const float d = half(b), m = half(b + 2);
    for (int i = 0; i < 256; i++) {
        const int g = i / 32, high = (b[16 + i % 32] >> g & 1) << 4;
        const int q = nibble(b + 48 + i / 64 * 32, i % 64, 32) | high;
        y[i] = (float)q * (d * (float)k_scale(b + 4, g)) - m * (float)k_minimum(b + 4, g);
    }
}
void q6_k(const uint8_t* b, float* y) {
    const float d = half(b + 208);
    for (int i = 0; i < 256; i++) {
        const int low = nibble(b + i / 128 * 64, i % 128, 64), high = field(b + 128 + i / 128 * 32, i % 128);
        y[i] = (float)((high << 4 | low) - 32) * (d * (float)(int8_t)b[192 + i / 16]);
    }
}
void iq4_xs(const uint8_t* b, float* y) {
    const float d = half(b);
    for (int i = 0; i < 256; i++) {
        const int g = i / 32, low = b[4 + g / 2] >> (4 * (g % 2)) & 15, high = b[2 + g / 4] >> (2 * (g % 4)) & 3;
        y[i] = (float)kNonLinear[nibble(b + 8 + 16 * g, i % 32, 16)] * (d * (float)((high << 4 | low) - 32));
    }
}

struct Blocks {
    int64_t elements, bytes;
    void (*decode)(const uint8_t*, float*);
};

Blocks blocks_of(int32_t format) {
    switch (format) {
        case Q4_0: return {32, 18, q4_0};
        case Q4_1: return {32, 20, q4_1};
        case Q5_0: return {32, 22, q5_0};
        case Q5_1: return {32, 24, q5_1};
        case Q8_0: return {32, 34, q8_0};
        case IQ4_NL: return {32, 18, iq4_nl};
        case MXFP4: return {32, 17, mxfp4};
        case Q2_K: return {256, 84, q2_k};
        case Q3_K: return {256, 110, q3_k};
        case Q4_K: return {256, 144, q4_k};
        case Q5_K: return {256, 176, q5_k};
        case Q6_K: return {256, 210, q6_k};
        default: return {256, 136, iq4_xs};
    }
}

}  // namespace

void decode_row(int32_t format, const uint8_t* row, int64_t k, float* y) {
    if (format == F32) {
        std::memcpy(y, row, 4 * (size_t)k);
    } else if (format == F16) {
        for (int64_t i = 0; i < k; i++) y[i] = half(row + 2 * i);
    } else if (format == BF16) {
        for (int64_t i = 0; i < k; i++) {
            const uint32_t bits = (uint32_t)(row[2 * i] | row[2 * i + 1] << 8) << 16;
            std::memcpy(y + i, &bits, 4);
        }
    } else {
        const Blocks blocks = blocks_of(format);
        for (int64_t i = 0; i < k; i += blocks.elements, row += blocks.bytes) blocks.decode(row, y + i);
    }
}

}  // namespace rt
