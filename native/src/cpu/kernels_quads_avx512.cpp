// AVX-512 VNNI with VBMI2.
#include "cpu/quads_avx512.h"

namespace mustafar {

const QuadKernels& avx512_quad_kernels() {
    return quad_table<Vnni, PackedVnni>;
}

}  // namespace mustafar
