// From a format's number to its functions.
#pragma once

#include "formats/kquants.h"
#include "linear.inl"

namespace {

using namespace rt;

struct FormatEntry {
    int32_t format, activation_kind;
    int64_t block;  // elements k must be a multiple of
    int64_t (*packed_bytes)(int64_t k);
    void (*pack)(const uint8_t*, int64_t, int64_t, int64_t, int64_t, uint8_t*);
    void (*run)(const Linear&, int64_t, int64_t, Scratch&);
    size_t (*scratch_bytes)(const Linear&);
};

template <class Kind>
constexpr FormatEntry entry(int32_t format, int32_t activation_kind, int64_t block) {
    return {format, activation_kind, block, Kind::packed_bytes, Kind::pack, Loops<Isa, Kind>::run,
            Loops<Isa, Kind>::scratch_bytes};
}
template <template <class> class Format>
constexpr FormatEntry quantised(int32_t format) {
    return entry<QuantisedKind<Isa, Format<Isa>>>(format, AS_INT8, Format<Isa>::BLOCK);
}
template <template <class> class Format>
constexpr FormatEntry plain(int32_t format, int32_t activation_kind) {
    return entry<PlainKind<Isa, Format<Isa>>>(format, activation_kind, 1);
}

// A variant that differs from another in a few formats only defines RT_FORMATS itself.
#ifndef RT_FORMATS
#define RT_FORMATS \
    plain<F32Panel>(F32, AS_F32), \
    plain<F16Panel>(F16, AS_F32), \
    plain<BF16Panel>(BF16, Isa::HAS_BF16 ? AS_BF16 : AS_BF16_WIDE), \
    quantised<Q4_0Panel>(Q4_0), \
    quantised<Q4_1Panel>(Q4_1), \
    quantised<Q5_0Panel>(Q5_0), \
    quantised<Q5_1Panel>(Q5_1), \
    quantised<Q8_0Panel>(Q8_0), \
    quantised<Q2_KPanel>(Q2_K), \
    quantised<Q3_KPanel>(Q3_K), \
    quantised<Q4_KPanel>(Q4_K), \
    quantised<Q5_KPanel>(Q5_K), \
    quantised<Q6_KPanel>(Q6_K), \
    quantised<IQ4_NLPanel>(IQ4_NL), \
    quantised<IQ4_XSPanel>(IQ4_XS), \
    quantised<MXFP4Panel>(MXFP4)
#endif
constexpr FormatEntry ENTRIES[] = {RT_FORMATS};

const FormatEntry* find(int32_t format) {
    for (const FormatEntry& candidate : ENTRIES)
        if (candidate.format == format) return &candidate;
    return nullptr;
}

size_t packed_bytes(int32_t format, int64_t n, int64_t k) {
    const FormatEntry* found = find(format);
    if (!found || n <= 0 || k <= 0 || k % found->block) return 0;
    return size_t(ceil_div(n, ROWS) * found->packed_bytes(k));
}
void pack(int32_t format, const void* src, int64_t n, int64_t k, int64_t panel0, int64_t panel1, void* dst) {
    find(format)->pack(static_cast<const uint8_t*>(src), n, k, panel0, panel1, static_cast<uint8_t*>(dst));
}
int32_t activation_kind(int32_t format) {
    const FormatEntry* found = find(format);
    return found ? found->activation_kind : -1;
}
int64_t linear_units(const Linear& call) { return Cut(call).units(); }
size_t linear_scratch(const Linear& call) { return find(call.weight->format)->scratch_bytes(call); }
void linear(const Linear& call, int64_t unit0, int64_t unit1, Scratch& scratch) {
    find(call.weight->format)->run(call, unit0, unit1, scratch);
}

double dot_products(int64_t rounds) {
    using Dot = Isa::Dot<255>;
    constexpr int CHAINS = Isa::PARTS == 1 ? 16 : 8, STEPS = 8;  // enough for every pipe, few enough for the registers
    Isa::V w = Isa::set_bytes(3), a = Isa::set_bytes(1), sum = Isa::V{};
    Dot dot[CHAINS];
    RT_UNROLL for (int i = 0; i < CHAINS; ++i) dot[i].begin(Isa::V{});
    for (int64_t round = 0; round < rounds; ++round)
        RT_UNROLL for (int j = 0; j < STEPS; ++j)
            RT_UNROLL for (int i = 0; i < CHAINS; ++i) {
                Isa::hide(w);
                dot[i].step(w, a, j);
            }
    RT_UNROLL for (int i = 0; i < CHAINS; ++i) sum += dot[i].end<STEPS>(Isa::V{});
    Isa::hide(sum);
    return double(rounds) * STEPS * CHAINS * Isa::BYTES * 2;
}

// Fills the part of the table that this file is about.
inline void set_linear(Kernels& table) {
    table.name = Isa::NAME;
    table.packed_bytes = packed_bytes;
    table.pack = pack;
    table.activation_kind = activation_kind;
    table.activation_bytes = Activations<Isa>::bytes;
    table.activation_tiles = Activations<Isa>::tiles;
    table.prepare = Activations<Isa>::prepare;
    table.linear_units = linear_units;
    table.linear_scratch = linear_scratch;
    table.linear = linear;
    table.dot_products = dot_products;
}

}  // namespace
