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

template <class T>
void dot(const void* weight, int64_t stride, const float* x, int64_t count, float* sums) {
    const auto* row = elements<T>(weight);
    __m512 partial[dot_rows][2] = {};
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int half = 0; half < 2; ++half) {
            const __m512 factor = _mm512_loadu_ps(x + i + 16 * half);
            for (int r = 0; r < dot_rows; ++r)
                partial[r][half] =
                    _mm512_fmadd_ps(load<T>(0xffff, row + r * stride + i + 16 * half), factor, partial[r][half]);
        }
    for (; i < count; i += 16) {
        const __mmask16 mask = static_cast<__mmask16>(count - i >= 16 ? 0xffff : (1u << (count - i)) - 1);
        const __m512 factor = _mm512_maskz_loadu_ps(mask, x + i);
        for (int r = 0; r < dot_rows; ++r)
            partial[r][0] = _mm512_fmadd_ps(load<T>(mask, row + r * stride + i), factor, partial[r][0]);
    }
    for (int r = 0; r < dot_rows; ++r) sums[r] = _mm512_reduce_add_ps(_mm512_add_ps(partial[r][0], partial[r][1]));
}

}  // namespace

Dot avx512core_dot(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? dot<F32> : dtype == MUSTAFAR_DTYPE_F16 ? dot<F16> : dot<BF16>;
}

}  // namespace mustafar
