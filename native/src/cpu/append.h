#pragma once

#include "mustafar/mustafar.h"

namespace mustafar {

void append(const mustafar_context& context, const mustafar_append& append);

}  // namespace mustafar
