// AVX-512 with VBMI2: vpexpandw expands bf16 as stored.
#include "cpu/avx512_f32.h"

namespace mustafar {

const Kernels& avx512_kernels(int32_t dtype, int words) {
    return table_for<Tables>(dtype, words);
}

}  // namespace mustafar
