// The plain C interface, for ctypes: devices, packed weights, caches, programs.
#include <algorithm>
#include <cstring>
#include <exception>
#include <new>

#include "../cpuid.h"
#include "program.h"

#define RT_API extern "C" __attribute__((visibility("default")))

namespace {

// Rows of the same instruction set as the linears of `name`.
const rt::RowKernels* rows_for(const char* name) {
    const struct {
        const char* prefix;
        const rt::RowKernels* (*rows)();
    } known[] = {
#if defined(RT_HAS_AVX512BF16)
        {"avx512-bf16", rt::rows_avx512bf16},
        {"amx", rt::rows_avx512bf16},
#endif
#if defined(RT_HAS_AVX512)
        {"avx512", rt::rows_avx512},
#endif
#if defined(RT_HAS_AVX2)
        {"avx", rt::rows_avx2},
#endif
#if defined(RT_HAS_NEON)
        {"neon", rt::rows_neon},
#endif
    };
    for (const auto& entry : known)
        if (std::strncmp(name, entry.prefix, std::strlen(entry.prefix)) == 0) return entry.rows();
    return rt::rows_base();
}

}  // namespace

RT_API int32_t rt_step_version() { return 2; }

// `isa` counts variants as rt_isa_name does; it must be usable here.
RT_API rt::Device* rt_device_open(int32_t isa, int32_t threads) {
    try {
        return new rt::Device(rt::variant(isa).kernels(), rows_for(rt::variant(isa).name), threads);
    } catch (const std::exception&) {  // threads or memory that the system does not give
        return nullptr;
    }
}
RT_API void rt_device_close(rt::Device* device) { delete device; }
RT_API int32_t rt_device_dots_bf16(const rt::Device* device) { return device->rows->dots_bf16; }

RT_API void* rt_allocate(int64_t bytes, int32_t large) { return rt::allocate_pages((size_t)bytes, large != 0); }
RT_API void rt_free(void* data, int64_t bytes) { rt::free_pages(data, (size_t)bytes); }

// 0 where the format has no kernels or its blocks do not divide k.
RT_API int64_t rt_device_packed_bytes(const rt::Device* device, int32_t format, int64_t n, int64_t k) {
    return (int64_t)device->kernels->packed_bytes(format, n, k);
}
RT_API int32_t rt_device_activation_kind(const rt::Device* device, int32_t format) {
    return device->kernels->activation_kind(format);
}
RT_API int64_t rt_device_activation_bytes(const rt::Device* device, int32_t format, int64_t rows, int64_t k) {
    return (int64_t)device->kernels->activation_bytes(device->kernels->activation_kind(format), rows, k);
}
// Hand over `count` matrices [n, k], one after the other in GGUF order, to become `count` packed ones of
// rt_device_packed_bytes each; see rt::PackJob. Source and target must stay until rt_device_wait returns.
// 0 where too much waits already: then nothing was taken over, and rt_device_wait makes room.
RT_API int32_t rt_device_pack(rt::Device* device, int32_t format, const void* source, int64_t source_bytes,
                              int64_t count, int64_t n, int64_t k, void* target, int32_t mapped) {
    return device->loader.add({format, mapped != 0, count, n, k, (const uint8_t*)source, source_bytes, (uint8_t*)target,
                        (int64_t)device->kernels->packed_bytes(format, n, k)});
}
// Returns when everything that was handed over is packed.
RT_API void rt_device_wait(rt::Device* device) { device->loader.wait(); }

RT_API int64_t rt_cache_bytes(const rt::KvCache* cache) { return cache->num_blocks * cache->block_bytes(); }

RT_API rt::Program* rt_program_create(rt::Device* device, const rt::Operation* operations, int64_t count,
                                      int64_t arena_bytes) {
    try {
        return new rt::Program(*device, operations, count, (size_t)arena_bytes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
RT_API void rt_program_destroy(rt::Program* program) { delete program; }
RT_API int32_t rt_program_run(rt::Program* program, const int64_t* dims, void* const* bindings, char* message,
                              int64_t message_size) {
    return program->run(dims, bindings, message, (size_t)message_size);
}
