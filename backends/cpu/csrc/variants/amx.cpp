// The AVX-512 BF16 variant with the linears of amx.inl; everything else is that variant's own code.
#include "../isa/avx512.h"
#include "../isa/tiles_amx.h"

#include "../amx.inl"

namespace rt {

const Kernels* kernels_amx() {
    static const Kernels table = tile_table();
    return &table;
}

}  // namespace rt
