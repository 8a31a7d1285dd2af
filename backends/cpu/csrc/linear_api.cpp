// Linears by themselves, for tests and measurements through ctypes. Threads are made for each call.
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "cpuid.h"

namespace {

struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<uint8_t, Free>;

Buffer allocate(size_t bytes) {
    return Buffer(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)));
}

// `work` of [0, count) in `threads` equal parts.
void share(int64_t count, int threads, const std::function<void(int64_t, int64_t)>& work) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(work, count * t / threads, count * (t + 1) / threads);
    work(0, count / threads);
    for (std::thread& other : others) other.join();
}

const rt::Kernels& kernels(int32_t isa) { return *rt::variant(isa).kernels(); }

}  // namespace

#define RT_API extern "C" __attribute__((visibility("default")))

RT_API int32_t rt_isa_count() { return rt::num_variants(); }
RT_API const char* rt_isa_name(int32_t isa) { return rt::variant(isa).name; }
RT_API int32_t rt_isa_usable(int32_t isa) { return rt::variant(isa).usable(); }

// 0 for a format without kernels, or a k that its blocks do not divide.
RT_API int64_t rt_packed_bytes(int32_t isa, int32_t format, int64_t n, int64_t k) {
    return int64_t(kernels(isa).packed_bytes(format, n, k));
}

RT_API void rt_pack(int32_t isa, int32_t format, const void* src, int64_t n, int64_t k, void* dst, int32_t threads) {
    share((n + 15) / 16, threads, [=](int64_t panel0, int64_t panel1) {
        kernels(isa).pack(format, src, n, k, panel0, panel1, dst);
    });
}

// y [rows, n] = x [rows, k] W^T + bias [n] + residual [rows, n]; both may be null. `packed` is 64-byte aligned.
// With gather, row i is row gather[i] of x; with scatter, it goes to row scatter[i] of y, times row_weights[i]; it is added
// to what is there if `accumulate`. Each may be null.
RT_API void rt_linear(int32_t isa, int32_t format, const void* packed, int64_t n, int64_t k, const float* x, int64_t rows,
                      float* y, const float* bias, const float* residual, const int32_t* gather, const int32_t* scatter,
                      const float* row_weights, int32_t accumulate, int32_t threads) {
    const rt::Kernels& table = kernels(isa);
    const int32_t kind = table.activation_kind(format);
    const Buffer activations = allocate(table.activation_bytes(kind, rows, k));
    share(table.activation_tiles(kind, rows), threads, [&](int64_t tile0, int64_t tile1) {
        table.prepare(kind, x, k, gather, rows, k, activations.get(), tile0, tile1);
    });
    const rt::Weight weight{format, n, k, static_cast<const uint8_t*>(packed)};
    const rt::Linear call{&weight,  activations.get(), rows,        y,              n,
                          bias,     residual,          scatter,     row_weights,    accumulate != 0};
    share(table.linear_units(call), threads, [&](int64_t unit0, int64_t unit1) {
        const size_t bytes = table.linear_scratch(call);
        const Buffer data = allocate(bytes);
        rt::Scratch scratch{data.get(), bytes};
        table.linear(call, unit0, unit1, scratch);
    });
}
