#include <immintrin.h>

#include "cpu/step/dot.h"
#include "cpu/step/values.h"

namespace mustafar {
namespace {

template <class T>
MUSTAFAR_INLINE __m256 load(const typename T::Bits* source) {
    if constexpr (sizeof(typename T::Bits) == 4) return _mm256_loadu_ps(reinterpret_cast<const float*>(source));
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    if constexpr (T::infinity == F16::infinity) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

MUSTAFAR_INLINE float total(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

template <class T, int Inputs>
void multiply(const void* weight, int64_t stride, const float* x, int64_t count, float* sums) {
    const auto* row = elements<T>(weight);
    __m256 partial[Inputs][dot_rows] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 factors[Inputs];
#pragma GCC unroll 4
        for (int n = 0; n < Inputs; ++n) factors[n] = _mm256_loadu_ps(x + n * count + i);
#pragma GCC unroll 4
        for (int r = 0; r < dot_rows; ++r) {
            const __m256 weights = load<T>(row + r * stride + i);
#pragma GCC unroll 4
            for (int n = 0; n < Inputs; ++n) partial[n][r] = _mm256_fmadd_ps(weights, factors[n], partial[n][r]);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < Inputs; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < dot_rows; ++r) {
            float rest = 0.0f;
            for (int64_t j = i; j < count; ++j) rest += x[n * count + j] * T::load(row[r * stride + j]);
            sums[n * dot_rows + r] = total(partial[n][r]) + rest;
        }
}

// Two rows of the input at once, for which there are registers enough.
template <class T>
void dot(const void* weight, int64_t stride, const float* x, int inputs, int64_t count, float* sums) {
    int n = 0;
    for (; n + 2 <= inputs; n += 2) multiply<T, 2>(weight, stride, x + n * count, count, sums + n * dot_rows);
    if (n < inputs) multiply<T, 1>(weight, stride, x + n * count, count, sums + n * dot_rows);
}

}  // namespace

Dot avx2_dot(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? dot<F32> : dtype == MUSTAFAR_DTYPE_F16 ? dot<F16> : dot<BF16>;
}

}  // namespace mustafar
