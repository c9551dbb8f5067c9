// The library's limits, as it checks them and as mustafar_get_limits reports them.
#pragma once

#include <iterator>

#include "core/format.h"

namespace mustafar {

constexpr int32_t head_dims[] = {64, 80, 96, 128, 256};
constexpr int32_t max_group_size = 1 << 20, max_local_window = 1 << 24, max_lookahead = 1 << 20;

constexpr mustafar_limits limits() {
    return {.block_tokens = block_tokens,
            .balanced_unit = unit_elements,
            .fewest_balanced = fewest_balanced,
            .most_balanced = most_balanced,
            .max_group_size = max_group_size,
            .max_local_window = max_local_window,
            .max_lookahead = max_lookahead,
            .num_head_dims = int32_t{std::size(head_dims)},
            .head_dims = head_dims};
}

}  // namespace mustafar
