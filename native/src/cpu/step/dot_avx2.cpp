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

template <class T>
void dot(const void* weight, int64_t stride, const float* x, int64_t count, float* sums) {
    const auto* row = elements<T>(weight);
    __m256 partial[dot_rows][2] = {};
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int half = 0; half < 2; ++half) {
            const __m256 factor = _mm256_loadu_ps(x + i + 8 * half);
            for (int r = 0; r < dot_rows; ++r)
                partial[r][half] = _mm256_fmadd_ps(load<T>(row + r * stride + i + 8 * half), factor, partial[r][half]);
        }
    for (int r = 0; r < dot_rows; ++r) {
        float rest = 0.0f;
        for (int64_t j = i; j < count; ++j) rest += x[j] * T::load(row[r * stride + j]);
        sums[r] = total(_mm256_add_ps(partial[r][0], partial[r][1])) + rest;
    }
}

}  // namespace

Dot avx2_dot(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? dot<F32> : dtype == MUSTAFAR_DTYPE_F16 ? dot<F16> : dot<BF16>;
}

}  // namespace mustafar
