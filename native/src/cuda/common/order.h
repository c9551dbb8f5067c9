// Which order the values of a format really have.
#pragma once

#include "core/format.h"

namespace mustafar::cuda {

// The fragment orders exist where tensor cores read blocks directly: FIXED, 16-bit values, head_dim 64 and 128. For any
// other format they are the plain order.
constexpr bool has_fragment_order(const mustafar_format& format) {
    return format.order != MUSTAFAR_ORDER_PLAIN && format.layout == MUSTAFAR_LAYOUT_FIXED &&
           format.dtype != MUSTAFAR_DTYPE_F32 && (format.head_dim == 64 || format.head_dim == 128);
}

// How a kernel places values. The two fragment orders differ; where the call does not say by itself whether it handles
// keys or values, the format does.
enum class ValueOrder : int32_t { plain, keys, values };

constexpr ValueOrder value_order(const mustafar_format& format, bool keys) {
    return !has_fragment_order(format) ? ValueOrder::plain : keys ? ValueOrder::keys : ValueOrder::values;
}

constexpr ValueOrder value_order(const mustafar_format& format) {
    return value_order(format, format.order != MUSTAFAR_ORDER_VALUE_FRAGMENT);
}

}  // namespace mustafar::cuda
