// AVX-512 without VBMI2: 16-bit values are widened before vexpandps puts them in place.
#include "cpu/avx512_f32.h"

namespace mustafar {

const Kernels& avx512core_kernels(int32_t dtype, int words) {
    return table_for<Tables>(dtype, words);
}

}  // namespace mustafar
