#pragma once

#include "cuda/attention/params.h"
#include "cuda/common/launch.h"

namespace mustafar::cuda {

// Attention over blocks in plain order: any dtype, head_dim and layout.
void attention_portable(const DeviceScope& scope, const mustafar_format& format, const AttentionParams& params);

}  // namespace mustafar::cuda
