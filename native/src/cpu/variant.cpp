#include "cpu/variant.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace mustafar {
namespace {

constexpr const char* names[] = {"auto", "scalar", "avx2", "avx512", "avx512bf16", "neon"};

#if defined(__x86_64__)
// Not among the names that clang's __builtin_cpu_supports knows. Whether the operating system keeps the registers is
// what AVX2 answers.
bool has_f16c() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

uint32_t detect() {
    uint32_t variants = 1u << MUSTAFAR_CPU_VARIANT_AUTO | 1u << MUSTAFAR_CPU_VARIANT_SCALAR;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
                        __builtin_cpu_supports("avx512vpopcntdq");
    if (avx2) variants |= 1u << MUSTAFAR_CPU_VARIANT_AVX2;
    if (avx512) variants |= 1u << MUSTAFAR_CPU_VARIANT_AVX512;
    if (avx512 && __builtin_cpu_supports("avx512bf16")) variants |= 1u << MUSTAFAR_CPU_VARIANT_AVX512_BF16;
#elif defined(__aarch64__)
    variants |= 1u << MUSTAFAR_CPU_VARIANT_NEON;  // every 64-bit ARM processor has it
#endif
    return variants;
}

// Whether a variant pays off on this processor. Intel's need four times as long for a vdpbf16ps as for a fused multiply-add
// of f32 (Emerald Rapids), and two of these do the same work; AMD's are at least as fast with vdpbf16ps.
bool pays(int32_t variant) {
#if defined(__x86_64__)
    if (variant == MUSTAFAR_CPU_VARIANT_AVX512_BF16) return !__builtin_cpu_is("intel");
#endif
    return variant != MUSTAFAR_CPU_VARIANT_AUTO;
}

int32_t choose() {
    const uint32_t variants = available_variants();
    if (const char* wanted = std::getenv("MUSTAFAR_CPU_VARIANT"))
        for (int32_t v = MUSTAFAR_CPU_VARIANT_SCALAR; v <= MUSTAFAR_CPU_VARIANT_NEON; ++v)
            if (std::strcmp(wanted, names[v]) == 0 && (variants >> v & 1)) return v;
    int32_t best = MUSTAFAR_CPU_VARIANT_SCALAR;
    for (int32_t v = best; v <= MUSTAFAR_CPU_VARIANT_NEON; ++v)
        if ((variants >> v & 1) && pays(v)) best = v;
    return best;
}

}  // namespace

uint32_t available_variants() {
    static const uint32_t variants = detect();
    return variants;
}

int32_t default_variant() {
    static const int32_t variant = choose();
    return variant;
}

int32_t resolved_variant(int32_t variant) {
    if (variant == MUSTAFAR_CPU_VARIANT_AUTO) return default_variant();
    if (!(available_variants() >> variant & 1))
        fail(MUSTAFAR_STATUS_UNSUPPORTED, "context.cpu_variant: this processor does not have %s", names[variant]);
    return variant;
}

}  // namespace mustafar
