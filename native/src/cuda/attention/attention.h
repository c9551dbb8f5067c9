#pragma once

#include "core/error.h"
#include "mustafar/mustafar.h"

namespace mustafar::cuda {

int64_t attention_workspace(const mustafar_context& context, const mustafar_attention& attention);
void attention(const mustafar_context& context, const mustafar_attention& attention);

}  // namespace mustafar::cuda
