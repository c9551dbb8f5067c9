#include "cpu/step/dot.h"
#include "cpu/step/values.h"

namespace mustafar {
namespace {

template <class T>
void dot(const void* weight, int64_t stride, const float* x, int inputs, int64_t count, float* sums) {
    constexpr int lanes = 8;
    for (int e = 0; e < inputs * dot_rows; ++e) {
        const float* const factors = x + e / dot_rows * count;
        const auto* row = elements<T>(weight) + e % dot_rows * stride;
        float partial[lanes] = {};
        int64_t i = 0;
        for (; i + lanes <= count; i += lanes)
            for (int j = 0; j < lanes; ++j) partial[j] += factors[i + j] * T::load(row[i + j]);
        float sum = 0.0f;
        for (; i < count; ++i) sum += factors[i] * T::load(row[i]);
        for (const float part : partial) sum += part;
        sums[e] = sum;
    }
}

}  // namespace

Dot scalar_dot(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? dot<F32> : dtype == MUSTAFAR_DTYPE_F16 ? dot<F16> : dot<BF16>;
}

}  // namespace mustafar
