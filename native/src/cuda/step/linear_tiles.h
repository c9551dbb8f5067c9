// A linear layer on tensor cores, where it is the fastest way.
#pragma once

#include "cuda/common/launch.h"
#include "mustafar/mustafar.h"

namespace mustafar::cuda {

// Whether tensor cores serve a layer: 2 to 32 rows of 16 bits that lie as tensor copies want them, without a norm, on Hopper, for which
// the kernel was made.
bool serves_tiles(const DeviceProperties& device, const mustafar_linear& linear);

void linear_on_tiles(const DeviceScope& scope, const mustafar_linear& linear);

}  // namespace mustafar::cuda
