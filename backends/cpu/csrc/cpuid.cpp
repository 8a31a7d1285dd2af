// Names must be known without touching a variant's table: its code may not run here.
#include "cpuid.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace rt {
namespace {

bool always() { return true; }

#if defined(__x86_64__) || defined(__i386__)
struct Leaf {
    unsigned eax, ebx, ecx, edx;
};
// Zeros where the processor has no such leaf.
[[maybe_unused]] Leaf cpuid(unsigned leaf, unsigned subleaf) {
    Leaf most{}, found{};
    __asm__ volatile("cpuid" : "=a"(most.eax), "=b"(most.ebx), "=c"(most.ecx), "=d"(most.edx) : "a"(0), "c"(0));
    if (most.eax < leaf) return found;
    __asm__ volatile("cpuid" : "=a"(found.eax), "=b"(found.ebx), "=c"(found.ecx), "=d"(found.edx)
                     : "a"(leaf), "c"(subleaf));
    return found;
}

[[maybe_unused]] bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
// __builtin_cpu_supports does not know "avxvnni" in every compiler this builds with; the operating system's part is
// AVX's, which has_avx2 checked. Leaf 7, subleaf 1, EAX bit 4.
[[maybe_unused]] bool has_avxvnni() { return has_avx2() && (cpuid(7, 1).eax >> 4 & 1); }
[[maybe_unused]] bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
[[maybe_unused]] bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// The processor has tiles (leaf 7, EDX: 22 bf16, 24 tiles, 25 int8), the system saves them (XCR0: 17 and 18), and this
// process is allowed to use them: Linux wants to be asked, because their 8 KB grow every thread's signal frames. The
// permission holds for all threads of the process, those that exist already too.
[[maybe_unused]] bool has_amx() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr unsigned TILES = 1u << 22 | 1u << 24 | 1u << 25, STATE = 3u << 17;
    if (!has_avx512bf16() || (cpuid(7, 0).edx & TILES) != TILES) return false;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & STATE) != STATE) return false;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}
#endif

#if defined(__aarch64__)
[[maybe_unused]] bool has_dotprod() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    int found = 0;
    size_t bytes = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &bytes, nullptr, 0) == 0 && found;
#else
    return false;
#endif
}
#endif

// Those that exist for tests stand before one that any processor that runs them can run, and are never the last.
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
#if defined(RT_HAS_AMX_EMULATED)
    {"amx-emulated", kernels_amx_emulated, has_avx512bf16},
#endif
#if defined(RT_HAS_AVX512BF16)
    {"avx512-bf16", kernels_avx512bf16, has_avx512bf16},
#endif
#if defined(RT_HAS_AMX)
    {"amx", kernels_amx, has_amx},
#endif
#if defined(RT_HAS_NEON)
    {"neon", kernels_neon, always},
#endif
#if defined(RT_HAS_NEON_DOTPROD)
    {"neon-dotprod", kernels_neon_dotprod, has_dotprod},
#endif
};

}  // namespace

int num_variants() { return int(sizeof VARIANTS / sizeof *VARIANTS); }
const Variant& variant(int i) { return VARIANTS[i]; }

}  // namespace rt
