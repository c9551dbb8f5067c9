// Geometry of the compressed format; the public header describes the format.
#pragma once

#include <cstdint>

#include "core/balanced.h"
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

constexpr bool is_balanced(int32_t pattern) {
    return pattern == MUSTAFAR_PATTERN_BALANCED_KEYS || pattern == MUSTAFAR_PATTERN_BALANCED_VALUES;
}

constexpr bool is_balanced(const mustafar_format& format) {
    return is_balanced(format.pattern);
}

constexpr bool keeps_all(int32_t pattern) {
    return pattern == MUSTAFAR_PATTERN_ALL || pattern == MUSTAFAR_PATTERN_ALL_ROTATED;
}

constexpr bool keeps_all(const mustafar_format& format) {
    return keeps_all(format.pattern);
}

constexpr bool is_rotated(const mustafar_format& format) {
    return format.pattern == MUSTAFAR_PATTERN_ALL_ROTATED;
}

// Only a caller's bitmap says which channels there are.
constexpr bool needs_bitmap(const mustafar_format& format) {
    return format.layout == MUSTAFAR_LAYOUT_OFFSETS || format.pattern == MUSTAFAR_PATTERN_MASK;
}

constexpr bool has_integers(const mustafar_format& format) {
    return format.value_format != MUSTAFAR_VALUE_FORMAT_NATIVE;
}

// Whether the fragment orders exist: if tensor cores read blocks directly. Other formats are plain whatever their
// order.
constexpr bool has_fragment_order(const mustafar_format& format) {
    return (format.order == MUSTAFAR_ORDER_KEY_FRAGMENT || format.order == MUSTAFAR_ORDER_VALUE_FRAGMENT) &&
           format.layout == MUSTAFAR_LAYOUT_FIXED && format.dtype != MUSTAFAR_DTYPE_F32 &&
           (format.head_dim == 64 || format.head_dim == 128) && (has_integers(format) || !keeps_all(format)) &&
           !needs_bitmap(format);
}

// Whether a block in fragment order has positions instead of a bitmap: balanced ones, and among integers only 2:4.
constexpr bool has_positions(const mustafar_format& format) {
    return is_balanced(format) && (!has_integers(format) || balanced_kept(format) == most_balanced);
}

// Whether the CPU's own orders exist. Other formats are plain whatever their order.
constexpr bool has_quads_order(const mustafar_format& format) {
    return (format.order == MUSTAFAR_ORDER_KEY_QUADS || format.order == MUSTAFAR_ORDER_VALUE_QUADS) &&
           keeps_all(format) && has_integers(format);
}

// The sections of a block: what says which channels are kept, their values, and the scales of integers.

constexpr int value_bits(const mustafar_format& format) {
    return format.value_format == MUSTAFAR_VALUE_FORMAT_INT8   ? 8
           : format.value_format == MUSTAFAR_VALUE_FORMAT_INT4 ? 4
                                                               : 8 * element_bytes(format.dtype);
}

// For a block whose values start after a bitmap.
constexpr int64_t bitmap_bytes(const mustafar_format& format) {
    return keeps_all(format) ? 0 : bitmap_bytes(format.head_dim);
}

// Before the values: the bitmap, or what replaces it in a balanced block in fragment order.
constexpr int64_t fixed_header_bytes(const mustafar_format& format) {
    const bool codes = has_positions(format) && has_fragment_order(format) && balanced_kept(format) < most_balanced;
    return bitmap_bytes(format) + (codes ? balanced_code_bytes(format.head_dim) : 0);
}

constexpr int64_t values_bytes(const mustafar_format& format, int64_t values) {
    return divide_up(values * value_bits(format), 8 * 16) * 16;
}

constexpr int64_t scales_bytes(const mustafar_format& format) {
    return has_integers(format) ? block_tokens * 2 : 0;
}

constexpr int64_t fixed_block_bytes(const mustafar_format& format) {
    return fixed_header_bytes(format) + values_bytes(format, int64_t{block_tokens} * format.keep) +
           scales_bytes(format);
}

// Bytes of an OFFSETS block with that many values.
constexpr int64_t offsets_block_bytes(const mustafar_format& format, int64_t values) {
    return bitmap_bytes(format) + values_bytes(format, values) + scales_bytes(format);
}

// The slot of row b of an attention or append.
template <class Call>
int32_t slot_of(const Call& call, int32_t b) {
    return call.sequences == nullptr ? b : call.sequences[b];
}

}  // namespace mustafar
