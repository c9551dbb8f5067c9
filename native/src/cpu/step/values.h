// Elements of any dtype as floats. As row.h, in an unnamed namespace.
#pragma once

#include "core/format.h"
#include "cpu/row.h"

namespace mustafar {
namespace {  // NOLINT(cert-dcl59-cpp): see row.h

// Calls with F32, F16 or BF16.
template <class Call>
[[maybe_unused]] void with_dtype(int32_t dtype, const Call& call) {
    if (dtype == MUSTAFAR_DTYPE_F32)
        call(F32{});
    else if (dtype == MUSTAFAR_DTYPE_F16)
        call(F16{});
    else
        call(BF16{});
}

template <class T>
typename T::Bits* row_of(const mustafar_rows& rows, int64_t row) {
    return static_cast<typename T::Bits*>(rows.data) + row * rows.row_stride;
}

template <class T>
const typename T::Bits* elements(const void* data) {
    return static_cast<const typename T::Bits*>(data);
}

// 1 / sqrt(mean of squares + eps), summed in f64: the order of the sum then does not show.
[[maybe_unused]] inline float norm_factor(const float* values, int64_t count, float eps) {
    double sum[4] = {};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; ++j) sum[j] += double{values[i + j]} * double{values[i + j]};
    for (; i < count; ++i) sum[0] += double{values[i]} * double{values[i]};
    const double mean = (sum[0] + sum[1] + sum[2] + sum[3]) / static_cast<double>(count);
    return static_cast<float>(1.0 / __builtin_sqrt(mean + double{eps}));
}

[[maybe_unused]] inline float silu(float x) {
    return x / (1.0f + __builtin_expf(-x));
}

}  // namespace
}  // namespace mustafar
