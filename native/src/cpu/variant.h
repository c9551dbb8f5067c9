// Which instruction set variants this CPU and operating system support.
#pragma once

#include <cstdint>

namespace mustafar {

// Bit v: mustafar_cpu_variant v.
uint32_t available_variants();
// Never AUTO; throws Error if MUSTAFAR_CPU_VARIANT names none that the CPU supports.
int32_t default_variant();
// Whether the CPU has AVX-512 VNNI: avx512core multiplies integers with it if available.
bool has_avx512_vnni();
// Resolves AUTO; throws Error for a variant that is not available.
int32_t resolved_variant(int32_t variant);

}  // namespace mustafar
