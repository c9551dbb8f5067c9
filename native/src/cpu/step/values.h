// Elements of any dtype as floats. Like row.h, in an unnamed namespace.
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

// 1 / sqrt(mean of squares + eps), summed in f64, so that the order of the sum has no effect.
[[maybe_unused]] inline float norm_factor(const float* values, int64_t count, float eps) {
    double sum[4] = {};
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (int j = 0; j < 4; ++j) sum[j] += double{values[i + j]} * double{values[i + j]};
    for (; i < count; ++i) sum[0] += double{values[i]} * double{values[i]};
    const double mean = (sum[0] + sum[1] + sum[2] + sum[3]) / static_cast<double>(count);
    return static_cast<float>(1.0 / __builtin_sqrt(mean + double{eps}));
}

// x / (1 + exp(-x)), with an exponential that compilers vectorise: infinite above 2^127.5, 0 below 2^-126.5.
[[maybe_unused]] inline float silu(float x) {
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    float power = -1.44269504f * x;
    power = power < 128.0f ? power : 128.0f;
    power = power > -127.0f ? power : -127.0f;
    const float whole = (power + shifter) - shifter, rest = power - whole;
    float fraction = exp2_polynomial[0];
    for (int i = 1; i < 7; ++i) fraction = fraction * rest + exp2_polynomial[i];
    const float scale = f32_of_bits(static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23);
    return x / (1.0f + fraction * scale);
}

}  // namespace
}  // namespace mustafar
