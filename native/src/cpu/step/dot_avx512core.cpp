#include <immintrin.h>

#include "cpu/step/dot.h"
#include "cpu/step/values.h"

namespace mustafar {
namespace {

// The elements that the mask selects, the others as zeros.
template <class T>
MUSTAFAR_INLINE __m512 load(__mmask16 mask, const typename T::Bits* source) {
    if constexpr (sizeof(typename T::Bits) == 4) return _mm512_maskz_loadu_ps(mask, source);
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, source);
    if constexpr (T::infinity == F16::infinity) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

template <class T, int Inputs>
void multiply(const void* weight, int64_t stride, const float* x, int64_t count, float* sums) {
    const auto* row = elements<T>(weight);
    __m512 partial[Inputs][dot_rows] = {};
    const auto step = [&](int64_t i, __mmask16 mask) MUSTAFAR_INLINE_LAMBDA {
        __m512 factors[Inputs];
#pragma GCC unroll 4
        for (int n = 0; n < Inputs; ++n) factors[n] = _mm512_maskz_loadu_ps(mask, x + n * count + i);
#pragma GCC unroll 4
        for (int r = 0; r < dot_rows; ++r) {
            const __m512 weights = load<T>(mask, row + r * stride + i);
#pragma GCC unroll 4
            for (int n = 0; n < Inputs; ++n) partial[n][r] = _mm512_fmadd_ps(weights, factors[n], partial[n][r]);
        }
    };
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) step(i, 0xffff);
    if (i < count) step(i, static_cast<__mmask16>((1u << (count - i)) - 1));
#pragma GCC unroll 4
    for (int n = 0; n < Inputs; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < dot_rows; ++r) sums[n * dot_rows + r] = _mm512_reduce_add_ps(partial[n][r]);
}

template <class T>
void dot(const void* weight, int64_t stride, const float* x, int inputs, int64_t count, float* sums) {
    switch (inputs) {
        case 1: return multiply<T, 1>(weight, stride, x, count, sums);
        case 2: return multiply<T, 2>(weight, stride, x, count, sums);
        case 3: return multiply<T, 3>(weight, stride, x, count, sums);
        default: return multiply<T, 4>(weight, stride, x, count, sums);
    }
}

}  // namespace

Dot avx512core_dot(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? dot<F32> : dtype == MUSTAFAR_DTYPE_F16 ? dot<F16> : dot<BF16>;
}

}  // namespace mustafar
