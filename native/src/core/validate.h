// Checks of everything that a caller passes over the C boundary and that can be known without reading device memory.
// Each throws Error with the name of the argument, what was expected and what came.
#pragma once

#include "core/error.h"
#include "mustafar/mustafar.h"

namespace mustafar {

const mustafar_context& checked(const mustafar_context* context);

void check_limits(const mustafar_limits* limits);
void check_block_bytes(const mustafar_format* format, const int64_t* bytes);
void check_prune(const mustafar_context& context, const mustafar_format* format, int32_t batch, int32_t heads,
                 int64_t tokens, const mustafar_dense* source, const float* importance, const void* bitmap);
void check_offsets(const mustafar_context& context, const mustafar_format* format, int32_t batch, int32_t heads,
                   int64_t tokens, const void* bitmap, const void* offsets, const void* page_bytes);
void check_compress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
                    const mustafar_dense* source, const void* bitmap, const float* importance, const float* key_factors,
                    const mustafar_blocks* destination);
void check_decompress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                      const mustafar_blocks* source, const float* key_factors, const mustafar_dense* destination);
void check_convert(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
                   const mustafar_blocks* source, const mustafar_blocks* destination);
void check_key_factors_call(int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads, int64_t tokens,
                            const mustafar_dense* source, const float* factors);
// Which of a product's two dense tensors it writes.
enum class ProductOutput { weights, dense };
void check_product(const mustafar_context& context, const mustafar_product* product, ProductOutput output);

void check_attention_workspace(const mustafar_context& context, const mustafar_attention* attention,
                               const int64_t* bytes);
void check_attention(const mustafar_context& context, const mustafar_attention* attention);
void check_append(const mustafar_context& context, const mustafar_append* append);

void check_norm(const mustafar_norm* norm);
void check_rope(const mustafar_rope* rope);
void check_rotate_append(const mustafar_context& context, const mustafar_rope* rope, const mustafar_append* append);
void check_silu_mul(int32_t dtype, int64_t rows, int32_t width, const mustafar_rows* input,
                    const mustafar_rows* output);
void check_linear(const mustafar_linear* linear);
void check_sampling(const mustafar_sampling* sampling);

}  // namespace mustafar
