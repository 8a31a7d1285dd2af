// Packs weights and multiplies with them on every instruction set that the processor has, for processors on which no
// Python runs: linears CASES RESULTS.
//
// CASES holds, in the machine's order of bytes, for each case six int64 (format, n, k, rows, bytes of the weight in GGUF
// order, threads), that weight, and rows x k floats. RESULTS gets, for each case and instruction set, the packed weight
// and rows x n floats. Standard output gets the names of the instruction sets, a line each.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
int32_t rt_isa_count();
const char* rt_isa_name(int32_t isa);
int32_t rt_isa_usable(int32_t isa);
int64_t rt_packed_bytes(int32_t isa, int32_t format, int64_t n, int64_t k);
void rt_pack(int32_t isa, int32_t format, const void* src, int64_t n, int64_t k, void* dst, int32_t threads);
void rt_linear(int32_t isa, int32_t format, const void* packed, int64_t n, int64_t k, const float* x, int64_t rows,
               float* y, const float* bias, const float* residual, const int32_t* gather, const int32_t* scatter,
               const float* row_weights, int32_t accumulate, int32_t threads);
}

namespace {

struct Case {
    int64_t format, n, k, rows, bytes, threads;
};

template <class T>
bool read(std::FILE* file, T* to, size_t count) {
    return std::fread(to, sizeof(T), count, file) == count;
}

bool run(const Case& c, const std::vector<uint8_t>& weight, const std::vector<float>& x, std::FILE* results) {
    for (int32_t isa = 0; isa < rt_isa_count(); isa++) {
        if (!rt_isa_usable(isa)) continue;
        const int64_t bytes = rt_packed_bytes(isa, int32_t(c.format), c.n, c.k);
        if (bytes == 0) return false;
        uint8_t* packed = static_cast<uint8_t*>(std::aligned_alloc(64, size_t(bytes + 63) / 64 * 64));
        std::vector<float> y(size_t(c.rows * c.n));
        std::memset(packed, 0xa5, size_t(bytes));
        rt_pack(isa, int32_t(c.format), weight.data(), c.n, c.k, packed, int32_t(c.threads));
        rt_linear(isa, int32_t(c.format), packed, c.n, c.k, x.data(), c.rows, y.data(), nullptr, nullptr, nullptr, nullptr,
                  nullptr, 0, int32_t(c.threads));
        const bool written = std::fwrite(packed, 1, size_t(bytes), results) == size_t(bytes) &&
                             std::fwrite(y.data(), sizeof(float), y.size(), results) == y.size();
        std::free(packed);
        if (!written) return false;
    }
    return true;
}

}  // namespace

int main(int count, char** arguments) {
    std::FILE* cases = count == 3 ? std::fopen(arguments[1], "rb") : nullptr;
    std::FILE* results = cases ? std::fopen(arguments[2], "wb") : nullptr;
    if (!results) {
        std::fputs("usage: linears CASES RESULTS\n", stderr);
        return EXIT_FAILURE;
    }
    for (int32_t isa = 0; isa < rt_isa_count(); isa++)
        if (rt_isa_usable(isa)) std::puts(rt_isa_name(isa));
    Case c;
    while (read(cases, &c, 1)) {
        std::vector<uint8_t> weight(static_cast<size_t>(c.bytes));
        std::vector<float> x(size_t(c.rows * c.k));
        if (!read(cases, weight.data(), weight.size()) || !read(cases, x.data(), x.size()) || !run(c, weight, x, results)) {
            std::fputs("a case is cut short, or its format has no kernels\n", stderr);
            return EXIT_FAILURE;
        }
    }
    return std::fclose(results) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
