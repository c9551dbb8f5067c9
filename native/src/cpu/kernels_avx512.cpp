// AVX-512 with VBMI2: vpexpandw expands 16-bit values as stored.
#include "cpu/avx512_f32.h"

namespace mustafar {

const Kernels& avx512_kernels(int32_t dtype, int words) {
    return table_for<Tables>(dtype, words);
}

}  // namespace mustafar
