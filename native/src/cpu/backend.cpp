// The CPU's table of functions.
#include "core/backend.h"

#include "cpu/append.h"
#include "cpu/attention.h"
#include "cpu/products.h"
#include "cpu/step/step.h"
#include "cpu/tensors.h"

namespace mustafar {

const Backend& cpu_backend() {
    static constexpr Backend table = {
        .abi_version = MUSTAFAR_ABI_VERSION,
        .prune =
            [](const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads,
               int64_t tokens, const mustafar_dense& source, const float* importance, uint32_t* bitmap,
               ErrorText& error) {
                return guarded(error,
                               [&] { prune(context, format, batch, heads, tokens, source, importance, bitmap); });
            },
        .offsets =
            [](const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads,
               int64_t tokens, const uint32_t* bitmap, uint32_t* entries, int64_t* page_bytes, ErrorText& error) {
                return guarded(error,
                               [&] { offsets(context, format, batch, heads, tokens, bitmap, entries, page_bytes); });
            },
        .key_factors =
            [](const mustafar_context& context, int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads,
               int64_t tokens, const mustafar_dense& source, float* factors, ErrorText& error) {
                return guarded(error,
                               [&] { key_factors(context, dtype, head_dim, batch, heads, tokens, source, factors); });
            },
        .compress =
            [](const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
               const mustafar_dense& source, const uint32_t* bitmap, const float* importance, const float* factors,
               const mustafar_blocks& destination, ErrorText& error) {
                return guarded(error, [&] {
                    compress(context, batch, heads, tokens, source, bitmap, importance, factors, destination);
                });
            },
        .decompress =
            [](const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
               const mustafar_blocks& source, const float* factors, const mustafar_dense& destination,
               ErrorText& error) {
                return guarded(error,
                               [&] { decompress(context, batch, heads, first, tokens, source, factors, destination); });
            },
        .convert =
            [](const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
               const mustafar_blocks& source, const mustafar_blocks& destination, ErrorText& error) {
                return guarded(error, [&] { convert(context, batch, heads, tokens, source, destination); });
            },
        .key_scores = [](const mustafar_context& context, const mustafar_product& product,
                         ErrorText& error) { return guarded(error, [&] { key_scores(context, product); }); },
        .value_sum = [](const mustafar_context& context, const mustafar_product& product,
                        ErrorText& error) { return guarded(error, [&] { value_sum(context, product); }); },
        .attention_workspace =
            [](const mustafar_context& context, const mustafar_attention& arguments, int64_t* bytes, ErrorText& error) {
                return guarded(error, [&] { *bytes = attention_workspace(context, arguments); });
            },
        .attention = [](const mustafar_context& context, const mustafar_attention& arguments,
                        ErrorText& error) { return guarded(error, [&] { attention(context, arguments); }); },
        .append = [](const mustafar_context& context, const mustafar_append& arguments,
                     ErrorText& error) { return guarded(error, [&] { append(context, arguments); }); },
        .rms_norm = [](const mustafar_context& context, const mustafar_norm& arguments,
                       ErrorText& error) { return guarded(error, [&] { rms_norm(context, arguments); }); },
        .rotate = [](const mustafar_context& context, const mustafar_rope& arguments,
                     ErrorText& error) { return guarded(error, [&] { rotate(context, arguments); }); },
        .rotate_append =
            [](const mustafar_context& context, const mustafar_rope& rope, const mustafar_append& arguments,
               ErrorText& error) {
                return guarded(error, [&] {
                    rotate(context, rope);
                    append(context, arguments);
                });
            },
        .silu_mul =
            [](const mustafar_context& context, int32_t dtype, int64_t rows, int32_t width, const mustafar_rows& input,
               const mustafar_rows& output, ErrorText& error) {
                return guarded(error, [&] { silu_mul(context, dtype, rows, width, input, output); });
            },
        .linear = [](const mustafar_context& context, const mustafar_linear& arguments,
                     ErrorText& error) { return guarded(error, [&] { linear(context, arguments); }); },
        .linear_reads_once =
            [](const mustafar_context& context, const mustafar_linear& arguments, int32_t* result, ErrorText& error) {
                return guarded(error, [&] { *result = linear_reads_once(context, arguments) ? 1 : 0; });
            },
        .sample = [](const mustafar_context& context, const mustafar_sampling& arguments,
                     ErrorText& error) { return guarded(error, [&] { sample(context, arguments); }); },
        .graph =
            [](const mustafar_context&, GraphCall, void*, void**, ErrorText& error) {
                return guarded(error, [] {
                    fail(MUSTAFAR_STATUS_UNSUPPORTED, "context.device: expected CUDA, the only device with graphs");
                });
            },
    };
    return table;
}

}  // namespace mustafar
