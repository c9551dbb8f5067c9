// Which order the values of a format really have.
#pragma once

#include "core/format.h"

namespace mustafar::cuda {

// What says which channels a block has: a bitmap, the positions of a balanced pattern (in fragment order), or nothing where it has
// all.
enum class Arrangement : uint8_t { bitmap, balanced, all };

constexpr Arrangement arrangement_of(const mustafar_format& format) {
    if (keeps_all(format)) return Arrangement::all;
    return has_fragment_order(format) && has_positions(format) ? Arrangement::balanced : Arrangement::bitmap;
}

// How a kernel places values. The fragment orders of keys and values differ; where the call does not say by itself which of
// them it handles, the format does.
struct ValueOrder {
    bool fragment;  // else plain
    bool keys;
    Arrangement arrangement;
    uint8_t integer_bits;  // 0: native values
    bool rotated;
};

constexpr ValueOrder value_order(const mustafar_format& format, bool keys) {
    return {has_fragment_order(format), keys, arrangement_of(format),
            static_cast<uint8_t>(has_integers(format) ? value_bits(format) : 0), is_rotated(format)};
}

constexpr ValueOrder value_order(const mustafar_format& format) {
    return value_order(format, is_balanced(format) ? format.pattern == MUSTAFAR_PATTERN_BALANCED_KEYS
                                                   : format.order != MUSTAFAR_ORDER_VALUE_FRAGMENT);
}

}  // namespace mustafar::cuda
