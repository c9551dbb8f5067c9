// Which instruction set variants this processor and operating system can run.
#pragma once

#include <cstdint>

namespace mustafar {

uint32_t available_variants();  // bit v: mustafar_cpu_variant v
int32_t default_variant();      // never AUTO
// Resolves AUTO; throws Error for a variant that is not available.
int32_t resolved_variant(int32_t variant);

}  // namespace mustafar
