// Operations that make and undo blocks.
#pragma once

#include "core/error.h"
#include "mustafar/mustafar.h"

namespace mustafar::cuda {

void prune(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads, int64_t tokens,
           const mustafar_dense& source, const float* importance, uint32_t* bitmap);
void offsets(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads,
             int64_t tokens, const uint32_t* bitmap, uint32_t* table, int64_t* page_bytes);
void compress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
              const mustafar_dense& source, const uint32_t* bitmap, const float* importance, const float* key_factors,
              const mustafar_blocks& destination);
void decompress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                const mustafar_blocks& source, const float* key_factors, const mustafar_dense& destination);
// Every order to every other.
void convert(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
             const mustafar_blocks& source, const mustafar_blocks& destination);
void key_factors(const mustafar_context& context, int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads,
                 int64_t tokens, const mustafar_dense& source, float* factors);
void append(const mustafar_context& context, const mustafar_append& arguments);
void rotate_append(const mustafar_context& context, const mustafar_rope& rope, const mustafar_append& arguments);

}  // namespace mustafar::cuda
