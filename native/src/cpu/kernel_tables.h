// Which of an instruction set's tables supports a format. Like row.h, compiled for each instruction set.
#pragma once

#include "cpu/kernels.h"
#include "cpu/row.h"

namespace mustafar {
namespace {

// Tables::of<T, W> is the table for a dtype and W bitmap words per token.
template <class Tables, class T>
const Kernels& table_for(int words) {
    return words == 2   ? Tables::template of<T, 2>
           : words == 3 ? Tables::template of<T, 3>
           : words == 4 ? Tables::template of<T, 4>
                        : Tables::template of<T, 8>;
}

template <class Tables>
[[maybe_unused]] const Kernels& table_for(int32_t dtype, int words) {
    return dtype == MUSTAFAR_DTYPE_F32   ? table_for<Tables, F32>(words)
           : dtype == MUSTAFAR_DTYPE_F16 ? table_for<Tables, F16>(words)
                                         : table_for<Tables, BF16>(words);
}

}  // namespace
}  // namespace mustafar
