// What one instruction set offers to the rest of the library: a table of functions, filled once per variant.
//
// Every variant is the same templates compiled with other flags (variants/<isa>.cpp); everything in a variant's file is
// in an anonymous namespace, so that the linker can never mix code of two instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rt {

// Numbers are GGML type ids, so that Python and C++ need no table between them.
enum Format : int32_t {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
    Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39,
};

// A weight [n, k] in this library's own order (see formats/): panels of 16 output rows, each panel one stream of bytes
// in the exact order of consumption. Rows n .. 16 * ceil(n / 16) - 1 of the last panel are zero.
struct Weight {
    int32_t format;
    int64_t n, k;
    const uint8_t* data;  // 64-byte aligned
};

// y[row, :] = epilogue(x[row, :] W^T) for `rows` rows of prepared activations.
struct Linear {
    const Weight* weight;
    const void* activations;     // written by `prepare` with this weight's activation kind
    int64_t rows;
    float* y;
    int64_t y_stride;            // elements between rows
    const float* bias;           // [n] or null
    const float* residual;       // added after the bias, from the same place as in y, with stride y_stride; or null; may be y
    const int32_t* scatter;      // row of y for each row (mixture of experts), or null: the identity
    const float* row_weights;    // factor for each row, applied before the residual, or null
    bool accumulate;             // y += instead of y =  (with scatter)
};

// Scratch of one thread; grows on first use, never during a step once the largest step has run.
struct Scratch {
    uint8_t* data;
    size_t bytes;
};

struct Kernels {
    const char* name;            // "avx512-bf16", "avx2", ...

    // --- weights
    size_t (*packed_bytes)(int32_t format, int64_t n, int64_t k);
    // Repack panels panel0 .. panel1 - 1 from GGUF order. `src` is the whole weight. Bit-identical in every variant.
    void (*pack)(int32_t format, const void* src, int64_t n, int64_t k, int64_t panel0, int64_t panel1, void* dst);

    // --- linear. An activation kind is an opaque number; equal numbers can share one preparation.
    int32_t (*activation_kind)(int32_t format);
    size_t (*activation_bytes)(int32_t kind, int64_t rows, int64_t k);
    int64_t (*activation_tiles)(int32_t kind, int64_t rows);
    // Round and pack rows into tiles tile0 .. tile1 - 1. `gather` (or null) gives the row of x for each row.
    void (*prepare)(int32_t kind, const float* x, int64_t x_stride, const int32_t* gather, int64_t rows, int64_t k,
                    void* dst, int64_t tile0, int64_t tile1);
    // A linear is cut into units of equal work that any thread may run in any order. The result does not depend on how
    // units are shared out, nor on `rows`: one row gives the same bits alone and in any batch. Few rows: a unit is one
    // panel, and successive units read one stream. `scratch` must hold linear_scratch(call) bytes, 64-byte aligned.
    int64_t (*linear_units)(const Linear& call);
    size_t (*linear_scratch)(const Linear& call);
    void (*linear)(const Linear& call, int64_t unit0, int64_t unit1, Scratch& scratch);
    // A ceiling to measure against: `rounds` of independent byte dot products; returns the operations done.
    double (*dot_products)(int64_t rounds);
};

// One per variant; cpuid.h says which of them the library holds and the processor can run.
const Kernels* kernels_base();        // any processor: GCC vector extensions
const Kernels* kernels_avx2();        // AVX2, FMA, F16C
const Kernels* kernels_avxvnni();     // the same with AVX-VNNI
const Kernels* kernels_avx512_256();  // AVX-512 VNNI at 256 bits: the code of avxvnni, testable on other processors
const Kernels* kernels_avx512();      // AVX-512 F/BW/DQ/VL/VNNI
const Kernels* kernels_avx512bf16();  // the same with AVX-512 BF16
const Kernels* kernels_amx();         // the same with AMX-INT8 and AMX-BF16
const Kernels* kernels_amx_emulated();  // the code of amx over tiles in memory, testable on other processors
const Kernels* kernels_neon();        // any 64-bit Arm
const Kernels* kernels_neon_dotprod();  // the same with the dot products of Armv8.2

}  // namespace rt
