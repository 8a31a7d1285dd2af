// Names must be known without touching a variant's table: its code may not run here.
#include "cpuid.h"

namespace rt {
namespace {

bool always() { return true; }

#if defined(__x86_64__) || defined(__i386__)
[[maybe_unused]] bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
// __builtin_cpu_supports does not know "avxvnni" in every compiler this builds with; the operating system's part is
// AVX's, which has_avx2 checked. Leaf 7, subleaf 1, EAX bit 4.
[[maybe_unused]] bool has_avxvnni() {
    unsigned eax = 7, ebx = 0, ecx = 1, edx = 0, most = 0;
    __asm__ volatile("cpuid" : "+a"(most), "=b"(ebx), "=c"(ecx), "=d"(edx) : "c"(0));
    if (most < 7 || !has_avx2()) return false;
    ecx = 1;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return eax >> 4 & 1;
}
[[maybe_unused]] bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
[[maybe_unused]] bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

const Variant VARIANTS[] = {
    {"base", kernels_base, always},
#if defined(RT_HAS_AVX2)
    {"avx2", kernels_avx2, has_avx2},
#endif
#if defined(RT_HAS_AVXVNNI)
    {"avxvnni", kernels_avxvnni, has_avxvnni},
#endif
#if defined(RT_HAS_AVX512_256)
    {"avx512-256", kernels_avx512_256, has_avx512},
#endif
#if defined(RT_HAS_AVX512)
    {"avx512", kernels_avx512, has_avx512},
#endif
#if defined(RT_HAS_AVX512BF16)
    {"avx512-bf16", kernels_avx512bf16, has_avx512bf16},
#endif
};

}  // namespace

int num_variants() { return int(sizeof VARIANTS / sizeof *VARIANTS); }
const Variant& variant(int i) { return VARIANTS[i]; }

const Kernels* best_kernels() {
    int best = 0;
    for (int i = 0; i < num_variants(); ++i)
        if (VARIANTS[i].usable()) best = i;
    return VARIANTS[best].kernels();
}

}  // namespace rt
