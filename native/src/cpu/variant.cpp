#include "cpu/variant.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

#include "core/error.h"

namespace mustafar {
namespace {

constexpr const char* names[] = {"auto", "scalar", "avx2", "avx512", "avx512bf16", "neon", "avx512core"};

// From slowest to fastest.
constexpr int32_t order[] = {MUSTAFAR_CPU_VARIANT_SCALAR, MUSTAFAR_CPU_VARIANT_NEON,
                             MUSTAFAR_CPU_VARIANT_AVX2,   MUSTAFAR_CPU_VARIANT_AVX512_CORE,
                             MUSTAFAR_CPU_VARIANT_AVX512, MUSTAFAR_CPU_VARIANT_AVX512_BF16};
static_assert(std::size(order) + 1 == std::size(names));

bool is_available(int32_t variant) {
    return available_variants() >> variant & 1;
}

// "scalar, avx2": the variants that this CPU supports.
std::string available_names() {
    std::string text;
    for (const int32_t variant : order)
        if (is_available(variant)) text += (text.empty() ? "" : ", ") + std::string(names[variant]);
    return text;
}

#if defined(__x86_64__)
// Not among the names that clang's __builtin_cpu_supports knows. The answer for AVX2 says whether the operating system
// saves the registers.
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
    const bool avx512core = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool avx512 = avx512core && __builtin_cpu_supports("avx512vbmi2") &&
                        __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni");
    if (avx2) variants |= 1u << MUSTAFAR_CPU_VARIANT_AVX2;
    if (avx512core) variants |= 1u << MUSTAFAR_CPU_VARIANT_AVX512_CORE;
    if (avx512) variants |= 1u << MUSTAFAR_CPU_VARIANT_AVX512;
    if (avx512 && __builtin_cpu_supports("avx512bf16")) variants |= 1u << MUSTAFAR_CPU_VARIANT_AVX512_BF16;
#elif defined(__aarch64__)
    variants |= 1u << MUSTAFAR_CPU_VARIANT_NEON;  // every 64-bit ARM CPU has it
#endif
    return variants;
}

// Whether a variant pays off on this CPU. Intel's take four times as long for a vdpbf16ps as for a fused multiply-add
// of f32 (Emerald Rapids), and two of these do the same work; AMD's are at least as fast with vdpbf16ps.
bool pays(int32_t variant) {
#if defined(__x86_64__)
    if (variant == MUSTAFAR_CPU_VARIANT_AVX512_BF16) return !__builtin_cpu_is("intel");
#endif
    return variant != MUSTAFAR_CPU_VARIANT_AUTO;
}

int32_t choose() {
    const char* const wanted = std::getenv("MUSTAFAR_CPU_VARIANT");
    if (wanted != nullptr && *wanted != '\0' && std::strcmp(wanted, names[MUSTAFAR_CPU_VARIANT_AUTO]) != 0) {
        const auto is_wanted = [&](int32_t variant) { return std::strcmp(wanted, names[variant]) == 0; };
        const int32_t* const named = std::find_if(std::begin(order), std::end(order), is_wanted);
        const bool known = named != std::end(order);
        if (known && is_available(*named)) return *named;
        fail(MUSTAFAR_STATUS_UNSUPPORTED,
             "environment variable MUSTAFAR_CPU_VARIANT: expected auto or a variant that this processor supports (%s), "
             "got '%.40s', %s",
             available_names().c_str(), wanted, known ? "which it does not support" : "which is not a variant");
    }
    int32_t best = MUSTAFAR_CPU_VARIANT_SCALAR;
    for (const int32_t variant : order)
        if (is_available(variant) && pays(variant)) best = variant;
    return best;
}

}  // namespace

uint32_t available_variants() {
    static const uint32_t variants = detect();
    return variants;
}

bool has_avx512_vnni() {
#if defined(__x86_64__)
    static const bool has = __builtin_cpu_supports("avx512vnni");
    return has;
#else
    return false;
#endif
}

int32_t default_variant() {
    static const int32_t variant = choose();
    return variant;
}

int32_t resolved_variant(int32_t variant) {
    if (variant == MUSTAFAR_CPU_VARIANT_AUTO) return default_variant();
    if (!is_available(variant))
        fail(MUSTAFAR_STATUS_UNSUPPORTED,
             "context.cpu_variant: expected a variant that this processor supports (%s), got %s",
             available_names().c_str(), names[variant]);
    return variant;
}

}  // namespace mustafar
