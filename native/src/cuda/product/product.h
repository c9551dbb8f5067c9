// The two sparse products, apart.
#pragma once

#include "core/error.h"
#include "mustafar/mustafar.h"

namespace mustafar::cuda {

void key_scores(const mustafar_context& context, const mustafar_product& product);
void value_sum(const mustafar_context& context, const mustafar_product& product);

}  // namespace mustafar::cuda
