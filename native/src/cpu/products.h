#pragma once

#include "mustafar/mustafar.h"

namespace mustafar {

void key_scores(const mustafar_context& context, const mustafar_product& product);
void value_sum(const mustafar_context& context, const mustafar_product& product);

}  // namespace mustafar
