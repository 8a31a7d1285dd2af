// Vectors of RT_LANES floats in the compiler's own notation; what needs an instruction is in the file of each set.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = RT_LANES;

typedef float vf __attribute__((vector_size(4 * RT_LANES)));
typedef int32_t vi __attribute__((vector_size(4 * RT_LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * RT_LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * RT_LANES)));
typedef int8_t vb __attribute__((vector_size(RT_LANES)));

}  // namespace
