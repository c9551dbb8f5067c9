// Channel scales of keys; the public header has their rule.
#pragma once

#include <cstdint>
#include <functional>

namespace mustafar {

// factors [head_dim] from tokens 0 ... tokens - 1, whose rows are at row(t).
void compute_key_factors(int32_t dtype, int head_dim, int64_t tokens, const std::function<const char*(int64_t)>& row,
                         float* factors);

}  // namespace mustafar
