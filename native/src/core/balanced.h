// The balanced patterns: which elements form a unit. The public header states the rule for which of them are kept.
// Everything here is usable in device code.
#pragma once

#include <cstdint>

#include "mustafar/mustafar.h"

namespace mustafar {

constexpr int unit_elements = 16;  // four groups of four
constexpr int fewest_balanced = 5, most_balanced = 8;

// Number of elements kept of a unit.
constexpr int balanced_kept(int head_dim, int keep) {
    return keep * unit_elements / head_dim;
}
constexpr int balanced_kept(const mustafar_format& format) {
    return balanced_kept(format.head_dim, format.keep);
}

// Six bits per unit of a block.
constexpr int balanced_code_bytes(int head_dim) {
    return MUSTAFAR_BLOCK_TOKENS * head_dim / unit_elements * 6 / 8;
}

// Element m of group i is bit 4m + i of a unit's mask; among equal magnitudes the lower bit is kept.

// First channel of group 0 of a key's unit; channel (i, m) is 4i + m * head_dim / 4 further on.
constexpr int key_unit_channel(int unit) {
    return unit / 4 * 16 + unit % 4;
}

}  // namespace mustafar
