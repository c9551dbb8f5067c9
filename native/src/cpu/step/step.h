// The operations of a decode step.
#pragma once

#include "mustafar/mustafar.h"

namespace mustafar {

void rms_norm(const mustafar_context& context, const mustafar_norm& norm);
void rotate(const mustafar_context& context, const mustafar_rope& rope);
void silu_mul(const mustafar_context& context, int32_t dtype, int64_t rows, int32_t width, const mustafar_rows& input,
              const mustafar_rows& output);
void linear(const mustafar_context& context, const mustafar_linear& linear);
bool linear_reads_once(const mustafar_context& context, const mustafar_linear& linear);
void sample(const mustafar_context& context, const mustafar_sampling& sampling);

}  // namespace mustafar
