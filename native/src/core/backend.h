// A back end is a table of functions whose arguments the C boundary has validated. Each returns a status and, unless
// it is OK, fills the text; none throws. libmustafar contains the CPU's table; libmustafar_cuda exports its own through
// mustafar_cuda_backend and is loaded on the first call that needs it.
#pragma once

#include <cstdint>

#include "core/error.h"
#include "mustafar/mustafar.h"

namespace mustafar {

// The functions of section 8 of the header, each with its inputs and outputs.
enum class GraphCall { create_stream, destroy_stream, begin_capture, end_capture, launch, destroy };

struct Backend {
    int32_t abi_version;  // MUSTAFAR_ABI_VERSION; first, so that any version can detect a mismatch
    int32_t (*prune)(const mustafar_context&, const mustafar_format&, int32_t batch, int32_t heads, int64_t tokens,
                     const mustafar_dense& source, const float* importance, uint32_t* bitmap, ErrorText&);
    int32_t (*offsets)(const mustafar_context&, const mustafar_format&, int32_t batch, int32_t heads, int64_t tokens,
                       const uint32_t* bitmap, uint32_t* offsets, int64_t* page_bytes, ErrorText&);
    int32_t (*key_factors)(const mustafar_context&, int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads,
                           int64_t tokens, const mustafar_dense& source, float* factors, ErrorText&);
    int32_t (*compress)(const mustafar_context&, int32_t batch, int32_t heads, int64_t tokens,
                        const mustafar_dense& source, const uint32_t* bitmap, const float* importance,
                        const float* key_factors, const mustafar_blocks& destination, ErrorText&);
    int32_t (*decompress)(const mustafar_context&, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                          const mustafar_blocks& source, const float* key_factors, const mustafar_dense& destination,
                          ErrorText&);
    int32_t (*convert)(const mustafar_context&, int32_t batch, int32_t heads, int64_t tokens,
                       const mustafar_blocks& source, const mustafar_blocks& destination, ErrorText&);
    int32_t (*key_scores)(const mustafar_context&, const mustafar_product&, ErrorText&);
    int32_t (*value_sum)(const mustafar_context&, const mustafar_product&, ErrorText&);
    int32_t (*attention_workspace)(const mustafar_context&, const mustafar_attention&, int64_t* bytes, ErrorText&);
    int32_t (*attention)(const mustafar_context&, const mustafar_attention&, ErrorText&);
    int32_t (*append)(const mustafar_context&, const mustafar_append&, ErrorText&);
    int32_t (*rms_norm)(const mustafar_context&, const mustafar_norm&, ErrorText&);
    int32_t (*rotate)(const mustafar_context&, const mustafar_rope&, ErrorText&);
    int32_t (*rotate_append)(const mustafar_context&, const mustafar_rope&, const mustafar_append&, ErrorText&);
    int32_t (*silu_mul)(const mustafar_context&, int32_t dtype, int64_t rows, int32_t width, const mustafar_rows& input,
                        const mustafar_rows& output, ErrorText&);
    int32_t (*linear)(const mustafar_context&, const mustafar_linear&, ErrorText&);
    int32_t (*linear_reads_once)(const mustafar_context&, const mustafar_linear&, int32_t* result, ErrorText&);
    int32_t (*sample)(const mustafar_context&, const mustafar_sampling&, ErrorText&);
    int32_t (*graph)(const mustafar_context&, GraphCall, void* graph, void** made, ErrorText&);
};

// The name and type of the function through which a back-end library provides its table.
constexpr const char* cuda_backend_symbol = "mustafar_cuda_backend";
using BackendFunction = const Backend* (*)();

const Backend& cpu_backend();

}  // namespace mustafar
