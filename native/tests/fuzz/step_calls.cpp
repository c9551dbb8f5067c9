// What a decode step calls between its attention calls.
#include <algorithm>
#include <cstring>

#include "calls.h"

namespace mustafar_fuzz {
namespace {

int32_t dtype(Arguments& from) {
    return from.number32(MUSTAFAR_DTYPE_F32, MUSTAFAR_DTYPE_BF16);
}

float eps(Arguments& from) {
    return from.mishap() ? from.input.ConsumeFloatingPoint<float>() : 1e-5f;
}

void* vector(Arguments& from, wide count, int element) {
    return from.address(from.memory.make<char>(times(count, element), true));
}

void* optional_vector(Arguments& from, wide count, int element) {
    return from.input.ConsumeBool() ? vector(from, count, element) : nullptr;
}

mustafar_rows optional_rows(Arguments& from, int64_t count, int64_t width, int element) {
    return from.input.ConsumeBool() ? from.rows(count, width, element) : mustafar_rows{};
}

// Positions, mostly those of the tables, and their angles.
void angles(Arguments& from, mustafar_rope& rope) {
    const int64_t positions = from.number(1, 8);
    const wide count = times(rope.batch, rope.num_tokens), half = std::max(rope.rotary_dim, 0) / 2;
    int32_t* const table = from.memory.make<int32_t>(count);
    if (count > 0 && count <= 64)
        for (int64_t i = 0; i < static_cast<int64_t>(count); ++i)
            table[i] = from.mishap(32) ? from.input.ConsumeIntegral<int32_t>() : from.number32(0, 7);
    rope.positions = from.address(table);
    if (from.input.ConsumeBool() || from.mishap()) rope.inv_freq = from.address(from.memory.make<double>(half));
    if (rope.inv_freq == nullptr || from.mishap()) {
        rope.table_positions = positions;
        rope.cosines = from.address(from.memory.make<float>(times(positions, half)));
        rope.sines = from.address(from.memory.make<float>(times(positions, half)));
    }
    rope.attention_scaling = from.mishap() ? from.input.ConsumeFloatingPoint<float>() : 1.0f;
}

// Everything but the keys and the values.
void queries_and_norms(Arguments& from, mustafar_rope& rope) {
    const int element = element_bytes(rope.dtype);
    rope.num_heads = from.mishap() ? from.number32(1, 4) : from.multiple(rope.num_kv_heads);
    rope.rotary_dim =
        from.mishap() ? from.number32(2, 64) : rope.head_dim / 2 / from.input.ConsumeIntegralInRange(1, 2) * 2;
    rope.eps = eps(from);
    rope.query = from.dense(rope.batch, rope.num_heads, rope.num_tokens, rope.head_dim, element);
    rope.query_output = from.input.ConsumeBool()
                            ? rope.query
                            : from.dense(rope.batch, rope.num_heads, rope.num_tokens, rope.head_dim, element);
    rope.query_norm = optional_vector(from, rope.head_dim, element);
    rope.key_norm = optional_vector(from, rope.head_dim, element);
    angles(from, rope);
}

mustafar_sampling_options sampling_options(Arguments& from) {
    mustafar_sampling_options options{};
    if (from.input.ConsumeBool()) {  // any numbers: they have a meaning, too
        from.input.ConsumeData(&options, sizeof options);
        return options;
    }
    options.temperature = from.input.ConsumeFloatingPointInRange(0.0f, 2.0f);
    options.top_k = from.number32(0, 40);
    options.top_p = from.input.ConsumeFloatingPointInRange(0.0f, 1.0f);
    options.min_p = from.input.ConsumeFloatingPointInRange(0.0f, 0.2f);
    options.repetition_penalty = from.input.ConsumeFloatingPointInRange(0.5f, 2.0f);
    options.frequency_penalty = from.input.ConsumeFloatingPointInRange(-1.0f, 1.0f);
    options.presence_penalty = from.input.ConsumeFloatingPointInRange(-1.0f, 1.0f);
    options.seed = from.input.ConsumeIntegral<uint64_t>();
    return options;
}

}  // namespace

void rms_norm(Arguments& from) {
    const mustafar_context context = from.context();
    mustafar_norm norm{};
    norm.dtype = dtype(from);
    norm.hidden_size = from.number32(1, 80);
    norm.rows = from.number(0, 4);
    norm.eps = eps(from);
    const int element = element_bytes(norm.dtype);
    norm.input = from.rows(norm.rows, norm.hidden_size, element);
    norm.residual = optional_rows(from, norm.rows, norm.hidden_size, element);
    norm.weight = vector(from, norm.hidden_size, element);
    norm.output = from.input.ConsumeBool() ? norm.input : from.rows(norm.rows, norm.hidden_size, element);
    if (from.memory.possible()) mustafar_rms_norm(from.address(&context), from.address(&norm));
}

void rotate(Arguments& from) {
    const mustafar_context context = from.context();
    mustafar_rope rope{};
    rope.dtype = dtype(from);
    rope.batch = from.number32(0, 2);
    rope.num_tokens = from.number32(0, 3);
    rope.num_kv_heads = from.number32(1, 2);
    rope.head_dim = from.number32(2, 70);
    queries_and_norms(from, rope);
    const int element = element_bytes(rope.dtype);
    const auto heads = [&] {
        return from.dense(rope.batch, rope.num_kv_heads, rope.num_tokens, rope.head_dim, element);
    };
    rope.key = heads();
    rope.key_output = from.input.ConsumeBool() ? rope.key : heads();
    if (from.input.ConsumeBool()) {
        rope.value = heads();
        rope.value_output = from.input.ConsumeBool() ? rope.value : heads();
    }
    if (from.memory.possible()) mustafar_rotate(from.address(&context), from.address(&rope));
}

void rotate_append(Arguments& from) {
    const mustafar_context context = from.context();
    const mustafar_append append = appended(from);
    const mustafar_format& format = append.keys.format;
    mustafar_rope rope{};
    rope.dtype = from.mishap(32) ? dtype(from) : format.dtype;
    rope.batch = from.mishap(32) ? from.number32(0, 2) : append.batch;
    rope.num_tokens = from.mishap(32) ? from.number32(0, 3) : append.num_tokens;
    rope.num_kv_heads = from.mishap(32) ? from.number32(1, 2) : append.num_kv_heads;
    rope.head_dim = from.mishap(32) ? from.number32(2, 512) : format.head_dim;
    queries_and_norms(from, rope);
    const auto heads = [&] {
        return from.dense(rope.batch, rope.num_kv_heads, rope.num_tokens, rope.head_dim, element_bytes(rope.dtype));
    };
    rope.key_output = from.mishap(32) ? heads() : append.new_keys;
    rope.key = from.input.ConsumeBool() ? rope.key_output : heads();
    if (from.mishap(32)) rope.value = rope.value_output = heads();
    if (from.memory.possible() && append.num_tokens <= 4096)
        mustafar_rotate_append(&context, from.address(&rope), from.address(&append));
}

void silu_mul(Arguments& from) {
    const mustafar_context context = from.context();
    const int32_t type = dtype(from);
    const int64_t count = from.number(0, 4);
    const int32_t width = from.number32(1, 80);
    const mustafar_rows input = from.rows(count, 2 * int64_t{width}, element_bytes(type));
    const mustafar_rows output = from.rows(count, width, element_bytes(type));
    if (from.memory.possible())
        mustafar_silu_mul(from.address(&context), type, count, width, from.address(&input), from.address(&output));
}

void linear(Arguments& from) {
    const mustafar_context context = from.context();
    mustafar_linear linear{};
    linear.dtype = dtype(from);
    linear.rows = from.number32(0, MUSTAFAR_LINEAR_MAX_ROWS);
    linear.in_features =
        from.input.ConsumeIntegralInRange<int>(0, 7) == 0 ? from.number32(1, 600) : from.number32(1, 70);
    linear.out_features = from.number32(1, 20);
    linear.activation = from.number32(MUSTAFAR_ACTIVATION_NONE, MUSTAFAR_ACTIVATION_SILU_MUL);
    linear.eps = eps(from);
    const int element = element_bytes(linear.dtype);
    const int64_t outputs = (linear.activation == MUSTAFAR_ACTIVATION_SILU_MUL ? 2 : 1) * int64_t{linear.out_features};
    linear.input = from.rows(linear.rows, linear.in_features, element);
    linear.norm = optional_vector(from, linear.in_features, element);
    linear.weight = from.rows(outputs, linear.in_features, element);
    linear.bias = optional_vector(from, outputs, element);
    linear.residual = optional_rows(from, linear.rows, linear.out_features, element);
    linear.output = linear.residual.data != nullptr && from.input.ConsumeBool()
                        ? linear.residual
                        : from.rows(linear.rows, linear.out_features, element);
    if (from.memory.possible()) mustafar_linear_forward(from.address(&context), from.address(&linear));
}

void sample(Arguments& from) {
    const mustafar_context context = from.context();
    mustafar_sampling sampling{};
    sampling.dtype = dtype(from);
    sampling.batch = from.number32(0, 3);
    sampling.vocab_size =
        from.input.ConsumeIntegralInRange<int>(0, 7) == 0 ? from.number32(1, 3000) : from.number32(1, 80);
    const int64_t words = (int64_t{sampling.vocab_size} + 31) / 32;
    const wide elements = times(sampling.batch, sampling.vocab_size);
    sampling.logits = from.rows(sampling.batch, sampling.vocab_size, element_bytes(sampling.dtype));
    mustafar_sampling_options* const options = from.memory.make<mustafar_sampling_options>(sampling.batch);
    if (sampling.batch > 0 && sampling.batch <= 64)
        std::generate_n(options, sampling.batch, [&] { return sampling_options(from); });
    sampling.options = from.address(options);
    sampling.steps = from.address(from.memory.make<int64_t>(sampling.batch));
    if (from.input.ConsumeBool()) sampling.counts = from.address(from.memory.make<int32_t>(elements));
    if (from.input.ConsumeBool())
        sampling.prompt = from.address(from.memory.make<uint32_t>(times(sampling.batch, words)));
    if (from.input.ConsumeBool()) {
        sampling.allowed_stride = from.mishap() ? from.number(0, 200) : from.input.ConsumeBool() ? words : 0;
        const wide rows = sampling.batch > 0 ? times(sampling.batch - 1, sampling.allowed_stride) + words : 0;
        sampling.allowed = from.address(from.memory.make<uint32_t>(rows));
    }
    int64_t* const tokens = from.memory.make<int64_t>(sampling.batch);
    sampling.tokens = from.address(tokens);
    if (from.input.ConsumeBool()) sampling.log_probabilities = from.address(from.memory.make<float>(sampling.batch));
    if (!from.memory.possible()) return;
    if (mustafar_sample(from.address(&context), from.address(&sampling)) != MUSTAFAR_STATUS_OK) return;
    if (std::any_of(tokens, tokens + sampling.batch, [&](int64_t t) { return t < -1 || t >= sampling.vocab_size; }))
        __builtin_trap();
}

}  // namespace mustafar_fuzz
