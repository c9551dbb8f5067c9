#include "cpu/kernels.h"

#include "cpu/variant.h"

namespace mustafar {

const Kernels& kernels(int32_t variant, const mustafar_format& format) {
    const int words = bitmap_words(format.head_dim);
    switch (resolved_variant(variant)) {
#if defined(__x86_64__)
        case MUSTAFAR_CPU_VARIANT_AVX512_BF16: return avx512bf16_kernels(format.dtype, words);
        case MUSTAFAR_CPU_VARIANT_AVX512: return avx512_kernels(format.dtype, words);
        case MUSTAFAR_CPU_VARIANT_AVX512_CORE: return avx512core_kernels(format.dtype, words);
        case MUSTAFAR_CPU_VARIANT_AVX2: return avx2_kernels(format.dtype, words);
#elif defined(__aarch64__)
        case MUSTAFAR_CPU_VARIANT_NEON: return neon_kernels(format.dtype, words);
#endif
        default: return scalar_kernels(format.dtype, words);
    }
}

}  // namespace mustafar
