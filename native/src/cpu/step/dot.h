// The inner loop of a linear layer, for each instruction set.
#pragma once

#include <cstdint>

namespace mustafar {

constexpr int dot_rows = 4;    // rows of the weight that are read at once
constexpr int dot_inputs = 4;  // rows of the input that they are multiplied by, at most

// sums[n * dot_rows + r] = weight row r . x row n, for dot_rows rows `stride` elements apart and `inputs` rows of x, `count` elements
// apart, in f32. A sum does not depend on the other rows.
using Dot = void (*)(const void* weight, int64_t stride, const float* x, int inputs, int64_t count, float* sums);

Dot scalar_dot(int32_t dtype);
#if defined(__x86_64__)
Dot avx2_dot(int32_t dtype);
Dot avx512core_dot(int32_t dtype);
#endif

}  // namespace mustafar
