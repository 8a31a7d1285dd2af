// The table of one variant; included last.
#pragma once

namespace {

const rt::RowKernels* table(const char* name) {
    static const rt::RowKernels kernels = {
        name,       kLanes, kHasDots, rms_norm, layer_norm,  rope,         activation, glu,
        add,        mul,    multiply_add,    softcap,  softmax,  largest,     weights, weight_sums, maxima, collect, has_nan, from_f32,   to_f32,
        query_bytes, pack_queries, attend,   merge,    finish,      kv_store,     kv_load,
    };
    return &kernels;
}

}  // namespace
