// AVX-512 VNNI without VBMI2.
#include "cpu/quads_avx512.h"

namespace mustafar {

const QuadKernels& avx512vnni_quad_kernels() {
    return quad_table<Vnni, PackedVnni>;
}

}  // namespace mustafar
