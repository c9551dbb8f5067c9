// The table through which libmustafar reaches this library.
#include "core/backend.h"

#include "cuda/attention/attention.h"
#include "cuda/compress/compress.h"
#include "cuda/graph/graph.h"
#include "cuda/product/product.h"
#include "cuda/step/step.h"

namespace mustafar::cuda {
namespace {

int32_t prune_call(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads,
                   int64_t tokens, const mustafar_dense& source, const float* importance, uint32_t* bitmap,
                   ErrorText& error) {
    return guarded(error, [&] { prune(context, format, batch, heads, tokens, source, importance, bitmap); });
}

int32_t offsets_call(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads,
                     int64_t tokens, const uint32_t* bitmap, uint32_t* table, int64_t* page_bytes, ErrorText& error) {
    return guarded(error, [&] { offsets(context, format, batch, heads, tokens, bitmap, table, page_bytes); });
}

int32_t key_factors_call(const mustafar_context& context, int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads,
                         int64_t tokens, const mustafar_dense& source, float* factors, ErrorText& error) {
    return guarded(error, [&] { key_factors(context, dtype, head_dim, batch, heads, tokens, source, factors); });
}

int32_t compress_call(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
                      const mustafar_dense& source, const uint32_t* bitmap, const float* importance,
                      const float* factors, const mustafar_blocks& destination, ErrorText& error) {
    return guarded(error,
                   [&] { compress(context, batch, heads, tokens, source, bitmap, importance, factors, destination); });
}

int32_t decompress_call(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                        const mustafar_blocks& source, const float* factors, const mustafar_dense& destination,
                        ErrorText& error) {
    return guarded(error, [&] { decompress(context, batch, heads, first, tokens, source, factors, destination); });
}

int32_t convert_call(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
                     const mustafar_blocks& source, const mustafar_blocks& destination, ErrorText& error) {
    return guarded(error, [&] { convert(context, batch, heads, tokens, source, destination); });
}

int32_t key_scores_call(const mustafar_context& context, const mustafar_product& product, ErrorText& error) {
    return guarded(error, [&] { key_scores(context, product); });
}

int32_t value_sum_call(const mustafar_context& context, const mustafar_product& product, ErrorText& error) {
    return guarded(error, [&] { value_sum(context, product); });
}

int32_t attention_workspace_call(const mustafar_context& context, const mustafar_attention& arguments, int64_t* bytes,
                                 ErrorText& error) {
    return guarded(error, [&] { *bytes = attention_workspace(context, arguments); });
}

int32_t attention_call(const mustafar_context& context, const mustafar_attention& arguments, ErrorText& error) {
    return guarded(error, [&] { attention(context, arguments); });
}

int32_t append_call(const mustafar_context& context, const mustafar_append& arguments, ErrorText& error) {
    return guarded(error, [&] { append(context, arguments); });
}

int32_t rms_norm_call(const mustafar_context& context, const mustafar_norm& arguments, ErrorText& error) {
    return guarded(error, [&] { rms_norm(context, arguments); });
}

int32_t rotate_call(const mustafar_context& context, const mustafar_rope& arguments, ErrorText& error) {
    return guarded(error, [&] { rotate(context, arguments); });
}

int32_t rotate_append_call(const mustafar_context& context, const mustafar_rope& rope, const mustafar_append& arguments,
                           ErrorText& error) {
    return guarded(error, [&] { rotate_append(context, rope, arguments); });
}

int32_t silu_mul_call(const mustafar_context& context, int32_t dtype, int64_t rows, int32_t width,
                      const mustafar_rows& input, const mustafar_rows& output, ErrorText& error) {
    return guarded(error, [&] { silu_mul(context, dtype, rows, width, input, output); });
}

int32_t linear_call(const mustafar_context& context, const mustafar_linear& arguments, ErrorText& error) {
    return guarded(error, [&] { linear(context, arguments); });
}

int32_t linear_reads_once_call(const mustafar_context& context, const mustafar_linear& arguments, int32_t* result,
                               ErrorText& error) {
    return guarded(error, [&] { *result = linear_reads_once(context, arguments) ? 1 : 0; });
}

int32_t sample_call(const mustafar_context& context, const mustafar_sampling& arguments, ErrorText& error) {
    return guarded(error, [&] { sample(context, arguments); });
}

int32_t graph_call(const mustafar_context& context, GraphCall call, void* graph, void** made, ErrorText& error) {
    return guarded(error, [&] { run_graph_call(context, call, graph, made); });
}

constexpr Backend table{
    MUSTAFAR_ABI_VERSION, prune_call,   offsets_call,           key_factors_call, compress_call,
    decompress_call,      convert_call, key_scores_call,        value_sum_call,   attention_workspace_call,
    attention_call,       append_call,  rms_norm_call,          rotate_call,      rotate_append_call,
    silu_mul_call,        linear_call,  linear_reads_once_call, sample_call,      graph_call};

}  // namespace
}  // namespace mustafar::cuda

extern "C" MUSTAFAR_API const mustafar::Backend* mustafar_cuda_backend() {
    return &mustafar::cuda::table;
}
