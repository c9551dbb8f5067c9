// Which order the values of a format really have.
#pragma once

#include "core/format.h"

namespace mustafar::cuda {

// How a kernel places values. The fragment orders of keys and values differ; where the call does not say by itself which of
// them it handles, the format does.
enum class ValueOrder : int32_t {
    plain,
    keys,
    values,
    balanced_keys,
    balanced_values,
    int4_keys,
    int4_values,
    int8_keys,
    int8_values
};

constexpr ValueOrder value_order(const mustafar_format& format, bool keys) {
    if (!has_fragment_order(format)) return ValueOrder::plain;
    if (format.value_format == MUSTAFAR_VALUE_FORMAT_INT4)
        return keys ? ValueOrder::int4_keys : ValueOrder::int4_values;
    if (format.value_format == MUSTAFAR_VALUE_FORMAT_INT8)
        return keys ? ValueOrder::int8_keys : ValueOrder::int8_values;
    if (is_balanced(format)) return keys ? ValueOrder::balanced_keys : ValueOrder::balanced_values;
    return keys ? ValueOrder::keys : ValueOrder::values;
}

constexpr ValueOrder value_order(const mustafar_format& format) {
    return value_order(format, is_balanced(format) ? format.pattern == MUSTAFAR_PATTERN_BALANCED_KEYS
                                                   : format.order != MUSTAFAR_ORDER_VALUE_FRAGMENT);
}

constexpr bool is_balanced_order(ValueOrder order) {
    return order == ValueOrder::balanced_keys || order == ValueOrder::balanced_values;
}

constexpr bool is_integer_order(ValueOrder order) {
    return order >= ValueOrder::int4_keys;
}

constexpr bool is_key_order(ValueOrder order) {
    return order == ValueOrder::keys || order == ValueOrder::balanced_keys || order == ValueOrder::int4_keys ||
           order == ValueOrder::int8_keys;
}

}  // namespace mustafar::cuda
