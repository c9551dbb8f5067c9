#include "cpu/dense_row.h"

#include "cpu/row.h"

namespace mustafar {
namespace {

template <class T>
void widen(const void* source, int head_dim, float* numbers) {
    const typename T::Bits* row = static_cast<const typename T::Bits*>(source);
    for (int c = 0; c < head_dim; ++c) numbers[c] = T::load(row[c]);
}

}  // namespace

void widen_row(int32_t dtype, const void* row, int head_dim, float* numbers) {
    dtype == MUSTAFAR_DTYPE_F32   ? widen<F32>(row, head_dim, numbers)
    : dtype == MUSTAFAR_DTYPE_F16 ? widen<F16>(row, head_dim, numbers)
                                  : widen<BF16>(row, head_dim, numbers);
}

}  // namespace mustafar
