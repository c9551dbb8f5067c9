// The C boundary: every export checks its arguments, calls the context's back end and turns errors into a status.
#include "mustafar/mustafar.h"

#include "api/exported.h"
#include "core/compression_rule.h"
#include "core/format.h"
#include "core/limits.h"
#include "core/validate.h"
#include "cpu/variant.h"

using namespace mustafar;

namespace mustafar {

ErrorText& last_error() {
    thread_local ErrorText text{};
    return text;
}

}  // namespace mustafar

int32_t mustafar_abi_version(void) {
    return MUSTAFAR_ABI_VERSION;
}

const char* mustafar_version(void) {
    return MUSTAFAR_VERSION_STRING;
}

const char* mustafar_last_error(void) {
    return last_error().text;
}

uint32_t mustafar_cpu_variants(void) {
    return available_variants();
}

int32_t mustafar_default_cpu_variant(void) {
    int32_t variant = MUSTAFAR_CPU_VARIANT_AUTO;
    exported([&] { variant = default_variant(); });
    return variant;
}

int32_t mustafar_get_limits(mustafar_limits* out) {
    return exported([&] {
        check_limits(out);
        *out = limits();
    });
}

int64_t mustafar_compressed_tokens(int64_t length, int32_t lookahead, int32_t local_window, int32_t group_size) {
    if (length < 0 || lookahead < 0 || local_window < 0 || group_size < 1) return 0;
    return compressed_tokens<int64_t>(length, lookahead, local_window, group_size);
}

int32_t mustafar_block_bytes(const mustafar_format* format, int64_t* bytes) {
    return exported([&] {
        check_block_bytes(format, bytes);
        *bytes = fixed_block_bytes(*format);
    });
}

int32_t mustafar_prune(const mustafar_context* context, const mustafar_format* format, int32_t batch, int32_t heads,
                       int64_t tokens, const mustafar_dense* source, const float* importance, uint32_t* bitmap) {
    return exported([&] {
        check_prune(checked(context), format, batch, heads, tokens, source, importance, bitmap);
        ErrorText text;
        pass_on(backend(*context).prune(*context, *format, batch, heads, tokens, *source, importance, bitmap, text),
                text);
    });
}

int32_t mustafar_offsets(const mustafar_context* context, const mustafar_format* format, int32_t batch, int32_t heads,
                         int64_t tokens, const uint32_t* bitmap, uint32_t* offsets, int64_t* page_bytes) {
    return exported([&] {
        check_offsets(checked(context), format, batch, heads, tokens, bitmap, offsets, page_bytes);
        ErrorText text;
        pass_on(backend(*context).offsets(*context, *format, batch, heads, tokens, bitmap, offsets, page_bytes, text),
                text);
    });
}

int32_t mustafar_key_factors(const mustafar_context* context, int32_t dtype, int32_t head_dim, int32_t batch,
                             int32_t heads, int64_t tokens, const mustafar_dense* source, float* factors) {
    return exported([&] {
        checked(context);
        check_key_factors_call(dtype, head_dim, batch, heads, tokens, source, factors);
        ErrorText text;
        pass_on(backend(*context).key_factors(*context, dtype, head_dim, batch, heads, tokens, *source, factors, text),
                text);
    });
}

int32_t mustafar_compress(const mustafar_context* context, int32_t batch, int32_t heads, int64_t tokens,
                          const mustafar_dense* source, const uint32_t* bitmap, const float* importance,
                          const float* key_factors, const mustafar_blocks* destination) {
    return exported([&] {
        check_compress(checked(context), batch, heads, tokens, source, bitmap, importance, key_factors, destination);
        ErrorText text;
        pass_on(backend(*context).compress(*context, batch, heads, tokens, *source, bitmap, importance, key_factors,
                                           *destination, text),
                text);
    });
}

int32_t mustafar_decompress(const mustafar_context* context, int32_t batch, int32_t heads, int64_t first,
                            int64_t tokens, const mustafar_blocks* source, const float* key_factors,
                            const mustafar_dense* destination) {
    return exported([&] {
        check_decompress(checked(context), batch, heads, first, tokens, source, key_factors, destination);
        ErrorText text;
        pass_on(backend(*context).decompress(*context, batch, heads, first, tokens, *source, key_factors, *destination,
                                             text),
                text);
    });
}

int32_t mustafar_convert(const mustafar_context* context, int32_t batch, int32_t heads, int64_t tokens,
                         const mustafar_blocks* source, const mustafar_blocks* destination) {
    return exported([&] {
        check_convert(checked(context), batch, heads, tokens, source, destination);
        ErrorText text;
        pass_on(backend(*context).convert(*context, batch, heads, tokens, *source, *destination, text), text);
    });
}

int32_t mustafar_key_scores(const mustafar_context* context, const mustafar_product* product) {
    return exported([&] {
        check_product(checked(context), product, ProductOutput::weights);
        ErrorText text;
        pass_on(backend(*context).key_scores(*context, *product, text), text);
    });
}

int32_t mustafar_value_sum(const mustafar_context* context, const mustafar_product* product) {
    return exported([&] {
        check_product(checked(context), product, ProductOutput::dense);
        ErrorText text;
        pass_on(backend(*context).value_sum(*context, *product, text), text);
    });
}

int32_t mustafar_attention_workspace(const mustafar_context* context, const mustafar_attention* attention,
                                     int64_t* bytes) {
    return exported([&] {
        check_attention_workspace(checked(context), attention, bytes);
        ErrorText text;
        pass_on(backend(*context).attention_workspace(*context, *attention, bytes, text), text);
    });
}

int32_t mustafar_attention_forward(const mustafar_context* context, const mustafar_attention* attention) {
    return exported([&] {
        check_attention(checked(context), attention);
        ErrorText text;
        pass_on(backend(*context).attention(*context, *attention, text), text);
    });
}

int32_t mustafar_append_tokens(const mustafar_context* context, const mustafar_append* append) {
    return exported([&] {
        check_append(checked(context), append);
        ErrorText text;
        pass_on(backend(*context).append(*context, *append, text), text);
    });
}
