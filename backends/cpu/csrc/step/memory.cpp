#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rt {

namespace {
constexpr size_t kLargePage = size_t(1) << 21;
}

#if defined(__SANITIZE_ADDRESS__)

// The last byte asked for is the last that may be touched.
void* allocate_pages(size_t bytes, bool) {
    void* data = nullptr;
    if (bytes == 0 || posix_memalign(&data, 64, bytes) != 0) return nullptr;
    std::memset(data, 0, bytes);
    return data;
}

void free_pages(void* data, size_t) { std::free(data); }

#elif defined(__linux__)

void* allocate_pages(size_t bytes, bool large) {
    if (bytes == 0) return nullptr;
    // A large page must start at a multiple of its size; what lies before and behind is given back.
    const size_t wanted = bytes >= kLargePage ? bytes + kLargePage : bytes;
    void* raw = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    if (wanted == bytes) return raw;
    const uintptr_t start = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = (start + kLargePage - 1) / kLargePage * kLargePage;
    const size_t page = 4096, kept = (bytes + page - 1) / page * page;
    if (aligned > start) munmap(raw, aligned - start);
    const uintptr_t end = start + (wanted + page - 1) / page * page;
    if (end > aligned + kept) munmap(reinterpret_cast<void*>(aligned + kept), end - aligned - kept);
    void* data = reinterpret_cast<void*>(aligned);
    if (large) madvise(data, kept, MADV_HUGEPAGE);
    return data;
}

void free_pages(void* data, size_t bytes) {
    if (data) munmap(data, bytes);
}

#else

void* allocate_pages(size_t bytes, bool) {
    if (bytes == 0) return nullptr;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
#if defined(_WIN32)
    void* data = _aligned_malloc(rounded, 4096);
#else
    void* data = std::aligned_alloc(4096, rounded);
#endif
    if (data) std::memset(data, 0, rounded);
    return data;
}

void free_pages(void* data, size_t) {
#if defined(_WIN32)
    _aligned_free(data);
#else
    std::free(data);
#endif
}

#endif

void Memory::reserve(size_t bytes) {
    if (bytes <= bytes_) return;
    free_pages(data_, bytes_);
    data_ = nullptr, bytes_ = 0;
    data_ = allocate_pages(bytes);
    if (!data_) throw std::bad_alloc();
    bytes_ = bytes;
}

}  // namespace rt
