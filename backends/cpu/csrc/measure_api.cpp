// Speeds for benchmarks through ctypes: linears without their preparation, and the ceilings of the machine beside them.
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "cpuid.h"

#define RT_API extern "C" __attribute__((visibility("default")))

namespace {

// Time that this thread computed: other processes' share of a busy machine is not in it.
double now_s() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<uint8_t, Free>;
Buffer allocate(size_t bytes) {
    return Buffer(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)));
}

// Seconds of the slowest of `threads` threads running work(thread).
template <class Work>
double slowest_s(int threads, const Work& work) {
    std::vector<double> seconds(threads);
    const auto timed = [&](int thread) {
        const double start = now_s();
        work(thread);
        seconds[thread] = now_s() - start;
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(timed, t);
    timed(0);
    for (std::thread& other : others) other.join();
    return *std::max_element(seconds.begin(), seconds.end());
}

}  // namespace

// Seconds of one linear [rows, n] = x [rows, k] W^T, the mean of `repeat` in a row.
RT_API double rt_measure_linear(int32_t isa, int32_t format, const void* packed, int64_t n, int64_t k, const float* x,
                                int64_t rows, float* y, int32_t repeat, int32_t threads) {
    const rt::Kernels& table = *rt::variant(isa).kernels();
    const int32_t kind = table.activation_kind(format);
    const Buffer activations = allocate(table.activation_bytes(kind, rows, k));
    table.prepare(kind, x, k, nullptr, rows, k, activations.get(), 0, table.activation_tiles(kind, rows));
    const rt::Weight weight{format, n, k, static_cast<const uint8_t*>(packed)};
    rt::Linear call{};
    call.weight = &weight;
    call.activations = activations.get();
    call.rows = rows;
    call.y = y;
    call.y_stride = n;
    const int64_t units = table.linear_units(call);
    return slowest_s(threads, [&](int thread) {
        const size_t bytes = table.linear_scratch(call);
        const Buffer data = allocate(bytes);
        rt::Scratch scratch{data.get(), bytes};
        for (int i = 0; i < repeat; ++i)
            table.linear(call, units * thread / threads, units * (thread + 1) / threads, scratch);
    }) / repeat;
}

// Seconds of rounding and laying out activations [rows, k].
RT_API double rt_measure_prepare(int32_t isa, int32_t format, const float* x, int64_t rows, int64_t k, int32_t repeat) {
    const rt::Kernels& table = *rt::variant(isa).kernels();
    const int32_t kind = table.activation_kind(format);
    const Buffer activations = allocate(table.activation_bytes(kind, rows, k));
    return slowest_s(1, [&](int) {
        for (int i = 0; i < repeat; ++i)
            table.prepare(kind, x, k, nullptr, rows, k, activations.get(), 0, table.activation_tiles(kind, rows));
    }) / repeat;
}

// Seconds of packing a whole weight.
RT_API double rt_measure_pack(int32_t isa, int32_t format, const void* src, int64_t n, int64_t k, void* dst,
                              int32_t threads) {
    const rt::Kernels& table = *rt::variant(isa).kernels();
    const int64_t panels = (n + 15) / 16;
    return slowest_s(threads, [&](int thread) {
        table.pack(format, src, n, k, panels * thread / threads, panels * (thread + 1) / threads, dst);
    });
}

// Operations (two per multiply-add) per second of the byte dot product alone, on one core.
RT_API double rt_measure_dot_peak(int32_t isa) {
    const rt::Kernels& table = *rt::variant(isa).kernels();
    double best = 0;
    for (int i = 0; i < 5; ++i) {
        const double start = now_s();
        const double operations = table.dot_products(200000);
        best = std::max(best, operations / (now_s() - start));
    }
    return best;
}

// Bytes per second of reading `bytes` bytes at `data` once.
RT_API double rt_measure_read(const void* data, int64_t bytes, int32_t threads) {
    typedef uint64_t Line __attribute__((vector_size(64)));
    const Line* lines = static_cast<const Line*>(data);
    const int64_t count = bytes / 64;
    std::vector<Line> sums(threads);
    const double seconds = slowest_s(threads, [&](int thread) {
        Line sum[4] = {};
        const int64_t end = count * (thread + 1) / threads;
        for (int64_t i = count * thread / threads; i + 4 <= end; i += 4)
            for (int j = 0; j < 4; ++j) sum[j] ^= lines[i + j];
        sums[thread] = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    });
    volatile uint64_t kept = 0;
    for (const Line& sum : sums) kept = kept ^ sum[0] ^ sum[7];
    return double(count * 64) / seconds;
}
