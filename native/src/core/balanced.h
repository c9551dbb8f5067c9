// The balanced patterns: which elements form a unit, and which of them are kept. The public header has the rule in words.
// Everything here is usable in device code.
#pragma once

#include <cstdint>

#include "mustafar/mustafar.h"

namespace mustafar {

constexpr int unit_elements = 16;  // four groups of four
constexpr int fewest_balanced = 5, most_balanced = 8;

// Elements kept of a unit.
constexpr int balanced_kept(int head_dim, int keep) {
    return keep * unit_elements / head_dim;
}
constexpr int balanced_kept(const mustafar_format& format) {
    return balanced_kept(format.head_dim, format.keep);
}

// Six bits for each unit of a block.
constexpr int balanced_code_bytes(int head_dim) {
    return MUSTAFAR_BLOCK_TOKENS * head_dim / unit_elements * 6 / 8;
}

// Element m of group i stands at bit 4m + i of a unit's mask; of equal magnitudes the lower bit is kept.

// First channel of group 0 of a key's unit; channel (i, m) is 4i + m * head_dim / 4 further.
constexpr int key_unit_channel(int unit) {
    return unit / 4 * 16 + unit % 4;
}

// Rank of an element: magnitudes in the order of `key`, unique within a unit, never 0.
template <class Rank>
constexpr Rank unit_rank(Rank key, int bit) {
    return (key << 4 | static_cast<Rank>(15 - bit)) + 1;
}

template <class Rank>
constexpr Rank lower(Rank a, Rank b) {
    return b < a ? b : a;
}
template <class Rank>
constexpr Rank higher(Rank a, Rank b) {
    return a < b ? b : a;
}

// Mask of the `kept` elements (5 ... 8) of a unit.
template <class Rank>
constexpr uint32_t select_unit(const Rank (&rank)[unit_elements], int kept) {
    Rank first[4] = {}, second[4] = {};
    for (int i = 0; i < 4; ++i) {
        const Rank a = higher(rank[i], rank[4 + i]), b = lower(rank[i], rank[4 + i]);
        const Rank c = higher(rank[8 + i], rank[12 + i]), d = lower(rank[8 + i], rank[12 + i]);
        first[i] = higher(a, c);
        second[i] = higher(lower(a, c), higher(b, d));
    }
    // The eight candidates but the smallest 8 - kept.
    Rank dropped = 0;
    for (int drop = most_balanced; drop > kept; --drop) {
        Rank next = static_cast<Rank>(~Rank{0});
        for (int i = 0; i < 4; ++i) {
            if (first[i] > dropped) next = lower(next, first[i]);
            if (second[i] > dropped) next = lower(next, second[i]);
        }
        dropped = next;
    }
    uint32_t mask = 0;
    for (int bit = 0; bit < unit_elements; ++bit)
        mask |= static_cast<uint32_t>(rank[bit] > dropped && rank[bit] >= second[bit & 3]) << bit;
    return mask;
}

}  // namespace mustafar
