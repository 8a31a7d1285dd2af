#include "../isa/base.h"

#include "../linear_table.inl"

namespace rt {

const Kernels* kernels_base() {
    static const Kernels table = [] {
        Kernels all{};
        set_linear(all);
        return all;
    }();
    return &table;
}

}  // namespace rt
