// Products with integers by AVX2: values are widened to 16 bits and multiplied with digits of 16 bits, of which one is
// as good as two of 8. A vector of values is 32 bytes; its products with four digits each are two vectors of two sums
// each.
#include <immintrin.h>

#include "cpu/quads_kernels.h"

namespace mustafar {
namespace {

struct Avx2 {
    static constexpr int bytes = 32, rows = 2, shift = 11;
    using Digit = int16_t;
    struct Two {
        __m256i first, second;
    };
    using Values = Two;
    using Part = __m256i;
    using Sum = Two;

    static constexpr int digits(bool wide) { return wide ? 2 : 1; }
    static constexpr int bias(int bits) { return bits == 8 ? 128 : 8; }

    MUSTAFAR_INLINE static Sum zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    MUSTAFAR_INLINE static Values load(const char* values) {
        return {_mm256_cvtepu8_epi16(half(values)), _mm256_cvtepu8_epi16(half(values + 16))};
    }
    MUSTAFAR_INLINE static Values low(const char* values) {
        return {_mm256_cvtepu8_epi16(_mm_and_si128(half(values), nibbles())),
                _mm256_cvtepu8_epi16(_mm_and_si128(half(values + 16), nibbles()))};
    }
    MUSTAFAR_INLINE static Values high(const char* values) {
        return {_mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(half(values), 4), nibbles())),
                _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(half(values + 16), 4), nibbles()))};
    }
    MUSTAFAR_INLINE static Part broadcast(const void* digits) {
        int64_t four;
        std::memcpy(&four, digits, sizeof four);
        return _mm256_set1_epi64x(four);
    }
    MUSTAFAR_INLINE static Sum dot(Sum sum, Values values, Part part) {
        sum.first = _mm256_add_epi32(sum.first, _mm256_madd_epi16(values.first, part));
        sum.second = _mm256_add_epi32(sum.second, _mm256_madd_epi16(values.second, part));
        // GCC would add products to one another before it adds them to the sums, and run out of registers.
        asm("" : "+x"(sum.first), "+x"(sum.second));
        return sum;
    }
    MUSTAFAR_INLINE static Lanes<bytes>::Ints lanes(Sum sum) {
        const __m256i pairs = _mm256_hadd_epi32(sum.first, sum.second);  // of the lower and the upper halves
        return reinterpret_cast<Lanes<bytes>::Ints>(_mm256_permute4x64_epi64(pairs, 0xd8));
    }
    MUSTAFAR_INLINE static void widen(const uint16_t* halves, int count, float* out) {
        for (int i = 0; i < count; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half(halves + i)));
    }
    MUSTAFAR_INLINE static void spread(const int8_t* values, const uint8_t* places, int8_t* out) {
        const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
        const __m128i p = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(places));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(x, p));
    }

private:
    MUSTAFAR_INLINE static __m128i half(const void* address) {
        return _mm_loadu_si128(static_cast<const __m128i*>(address));
    }
    MUSTAFAR_INLINE static __m128i nibbles() { return _mm_set1_epi8(15); }
};

}  // namespace

const QuadKernels& avx2_quad_kernels() {
    return quad_table<Avx2>;
}

}  // namespace mustafar
