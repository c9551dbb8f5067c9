// Geometry of the compressed format; the text of the format stands in the public header.
#pragma once

#include <cstdint>

#include "mustafar/mustafar.h"

namespace mustafar {

constexpr int block_tokens = MUSTAFAR_BLOCK_TOKENS;
constexpr int max_head_dim = 256;

constexpr int64_t divide_up(int64_t value, int64_t divisor) {
    return (value + divisor - 1) / divisor;
}

constexpr int element_bytes(int32_t dtype) {
    return dtype == MUSTAFAR_DTYPE_F32 ? 4 : 2;
}

// u32 words of a token's bitmap row.
constexpr int bitmap_words(int head_dim) {
    return (head_dim + 31) / 32;
}

constexpr int bitmap_bytes(int head_dim) {
    return block_tokens * bitmap_words(head_dim) * 4;
}

constexpr int64_t fixed_block_bytes(const mustafar_format& format) {
    return bitmap_bytes(format.head_dim) + int64_t{block_tokens} * format.keep * element_bytes(format.dtype);
}

}  // namespace mustafar
