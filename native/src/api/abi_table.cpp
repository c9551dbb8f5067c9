// The library's own description of the header's types, against which bindings check themselves.
#include <cstddef>
#include <iterator>

#include "mustafar/mustafar.h"

namespace {

// Macros, because C++ cannot enumerate fields and enumerators.
#define STRUCT(type) \
    { MUSTAFAR_ABI_KIND_STRUCT, int{sizeof(type)}, int{alignof(type)}, 0, #type, nullptr }
#define FIELD(type, field)                                                                      \
    {                                                                                           \
        MUSTAFAR_ABI_KIND_FIELD, int{sizeof(type::field)}, int{alignof(decltype(type::field))}, \
            int{offsetof(type, field)}, #type, #field                                           \
    }
#define ENUMERATOR(type, name) \
    { MUSTAFAR_ABI_KIND_ENUMERATOR, int{sizeof(type)}, int{alignof(type)}, name, #type, #name }
#define CONSTANT(name) \
    { MUSTAFAR_ABI_KIND_ENUMERATOR, int{sizeof(name)}, int{alignof(decltype(name))}, name, nullptr, #name }

// In the header's order.
constexpr mustafar_abi_entry table[] = {
    ENUMERATOR(mustafar_abi, MUSTAFAR_ABI_VERSION),

    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_OK),
    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_INVALID_ARGUMENT),
    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_UNSUPPORTED),
    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_CORRUPT_DATA),
    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_BUFFER_TOO_SMALL),
    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_OUT_OF_MEMORY),
    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_DEVICE_ERROR),
    ENUMERATOR(mustafar_status, MUSTAFAR_STATUS_INTERNAL_ERROR),

    ENUMERATOR(mustafar_device, MUSTAFAR_DEVICE_CPU),
    ENUMERATOR(mustafar_device, MUSTAFAR_DEVICE_CUDA),

    ENUMERATOR(mustafar_cpu_variant, MUSTAFAR_CPU_VARIANT_AUTO),
    ENUMERATOR(mustafar_cpu_variant, MUSTAFAR_CPU_VARIANT_SCALAR),
    ENUMERATOR(mustafar_cpu_variant, MUSTAFAR_CPU_VARIANT_AVX2),
    ENUMERATOR(mustafar_cpu_variant, MUSTAFAR_CPU_VARIANT_AVX512),
    ENUMERATOR(mustafar_cpu_variant, MUSTAFAR_CPU_VARIANT_AVX512_BF16),
    ENUMERATOR(mustafar_cpu_variant, MUSTAFAR_CPU_VARIANT_NEON),
    ENUMERATOR(mustafar_cpu_variant, MUSTAFAR_CPU_VARIANT_AVX512_CORE),

    STRUCT(mustafar_context),
    FIELD(mustafar_context, device),
    FIELD(mustafar_context, device_index),
    FIELD(mustafar_context, num_threads),
    FIELD(mustafar_context, cpu_variant),
    FIELD(mustafar_context, stream),

    ENUMERATOR(mustafar_abi_kind, MUSTAFAR_ABI_KIND_STRUCT),
    ENUMERATOR(mustafar_abi_kind, MUSTAFAR_ABI_KIND_FIELD),
    ENUMERATOR(mustafar_abi_kind, MUSTAFAR_ABI_KIND_ENUMERATOR),

    STRUCT(mustafar_abi_entry),
    FIELD(mustafar_abi_entry, kind),
    FIELD(mustafar_abi_entry, size),
    FIELD(mustafar_abi_entry, alignment),
    FIELD(mustafar_abi_entry, value),
    FIELD(mustafar_abi_entry, type),
    FIELD(mustafar_abi_entry, name),

    STRUCT(mustafar_limits),
    FIELD(mustafar_limits, block_tokens),
    FIELD(mustafar_limits, balanced_unit),
    FIELD(mustafar_limits, fewest_balanced),
    FIELD(mustafar_limits, most_balanced),
    FIELD(mustafar_limits, max_group_size),
    FIELD(mustafar_limits, max_local_window),
    FIELD(mustafar_limits, max_lookahead),
    FIELD(mustafar_limits, num_head_dims),
    FIELD(mustafar_limits, head_dims),

    ENUMERATOR(mustafar_dtype, MUSTAFAR_DTYPE_F32),
    ENUMERATOR(mustafar_dtype, MUSTAFAR_DTYPE_F16),
    ENUMERATOR(mustafar_dtype, MUSTAFAR_DTYPE_BF16),

    ENUMERATOR(mustafar_value_format, MUSTAFAR_VALUE_FORMAT_NATIVE),
    ENUMERATOR(mustafar_value_format, MUSTAFAR_VALUE_FORMAT_INT8),
    ENUMERATOR(mustafar_value_format, MUSTAFAR_VALUE_FORMAT_INT4),

    ENUMERATOR(mustafar_pattern, MUSTAFAR_PATTERN_UNSTRUCTURED),
    ENUMERATOR(mustafar_pattern, MUSTAFAR_PATTERN_BALANCED_KEYS),
    ENUMERATOR(mustafar_pattern, MUSTAFAR_PATTERN_BALANCED_VALUES),
    ENUMERATOR(mustafar_pattern, MUSTAFAR_PATTERN_ALL),
    ENUMERATOR(mustafar_pattern, MUSTAFAR_PATTERN_MASK),
    ENUMERATOR(mustafar_pattern, MUSTAFAR_PATTERN_ALL_ROTATED),

    ENUMERATOR(mustafar_layout, MUSTAFAR_LAYOUT_FIXED),
    ENUMERATOR(mustafar_layout, MUSTAFAR_LAYOUT_OFFSETS),

    ENUMERATOR(mustafar_order, MUSTAFAR_ORDER_PLAIN),
    ENUMERATOR(mustafar_order, MUSTAFAR_ORDER_KEY_FRAGMENT),
    ENUMERATOR(mustafar_order, MUSTAFAR_ORDER_VALUE_FRAGMENT),
    ENUMERATOR(mustafar_order, MUSTAFAR_ORDER_KEY_QUADS),
    ENUMERATOR(mustafar_order, MUSTAFAR_ORDER_VALUE_QUADS),

    CONSTANT(MUSTAFAR_BLOCK_TOKENS),
    CONSTANT(MUSTAFAR_PAGE_PADDING),
    CONSTANT(MUSTAFAR_PAGE_ALIGNMENT),
    CONSTANT(MUSTAFAR_WORKSPACE_COUNTER_BYTES),

    STRUCT(mustafar_format),
    FIELD(mustafar_format, head_dim),
    FIELD(mustafar_format, dtype),
    FIELD(mustafar_format, value_format),
    FIELD(mustafar_format, pattern),
    FIELD(mustafar_format, layout),
    FIELD(mustafar_format, order),
    FIELD(mustafar_format, keep),

    STRUCT(mustafar_dense),
    FIELD(mustafar_dense, data),
    FIELD(mustafar_dense, batch_stride),
    FIELD(mustafar_dense, head_stride),
    FIELD(mustafar_dense, token_stride),

    STRUCT(mustafar_blocks),
    FIELD(mustafar_blocks, format),
    FIELD(mustafar_blocks, page_blocks),
    FIELD(mustafar_blocks, slab_pages),
    FIELD(mustafar_blocks, slab_count),
    FIELD(mustafar_blocks, page_capacity),
    FIELD(mustafar_blocks, page_bytes),
    FIELD(mustafar_blocks, base),
    FIELD(mustafar_blocks, head_stride),
    FIELD(mustafar_blocks, slab_bytes),
    FIELD(mustafar_blocks, slabs),
    FIELD(mustafar_blocks, pages),
    FIELD(mustafar_blocks, offsets),

    STRUCT(mustafar_product),
    FIELD(mustafar_product, batch),
    FIELD(mustafar_product, num_heads),
    FIELD(mustafar_product, num_kv_heads),
    FIELD(mustafar_product, num_queries),
    FIELD(mustafar_product, tokens),
    FIELD(mustafar_product, blocks),
    FIELD(mustafar_product, dense),
    FIELD(mustafar_product, weights),
    FIELD(mustafar_product, scale),
    FIELD(mustafar_product, key_factors),

    STRUCT(mustafar_attention),
    FIELD(mustafar_attention, batch),
    FIELD(mustafar_attention, num_slots),
    FIELD(mustafar_attention, num_heads),
    FIELD(mustafar_attention, num_kv_heads),
    FIELD(mustafar_attention, num_queries),
    FIELD(mustafar_attention, num_fresh),
    FIELD(mustafar_attention, tail_capacity),
    FIELD(mustafar_attention, max_tokens),
    FIELD(mustafar_attention, sliding_window),
    FIELD(mustafar_attention, scale),
    FIELD(mustafar_attention, sequences),
    FIELD(mustafar_attention, lengths),
    FIELD(mustafar_attention, compressed),
    FIELD(mustafar_attention, query_counts),
    FIELD(mustafar_attention, query),
    FIELD(mustafar_attention, output),
    FIELD(mustafar_attention, keys),
    FIELD(mustafar_attention, values),
    FIELD(mustafar_attention, key_factors),
    FIELD(mustafar_attention, tail_keys),
    FIELD(mustafar_attention, tail_values),
    FIELD(mustafar_attention, fresh_keys),
    FIELD(mustafar_attention, fresh_values),
    FIELD(mustafar_attention, log_sum_exp),
    FIELD(mustafar_attention, workspace),
    FIELD(mustafar_attention, workspace_bytes),

    STRUCT(mustafar_append),
    FIELD(mustafar_append, batch),
    FIELD(mustafar_append, num_slots),
    FIELD(mustafar_append, num_kv_heads),
    FIELD(mustafar_append, num_tokens),
    FIELD(mustafar_append, lookahead),
    FIELD(mustafar_append, group_size),
    FIELD(mustafar_append, local_window),
    FIELD(mustafar_append, tail_capacity),
    FIELD(mustafar_append, max_tokens),
    FIELD(mustafar_append, sequences),
    FIELD(mustafar_append, counts),
    FIELD(mustafar_append, lengths),
    FIELD(mustafar_append, compressed),
    FIELD(mustafar_append, new_lengths),
    FIELD(mustafar_append, new_compressed),
    FIELD(mustafar_append, new_keys),
    FIELD(mustafar_append, new_values),
    FIELD(mustafar_append, keys),
    FIELD(mustafar_append, values),
    FIELD(mustafar_append, key_factors),
    FIELD(mustafar_append, tail_keys),
    FIELD(mustafar_append, tail_values),
    FIELD(mustafar_append, key_importance),
    FIELD(mustafar_append, value_importance),
    FIELD(mustafar_append, key_bitmap),
    FIELD(mustafar_append, value_bitmap),
    FIELD(mustafar_append, bitmap_tokens),

    STRUCT(mustafar_rows),
    FIELD(mustafar_rows, data),
    FIELD(mustafar_rows, row_stride),

    STRUCT(mustafar_norm),
    FIELD(mustafar_norm, dtype),
    FIELD(mustafar_norm, hidden_size),
    FIELD(mustafar_norm, rows),
    FIELD(mustafar_norm, eps),
    FIELD(mustafar_norm, input),
    FIELD(mustafar_norm, residual),
    FIELD(mustafar_norm, weight),
    FIELD(mustafar_norm, output),

    STRUCT(mustafar_rope),
    FIELD(mustafar_rope, dtype),
    FIELD(mustafar_rope, batch),
    FIELD(mustafar_rope, num_tokens),
    FIELD(mustafar_rope, num_heads),
    FIELD(mustafar_rope, num_kv_heads),
    FIELD(mustafar_rope, head_dim),
    FIELD(mustafar_rope, rotary_dim),
    FIELD(mustafar_rope, eps),
    FIELD(mustafar_rope, query),
    FIELD(mustafar_rope, key),
    FIELD(mustafar_rope, value),
    FIELD(mustafar_rope, query_output),
    FIELD(mustafar_rope, key_output),
    FIELD(mustafar_rope, value_output),
    FIELD(mustafar_rope, query_norm),
    FIELD(mustafar_rope, key_norm),
    FIELD(mustafar_rope, positions),
    FIELD(mustafar_rope, inv_freq),
    FIELD(mustafar_rope, cosines),
    FIELD(mustafar_rope, sines),
    FIELD(mustafar_rope, table_positions),
    FIELD(mustafar_rope, attention_scaling),

    CONSTANT(MUSTAFAR_LINEAR_MAX_ROWS),

    ENUMERATOR(mustafar_activation, MUSTAFAR_ACTIVATION_NONE),
    ENUMERATOR(mustafar_activation, MUSTAFAR_ACTIVATION_SILU_MUL),

    STRUCT(mustafar_linear),
    FIELD(mustafar_linear, dtype),
    FIELD(mustafar_linear, rows),
    FIELD(mustafar_linear, in_features),
    FIELD(mustafar_linear, out_features),
    FIELD(mustafar_linear, activation),
    FIELD(mustafar_linear, eps),
    FIELD(mustafar_linear, input),
    FIELD(mustafar_linear, norm),
    FIELD(mustafar_linear, weight),
    FIELD(mustafar_linear, bias),
    FIELD(mustafar_linear, residual),
    FIELD(mustafar_linear, output),

    STRUCT(mustafar_sampling_options),
    FIELD(mustafar_sampling_options, temperature),
    FIELD(mustafar_sampling_options, top_k),
    FIELD(mustafar_sampling_options, top_p),
    FIELD(mustafar_sampling_options, min_p),
    FIELD(mustafar_sampling_options, repetition_penalty),
    FIELD(mustafar_sampling_options, frequency_penalty),
    FIELD(mustafar_sampling_options, presence_penalty),
    FIELD(mustafar_sampling_options, reserved),
    FIELD(mustafar_sampling_options, seed),

    STRUCT(mustafar_sampling),
    FIELD(mustafar_sampling, dtype),
    FIELD(mustafar_sampling, batch),
    FIELD(mustafar_sampling, vocab_size),
    FIELD(mustafar_sampling, allowed_stride),
    FIELD(mustafar_sampling, logits),
    FIELD(mustafar_sampling, options),  // NOLINT(bugprone-sizeof-expression): of the pointer
    FIELD(mustafar_sampling, steps),
    FIELD(mustafar_sampling, counts),
    FIELD(mustafar_sampling, prompt),
    FIELD(mustafar_sampling, allowed),
    FIELD(mustafar_sampling, tokens),
    FIELD(mustafar_sampling, log_probabilities),
};

}  // namespace

const mustafar_abi_entry* mustafar_abi_table(int32_t* count) {
    if (count == nullptr) return nullptr;
    *count = int{std::size(table)};
    return table;
}
