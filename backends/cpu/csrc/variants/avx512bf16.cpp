// The AVX-512 variant with the bf16 linear replaced; everything else is that variant's own code.
#include "../isa/avx512.h"

#define RT_FORMATS plain<BF16Panel>(BF16, AS_BF16)
#include "../linear_table.inl"

namespace rt {
namespace {

const Kernels& rest() { return *kernels_avx512(); }

size_t scratch_of(const Linear& call) {
    return call.weight->format == BF16 ? linear_scratch(call) : rest().linear_scratch(call);
}
void run(const Linear& call, int64_t unit0, int64_t unit1, Scratch& scratch) {
    (call.weight->format == BF16 ? linear : rest().linear)(call, unit0, unit1, scratch);
}
int32_t kind_of(int32_t format) { return format == BF16 ? AS_BF16 : rest().activation_kind(format); }

}  // namespace

const Kernels* kernels_avx512bf16() {
    static const Kernels table = [] {
        Kernels all = rest();
        all.name = Isa::NAME;
        all.activation_kind = kind_of;
        all.linear_scratch = scratch_of;
        all.linear = run;
        return all;
    }();
    return &table;
}

}  // namespace rt
