// Rows of dense tensors of any dtype.
#pragma once

#include <cstdint>

#include "mustafar/mustafar.h"

namespace mustafar {

// Address of a row.
inline char* row_address(const mustafar_dense& dense, int64_t batch, int64_t head, int64_t token, int element) {
    return static_cast<char*>(dense.data) +
           (batch * dense.batch_stride + head * dense.head_stride + token * dense.token_stride) * element;
}

// The row's numbers in f32, which holds them exactly.
void widen_row(int32_t dtype, const void* row, int head_dim, float* numbers);

}  // namespace mustafar
