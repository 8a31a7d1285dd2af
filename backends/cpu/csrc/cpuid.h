// Which variants this library holds, and which of them this processor can run.
#pragma once

#include "kernels.h"

namespace rt {

struct Variant {
    const char* name;
    const Kernels* (*kernels)();
    bool (*usable)();
};

// From the plainest to the fastest.
int num_variants();
const Variant& variant(int i);

}  // namespace rt
