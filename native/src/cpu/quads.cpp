#include "cpu/quads.h"

#include "cpu/variant.h"

namespace mustafar {

const QuadKernels* quad_kernels(int32_t variant) {
    switch (resolved_variant(variant)) {
#if defined(__x86_64__)
        case MUSTAFAR_CPU_VARIANT_AVX512_BF16:
        case MUSTAFAR_CPU_VARIANT_AVX512: return &avx512_quad_kernels();
        case MUSTAFAR_CPU_VARIANT_AVX512_CORE:
            return has_avx512_vnni() ? &avx512vnni_quad_kernels() : &avx2_quad_kernels();
        case MUSTAFAR_CPU_VARIANT_AVX2: return &avx2_quad_kernels();
#elif defined(__aarch64__)
        case MUSTAFAR_CPU_VARIANT_NEON: return &neon_quad_kernels();
#endif
        default: return nullptr;
    }
}

}  // namespace mustafar
