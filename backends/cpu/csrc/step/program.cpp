#include "program.h"

#include <new>

namespace rt {

const Handler kHandlers[kNumCodes] = {
    run_embed,       run_linear,      run_rms_norm,     run_layer_norm, run_rope_table, run_rope,   run_attention,
    run_kv_write,    run_glu,         run_activation,   run_add,        run_mul,        run_softcap, run_gather_rows,
    run_copy_columns, run_softmax,    run_topk,         run_argmax,     run_penalize,   run_sample, run_moe_route,
    run_moe_linear,  run_convert,     run_kv_copy_blocks, run_kv_export, run_kv_import,
};

Device::Device(const Kernels* kernels, const RowKernels* rows, int threads)
    : kernels(kernels), rows(rows), pool(threads), thread_memory(pool.size()), kernel_memory(pool.size()),
      scratch(pool.size()), loader(*this) {}

void Device::reserve_threads(size_t bytes) {
    for (auto& memory : thread_memory) memory.reserve(bytes);
}

void Device::reserve_kernels(size_t bytes) {
    for (int i = 0; i < pool.size(); i++) {
        kernel_memory[i].reserve(bytes);
        scratch[i] = {kernel_memory[i].data(), kernel_memory[i].bytes()};
    }
}

int32_t Run::fail(int32_t status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message_, message_size_, format, arguments);
    va_end(arguments);
    return -status;
}

int32_t Run::check(const char* what, const int32_t* index, int64_t n, int64_t limit, bool padding) {
    const int32_t least = padding ? -1 : 0;
    for (int64_t i = 0; i < n; i++)
        if (index[i] < least || index[i] >= limit)
            return fail(kInvalidArgument, "%s[%lld] = %d is outside %d..%lld", what, (long long)i, index[i], least,
                        (long long)limit - 1);
    return kOk;
}

Program::Program(Device& device, const Operation* operations, int64_t count, size_t arena_bytes)
    : device_(device), operations_(operations, operations + count) {
    state_.arena.reserve(arena_bytes);
}

int32_t Program::run(const int64_t* dims, void* const* bindings, char* message, size_t message_size) {
    device_.loader.wait();  // before the lock, which it needs to pack
    std::lock_guard<std::mutex> lock(device_.mutex);
    Run run(device_, state_, dims, bindings, message, message_size);
    try {
        for (size_t i = 0; i < operations_.size();) {
            const int32_t taken = kHandlers[operations_[i].code](run, &operations_[i]);
            if (taken < 0) return -taken;
            i += (size_t)taken;
        }
    } catch (const std::bad_alloc&) {
        return -run.fail(kFailed, "the host has no memory left for the intermediates of this step");
    }
    return kOk;
}

}  // namespace rt
