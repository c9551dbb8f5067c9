// The C functions for a decode step.
#include "api/exported.h"
#include "core/checks.h"
#include "core/validate.h"
#include "mustafar/mustafar.h"

using namespace mustafar;

int32_t mustafar_rms_norm(const mustafar_context* context, const mustafar_norm* norm) {
    return exported([&] {
        checked(context);
        check_norm(norm);
        ErrorText text;
        pass_on(backend(*context).rms_norm(*context, *norm, text), text);
    });
}

int32_t mustafar_rotate(const mustafar_context* context, const mustafar_rope* rope) {
    return exported([&] {
        checked(context);
        check_rope(rope);
        ErrorText text;
        pass_on(backend(*context).rotate(*context, *rope, text), text);
    });
}

int32_t mustafar_rotate_append(const mustafar_context* context, const mustafar_rope* rope,
                               const mustafar_append* append) {
    return exported([&] {
        checked(context);
        check_rotate_append(*context, rope, append);
        ErrorText text;
        pass_on(backend(*context).rotate_append(*context, *rope, *append, text), text);
    });
}

int32_t mustafar_silu_mul(const mustafar_context* context, int32_t dtype, int64_t rows, int32_t width,
                          const mustafar_rows* input, const mustafar_rows* output) {
    return exported([&] {
        checked(context);
        check_silu_mul(dtype, rows, width, input, output);
        ErrorText text;
        pass_on(backend(*context).silu_mul(*context, dtype, rows, width, *input, *output, text), text);
    });
}

int32_t mustafar_linear_forward(const mustafar_context* context, const mustafar_linear* linear) {
    return exported([&] {
        checked(context);
        check_linear(linear);
        ErrorText text;
        pass_on(backend(*context).linear(*context, *linear, text), text);
    });
}

int32_t mustafar_linear_reads_once(const mustafar_context* context, const mustafar_linear* linear, int32_t* result) {
    return exported([&] {
        checked(context);
        check_linear(linear);
        not_null("result", result);
        ErrorText text;
        pass_on(backend(*context).linear_reads_once(*context, *linear, result, text), text);
    });
}

int32_t mustafar_sample(const mustafar_context* context, const mustafar_sampling* sampling) {
    return exported([&] {
        checked(context);
        check_sampling(sampling);
        ErrorText text;
        pass_on(backend(*context).sample(*context, *sampling, text), text);
    });
}
