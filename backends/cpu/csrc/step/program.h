// A step as a flat array of operations: built once, run with one call, nothing allocated once the largest step has run.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <vector>

#include "../kernels.h"
#include "loader.h"
#include "memory.h"
#include "pool.h"
#include "rows.h"

namespace rt {

// Numbers are part of the interface: runtime_cpu/program.py has the same list.
enum Code : int32_t {
    kEmbed, kLinear, kRmsNorm, kLayerNorm, kRopeTable, kRope, kAttention, kKvWrite, kGlu, kActivation, kAdd, kMul,
    kSoftcap, kGatherRows, kCopyColumns, kSoftmax, kTopk, kArgmax, kPenalize, kSample, kMoeRoute, kMoeLinear, kConvert,
    kKvCopyBlocks, kKvExport, kKvImport, kNumCodes,
};

// Where an operand lies: nowhere, at an offset of the program's arena, at an address, or in the n-th binding of a run.
enum Place : int32_t { kNone, kArena, kPointer, kBinding };

struct Operand {
    int32_t place;
    int32_t reserved;
    int64_t value;
};

constexpr int kMaxInputs = 9, kMaxSizes = 12, kMaxNumbers = 6;

// One operation on `rows` rows: dims[dim], or sizes that each operation documents where it is defined.
struct Operation {
    int32_t code;
    int32_t dim;
    Operand in[kMaxInputs];
    Operand out[2];
    int64_t size[kMaxSizes];
    double number[kMaxNumbers];
};

enum Status : int32_t { kOk = 0, kInvalidArgument = 1, kFailed = 2 };

struct Device {
    Device(const Kernels* kernels, const RowKernels* rows, int threads);

    const Kernels* kernels;
    const RowKernels* rows;
    Pool pool;
    std::vector<Memory> thread_memory;     // for whatever a thread needs while it works on one piece
    std::vector<Memory> kernel_memory;     // behind `scratch`
    std::vector<Scratch> scratch;          // of Kernels::linear
    std::mutex mutex;                      // one run at a time: runs share the pool and the memory above
    Loader loader;                         // the last member: it ends before what it uses

    void reserve_threads(size_t bytes);
    void reserve_kernels(size_t bytes);
};

// What operations keep between runs, so that nothing is allocated in one.
struct State {
    Memory arena;
    Memory units, partials, counters;      // attention
    Memory pairs, experts, prepared;       // mixture of experts
    std::vector<int32_t> slot_stamps;      // of the kv_write that last wrote a slot
    int32_t stamp = 0;
    int32_t prepared_kind = -1;            // of what lies in `prepared`
};

class Run {
public:
    Run(Device& device, State& state, const int64_t* dims, void* const* bindings, char* message, size_t message_size)
        : device(device), state(state), rows_(*device.rows), dims_(dims), bindings_(bindings), message_(message),
          message_size_(message_size) {}

    Device& device;
    State& state;

    const RowKernels& rows() const { return rows_; }
    int64_t count(const Operation& op) const { return op.dim < 0 ? op.size[kMaxSizes - 1] : dims_[op.dim]; }
    int64_t dim(int64_t index) const { return dims_[index]; }

    template <class T>
    T* at(const Operand& o) const {
        switch (o.place) {
            case kArena: return reinterpret_cast<T*>(state.arena.data() + o.value);
            case kPointer: return reinterpret_cast<T*>(o.value);
            case kBinding: return static_cast<T*>(bindings_[o.value]);
            default: return nullptr;
        }
    }

    // body(first, last) over rows; by one thread where the work is too little to share (elements: in all).
    template <class Body>
    void share(int64_t rows, int64_t elements, const Body& body) {
        if (elements < kSerial) {
            if (rows > 0) body(int64_t(0), rows);
        } else {
            device.pool.run(rows, [&](int, int64_t first, int64_t last) { body(first, last); });
        }
    }

    __attribute__((format(printf, 3, 4))) int32_t fail(int32_t status, const char* format, ...);

    // Every index in 0 .. limit - 1 (or -1, where that pads).
    int32_t check(const char* what, const int32_t* index, int64_t n, int64_t limit, bool padding = false);

private:
    static constexpr int64_t kSerial = 16384;  // elements: about 5 us of one thread, what a loop costs to share

    const RowKernels& rows_;
    const int64_t* dims_;
    void* const* bindings_;
    char* message_;
    size_t message_size_;
};

class Program {
public:
    Program(Device& device, const Operation* operations, int64_t count, size_t arena_bytes);
    int32_t run(const int64_t* dims, void* const* bindings, char* message, size_t message_size);

private:
    Device& device_;
    State state_;
    std::vector<Operation> operations_;
};

// Each runs operations from `op` on and returns how many it took (linears that share their threads come together), or
// a negative Status.
using Handler = int32_t (*)(Run& run, const Operation* op);
extern const Handler kHandlers[kNumCodes];

int32_t run_linear(Run&, const Operation*);
int32_t run_attention(Run&, const Operation*);
int32_t run_kv_write(Run&, const Operation*);
int32_t run_kv_copy_blocks(Run&, const Operation*);
int32_t run_kv_export(Run&, const Operation*);
int32_t run_kv_import(Run&, const Operation*);
int32_t run_embed(Run&, const Operation*);
int32_t run_rms_norm(Run&, const Operation*);
int32_t run_layer_norm(Run&, const Operation*);
int32_t run_rope_table(Run&, const Operation*);
int32_t run_rope(Run&, const Operation*);
int32_t run_glu(Run&, const Operation*);
int32_t run_activation(Run&, const Operation*);
int32_t run_add(Run&, const Operation*);
int32_t run_mul(Run&, const Operation*);
int32_t run_softcap(Run&, const Operation*);
int32_t run_gather_rows(Run&, const Operation*);
int32_t run_copy_columns(Run&, const Operation*);
int32_t run_softmax(Run&, const Operation*);
int32_t run_convert(Run&, const Operation*);
int32_t run_topk(Run&, const Operation*);
int32_t run_argmax(Run&, const Operation*);
int32_t run_penalize(Run&, const Operation*);
int32_t run_sample(Run&, const Operation*);
int32_t run_moe_route(Run&, const Operation*);
int32_t run_moe_linear(Run&, const Operation*);

// One row of a weight in GGUF order, decoded exactly.
void decode_row(int32_t format, const uint8_t* row, int64_t k, float* y);

}  // namespace rt
