// Checks of the operations of a decode step.
#include <algorithm>
#include <cmath>

#include "core/checks.h"
#include "core/format.h"
#include "core/validate.h"

namespace mustafar {
namespace {

// A matrix that is read or written; one without rows may have any address.
void check_rows(const char* name, const mustafar_rows& matrix, int64_t rows, int64_t width, int element) {
    if (matrix.row_stride < 0 || (rows > 1 && matrix.row_stride < width))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s.row_stride: expected at least %lld, the elements of a row, got %lld",
             name, (long long)width, (long long)matrix.row_stride);
    if (rows == 0) return;
    check_aligned(name, matrix.data, (uintptr_t)element);
    if ((wide{std::max<int64_t>(rows - 1, 1)} * matrix.row_stride + width) * element > max_span_bytes)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected a matrix within 2^56 bytes, got a row_stride of %lld",
             name, (long long)matrix.row_stride);
}

void check_eps(float eps) {
    if (!(eps >= 0.0f) || std::isinf(eps))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "eps: expected a finite number of at least 0, got %g", (double)eps);
}

}  // namespace

void check_norm(const mustafar_norm* pointer) {
    const mustafar_norm& norm = not_null("norm", pointer);
    check_dtype("dtype", norm.dtype);
    check_range("hidden_size", norm.hidden_size, 1, 1 << 20);
    check_range("rows", norm.rows, 0, INT_MAX);
    check_eps(norm.eps);
    const int element = element_bytes(norm.dtype);
    check_rows("input", norm.input, norm.rows, norm.hidden_size, element);
    if (norm.residual.data != nullptr) check_rows("residual", norm.residual, norm.rows, norm.hidden_size, element);
    check_rows("output", norm.output, norm.rows, norm.hidden_size, element);
    check_aligned("weight", norm.weight, (uintptr_t)element);
}

void check_rope(const mustafar_rope* pointer) {
    const mustafar_rope& rope = not_null("rope", pointer);
    check_dtype("dtype", rope.dtype);
    check_range("batch", rope.batch, 0, INT_MAX);
    check_range("num_tokens", rope.num_tokens, 0, INT_MAX);
    check_heads(rope.num_heads, rope.num_kv_heads);
    check_range("head_dim", rope.head_dim, 2, 512);
    check_range("rotary_dim", rope.rotary_dim, 2, rope.head_dim);
    if (rope.rotary_dim % 2 != 0)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "rotary_dim: expected an even number, got %d", rope.rotary_dim);
    if (wide{rope.batch} * rope.num_tokens * (wide{rope.num_heads} + 2 * wide{rope.num_kv_heads}) > INT_MAX)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "batch, num_tokens, heads: expected fewer than 2^31 heads of tokens, got %d x %d x (%d + 2 x %d)",
             rope.batch, rope.num_tokens, rope.num_heads, rope.num_kv_heads);
    check_eps(rope.eps);
    const int element = element_bytes(rope.dtype);
    const Extent queries{rope.batch, rope.num_heads, rope.num_tokens, rope.head_dim};
    const Extent keys{rope.batch, rope.num_kv_heads, rope.num_tokens, rope.head_dim};
    check_dense("query", rope.query, queries, element);
    check_dense("key", rope.key, keys, element);
    check_written("query_output", rope.query_output, queries, element);
    check_written("key_output", rope.key_output, keys, element);
    if (rope.value.data != nullptr) {
        check_dense("value", rope.value, keys, element);
        check_written("value_output", rope.value_output, keys, element);
    }
    check_optional("query_norm", rope.query_norm, (uintptr_t)element);
    check_optional("key_norm", rope.key_norm, (uintptr_t)element);
    check_aligned("positions", rope.positions, alignof(int32_t));
    if (rope.inv_freq != nullptr) {
        check_aligned("inv_freq", rope.inv_freq, alignof(double));
        if (rope.cosines != nullptr || rope.sines != nullptr)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "cosines, sines: expected null with inv_freq");
    } else {
        check_aligned("cosines", rope.cosines, alignof(float));
        check_aligned("sines", rope.sines, alignof(float));
        check_range("table_positions", rope.table_positions, 1, int64_t{INT_MAX} + 1);
    }
    if (!(rope.attention_scaling > 0.0f) || std::isinf(rope.attention_scaling))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "attention_scaling: expected a finite number above 0, got %g",
             (double)rope.attention_scaling);
}

void check_rotate_append(const mustafar_context& context, const mustafar_rope* rope_pointer,
                         const mustafar_append* append_pointer) {
    check_rope(rope_pointer);
    check_append(context, append_pointer);
    const mustafar_rope& rope = *rope_pointer;
    const mustafar_append& append = *append_pointer;
    const mustafar_format& format = append.keys.format;
    const auto same = [](const char* name, int32_t of_rope, int32_t of_append) {
        if (of_rope != of_append)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "rope.%s: expected %d as in the append, got %d", name, of_append,
                 of_rope);
    };
    same("dtype", rope.dtype, format.dtype);
    same("batch", rope.batch, append.batch);
    same("num_tokens", rope.num_tokens, append.num_tokens);
    same("num_kv_heads", rope.num_kv_heads, append.num_kv_heads);
    same("head_dim", rope.head_dim, format.head_dim);
    if (rope.value.data != nullptr)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "rope.value: expected null, since values are appended from new_values");
    const mustafar_dense &rotated = rope.key_output, &fresh = append.new_keys;
    if (rotated.data != fresh.data || rotated.batch_stride != fresh.batch_stride ||
        rotated.head_stride != fresh.head_stride || rotated.token_stride != fresh.token_stride)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "append.new_keys: expected rope.key_output");
}

void check_silu_mul(int32_t dtype, int64_t rows, int32_t width, const mustafar_rows* input,
                    const mustafar_rows* output) {
    check_dtype("dtype", dtype);
    check_range("rows", rows, 0, INT_MAX);
    check_range("width", width, 1, 1 << 30);
    check_rows("input", not_null("input", input), rows, 2 * int64_t{width}, element_bytes(dtype));
    check_rows("output", not_null("output", output), rows, width, element_bytes(dtype));
}

void check_linear(const mustafar_linear* pointer) {
    const mustafar_linear& linear = not_null("linear", pointer);
    check_dtype("dtype", linear.dtype);
    check_range("rows", linear.rows, 0, MUSTAFAR_LINEAR_MAX_ROWS);
    check_range("in_features", linear.in_features, 1, 1 << 24);
    check_range("out_features", linear.out_features, 1, 1 << 28);
    check_range("activation", linear.activation, MUSTAFAR_ACTIVATION_NONE, MUSTAFAR_ACTIVATION_SILU_MUL);
    check_eps(linear.eps);
    const int element = element_bytes(linear.dtype);
    const int64_t parts = linear.activation == MUSTAFAR_ACTIVATION_SILU_MUL ? 2 : 1;
    check_rows("input", linear.input, linear.rows, linear.in_features, element);
    check_optional("norm", linear.norm, (uintptr_t)element);
    check_rows("weight", linear.weight, parts * linear.out_features, linear.in_features, element);
    check_optional("bias", linear.bias, (uintptr_t)element);
    if (linear.residual.data != nullptr)
        check_rows("residual", linear.residual, linear.rows, linear.out_features, element);
    check_rows("output", linear.output, linear.rows, linear.out_features, element);
}

void check_sampling(const mustafar_sampling* pointer) {
    const mustafar_sampling& sampling = not_null("sampling", pointer);
    check_dtype("dtype", sampling.dtype);
    check_range("batch", sampling.batch, 0, INT_MAX);
    check_range("vocab_size", sampling.vocab_size, 1, 1 << 22);
    const int64_t words = divide_up(sampling.vocab_size, 32);
    check_rows("logits", sampling.logits, sampling.batch, sampling.vocab_size, element_bytes(sampling.dtype));
    if (sampling.allowed_stride != 0 &&
        (sampling.allowed_stride < words || wide{sampling.allowed_stride} * sampling.batch * 4 > max_span_bytes))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "allowed_stride: expected 0 or at least %lld words, got %lld",
             (long long)words, (long long)sampling.allowed_stride);
    if (sampling.batch == 0) return;
    check_aligned("options", sampling.options, alignof(mustafar_sampling_options));
    check_aligned("steps", sampling.steps, alignof(int64_t));
    check_optional("counts", sampling.counts, alignof(int32_t));
    check_optional("prompt", sampling.prompt, alignof(uint32_t));
    check_optional("allowed", sampling.allowed, alignof(uint32_t));
    check_aligned("tokens", sampling.tokens, alignof(int64_t));
    check_optional("log_probabilities", sampling.log_probabilities, alignof(float));
}

}  // namespace mustafar
