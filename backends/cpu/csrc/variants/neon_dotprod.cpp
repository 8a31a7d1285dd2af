#include "../isa/neon.h"

#include "../linear_table.inl"

namespace rt {

const Kernels* kernels_neon_dotprod() {
    static const Kernels table = [] {
        Kernels all{};
        set_linear(all);
        return all;
    }();
    return &table;
}

}  // namespace rt
