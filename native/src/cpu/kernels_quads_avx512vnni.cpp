// Products with integers by AVX-512 VNNI.
#include <immintrin.h>

#include "cpu/quads_kernels.h"

namespace mustafar {
namespace {

struct Vnni {
    static constexpr int bytes = 64, rows = 4, shift = 7;
    using Digit = int8_t;
    using Values = __m512i;
    using Part = __m512i;
    using Sum = __m512i;

    static constexpr int digits(bool wide) { return wide ? 3 : 2; }
    static constexpr int bias(int bits) { return bits == 8 ? 128 : 8; }

    MUSTAFAR_INLINE static Sum zero() { return _mm512_setzero_si512(); }
    MUSTAFAR_INLINE static Values load(const char* values) { return _mm512_loadu_si512(values); }
    MUSTAFAR_INLINE static Values low(const char* values) { return _mm512_and_si512(load(values), nibbles()); }
    MUSTAFAR_INLINE static Values high(const char* values) {
        return _mm512_and_si512(_mm512_srli_epi16(load(values), 4), nibbles());
    }
    MUSTAFAR_INLINE static Part broadcast(const void* digits) {
        int32_t four;
        std::memcpy(&four, digits, sizeof four);
        return _mm512_set1_epi32(four);
    }
    MUSTAFAR_INLINE static Sum dot(Sum sum, Values values, Part part) { return _mm512_dpbusd_epi32(sum, values, part); }
    MUSTAFAR_INLINE static void store(Sum sum, int32_t* out) { _mm512_store_si512(out, sum); }
    MUSTAFAR_INLINE static void widen(const uint16_t* halves, int count, float* out) {
        for (int i = 0; i < count; i += 16)
            _mm512_store_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves + i))));
    }

private:
    MUSTAFAR_INLINE static __m512i nibbles() { return _mm512_set1_epi8(15); }
};

}  // namespace

const QuadKernels& avx512vnni_quad_kernels() {
    return quad_table<Vnni>;
}

}  // namespace mustafar
