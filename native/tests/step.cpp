// The operations of a decode step on the CPU, every variant, against plain computations in double.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "mustafar/mustafar.h"

namespace {

#define EXPECT(condition)                                                                            \
    if (!(condition)) {                                                                              \
        std::fprintf(stderr, "step.cpp:%d: %s (%s)\n", __LINE__, #condition, mustafar_last_error()); \
        std::exit(1);                                                                                \
    }
#define EXPECT_OK(call) EXPECT((call) == MUSTAFAR_STATUS_OK)

std::vector<float> numbers(size_t count) {
    static std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(generator);
    return values;
}

bool near(double actual, double expected, double tolerance = 2e-5) {
    return std::abs(actual - expected) <= tolerance * (1 + std::abs(expected));
}

double silu(double x) {
    return x / (1 + std::exp(-x));
}

std::vector<double> normalised(const float* x, const float* weight, int n, double eps) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += double{x[i]} * double{x[i]};
    std::vector<double> result(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i)
        result[static_cast<size_t>(i)] = double{x[i]} / std::sqrt(sum / n + eps) * double{weight[i]};
    return result;
}

void norms(const mustafar_context& context, int n) {
    std::vector<float> input = numbers(3 * static_cast<size_t>(n)), residual = numbers(input.size()),
                       weight = numbers(static_cast<size_t>(n)), output(input.size());
    const std::vector<float> before = residual;
    const mustafar_norm norm{MUSTAFAR_DTYPE_F32, n, 3, 1e-5f, {input.data(), n}, {residual.data(), n}, weight.data(),
                             {output.data(), n}};
    EXPECT_OK(mustafar_rms_norm(&context, &norm));
    for (size_t i = 0; i < residual.size(); ++i) EXPECT(residual[i] == before[i] + input[i]);
    for (int r = 0; r < 3; ++r) {
        const std::vector<double> expected = normalised(residual.data() + r * n, weight.data(), n, 1e-5);
        for (int i = 0; i < n; ++i)
            EXPECT(near(double{output[static_cast<size_t>(r * n + i)]}, expected[static_cast<size_t>(i)]));
    }
}

// Two sequences of one token; rotary_dim leaves channels out where it can.
void rotation(const mustafar_context& context, int head_dim, int rotary_dim) {
    const int heads = 4, kv_heads = 2, all = heads + 2 * kv_heads;
    const std::vector<float> source = numbers(static_cast<size_t>(2 * all * head_dim));
    std::vector<float> qkv = source, weight = numbers(static_cast<size_t>(head_dim));
    const int32_t positions[] = {7, 123456};
    std::vector<double> inv_freq(static_cast<size_t>(rotary_dim / 2));
    for (size_t i = 0; i < inv_freq.size(); ++i)
        inv_freq[i] = std::pow(500000.0, -2.0 * static_cast<double>(i) / rotary_dim);
    mustafar_rope rope{};
    rope.batch = 2;
    rope.num_tokens = 1;
    rope.num_heads = heads;
    rope.num_kv_heads = kv_heads;
    rope.head_dim = head_dim;
    rope.rotary_dim = rotary_dim;
    rope.eps = 1e-6f;
    rope.query = rope.query_output = {qkv.data(), all * head_dim, head_dim, all * head_dim};
    rope.key = rope.key_output = {qkv.data() + heads * head_dim, all * head_dim, head_dim, all * head_dim};
    rope.query_norm = weight.data();
    rope.positions = positions;
    rope.inv_freq = inv_freq.data();
    rope.attention_scaling = 1.25f;
    EXPECT_OK(mustafar_rotate(&context, &rope));
    for (int row = 0; row < 2 * all; ++row) {
        const int head = row % all, position = positions[row / all];
        const float* const in = source.data() + row * head_dim;
        std::vector<double> x(in, in + head_dim);
        if (head < heads) x = normalised(in, weight.data(), head_dim, 1e-6);
        std::vector<double> expected = x;
        for (int i = 0; i < rotary_dim / 2 && head < heads + kv_heads; ++i) {
            const double angle = position * inv_freq[static_cast<size_t>(i)];
            const size_t a = static_cast<size_t>(i), b = static_cast<size_t>(i + rotary_dim / 2);
            expected[a] = 1.25 * (x[a] * std::cos(angle) - x[b] * std::sin(angle));
            expected[b] = 1.25 * (x[b] * std::cos(angle) + x[a] * std::sin(angle));
        }
        for (int c = 0; c < head_dim; ++c)
            EXPECT(near(double{qkv[static_cast<size_t>(row * head_dim + c)]}, expected[static_cast<size_t>(c)]));
    }
    const int32_t bad[] = {0, -1};
    rope.positions = bad;
    EXPECT(mustafar_rotate(&context, &rope) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
}

// The first token of a sequence: its rotated key and its value are in the ring, its rotated queries in their place.
void rotated_append(const mustafar_context& context) {
    constexpr int heads = 4, kv_heads = 2, head_dim = 64, all = heads + 2 * kv_heads, capacity = 32;
    std::vector<float> qkv = numbers(all * head_dim), rotated = qkv, weight = numbers(head_dim);
    std::vector<float> keys(kv_heads * capacity * head_dim), values(keys.size());
    std::vector<double> inv_freq(head_dim / 2, 0.01);
    const int32_t position = 1000, none = 0;
    mustafar_rope rope{};
    rope.batch = rope.num_tokens = 1;
    rope.num_heads = heads;
    rope.num_kv_heads = kv_heads;
    rope.head_dim = rope.rotary_dim = head_dim;
    rope.query = rope.query_output = {rotated.data(), 0, head_dim, 0};
    rope.key = rope.key_output = {rotated.data() + heads * head_dim, 0, head_dim, 0};
    rope.key_norm = weight.data();
    rope.positions = &position;
    rope.inv_freq = inv_freq.data();
    rope.attention_scaling = 1;
    EXPECT_OK(mustafar_rotate(&context, &rope));

    rope.query = rope.query_output = {qkv.data(), 0, head_dim, 0};
    rope.key = rope.key_output = {qkv.data() + heads * head_dim, 0, head_dim, 0};
    mustafar_append append{};
    append.batch = append.num_slots = append.num_tokens = append.max_tokens = 1;
    append.num_kv_heads = kv_heads;
    append.group_size = append.tail_capacity = capacity;
    append.lengths = append.compressed = &none;
    append.new_keys = rope.key_output;
    append.new_values = {qkv.data() + (heads + kv_heads) * head_dim, 0, head_dim, 0};
    append.keys.format = append.values.format = {
        head_dim, MUSTAFAR_DTYPE_F32, 0, MUSTAFAR_PATTERN_UNSTRUCTURED, MUSTAFAR_LAYOUT_FIXED, 0, 32};
    append.tail_keys = {keys.data(), 0, capacity * head_dim, head_dim};
    append.tail_values = {values.data(), 0, capacity * head_dim, head_dim};
    const auto refused = [&](const char* name, const auto& change) {
        mustafar_rope wrong_rope = rope;
        mustafar_append wrong_append = append;
        change(wrong_rope, wrong_append);
        EXPECT(mustafar_rotate_append(&context, &wrong_rope, &wrong_append) == MUSTAFAR_STATUS_INVALID_ARGUMENT);
        EXPECT(std::strstr(mustafar_last_error(), name) != nullptr);
    };
    refused("rope.dtype", [](mustafar_rope& r, mustafar_append&) { r.dtype = MUSTAFAR_DTYPE_F16; });
    refused("rope.batch", [](mustafar_rope& r, mustafar_append&) { r.batch = 0; });
    refused("rope.num_tokens", [](mustafar_rope& r, mustafar_append&) { r.num_tokens = 0; });
    refused("rope.num_kv_heads", [](mustafar_rope& r, mustafar_append&) { r.num_kv_heads = 1; });
    refused("rope.head_dim", [](mustafar_rope& r, mustafar_append&) { r.head_dim = r.rotary_dim = 32; });
    refused("rope.value", [](mustafar_rope& r, mustafar_append&) { r.value = r.value_output = r.key; });
    refused("append.new_keys", [](mustafar_rope&, mustafar_append& a) { a.new_keys = a.new_values; });
    refused("positions", [](mustafar_rope& r, mustafar_append&) {
        static const int32_t negative = -1;
        r.positions = &negative;
    });
    EXPECT(keys == std::vector<float>(keys.size()) && values == keys);

    EXPECT_OK(mustafar_rotate_append(&context, &rope, &append));
    EXPECT(std::equal(rotated.begin(), rotated.begin() + heads * head_dim, qkv.begin()));
    for (int head = 0; head < kv_heads; ++head) {
        const float* const key = rotated.data() + (heads + head) * head_dim;
        EXPECT(std::equal(key, key + head_dim, keys.begin() + head * capacity * head_dim));
        EXPECT(std::equal(key + kv_heads * head_dim, key + (kv_heads + 1) * head_dim,
                          values.begin() + head * capacity * head_dim));
    }
}

void linears(const mustafar_context& context, int rows, int in, int out, bool gated, bool extras) {
    const int parts = gated ? 2 : 1;
    std::vector<float> input = numbers(static_cast<size_t>(rows * in)),
                       weight = numbers(static_cast<size_t>(parts * out * in)), norm = numbers(static_cast<size_t>(in)),
                       bias = numbers(static_cast<size_t>(parts * out)),
                       residual = numbers(static_cast<size_t>(rows * out)), output(residual.size());
    mustafar_linear linear{};
    linear.rows = rows;
    linear.in_features = in;
    linear.out_features = out;
    linear.activation = gated ? MUSTAFAR_ACTIVATION_SILU_MUL : MUSTAFAR_ACTIVATION_NONE;
    linear.eps = 1e-5f;
    linear.input = {input.data(), in};
    linear.weight = {weight.data(), in};
    linear.output = {output.data(), out};
    if (extras) {
        linear.norm = norm.data();
        linear.bias = bias.data();
        linear.residual = {residual.data(), out};
    }
    EXPECT_OK(mustafar_linear_forward(&context, &linear));
    for (int r = 0; r < rows; ++r) {
        std::vector<double> x(input.data() + r * in, input.data() + (r + 1) * in);
        if (extras) x = normalised(input.data() + r * in, norm.data(), in, 1e-5);
        for (int o = 0; o < out; ++o) {
            double sums[2] = {}, magnitude = 1;
            for (int part = 0; part < parts; ++part) {
                const int row = part * out + o;
                for (int i = 0; i < in; ++i) {
                    const double product =
                        x[static_cast<size_t>(i)] * double{weight[static_cast<size_t>(row * in + i)]};
                    sums[part] += product;
                    magnitude += std::abs(product);
                }
                if (extras) sums[part] += double{bias[static_cast<size_t>(row)]};
            }
            double expected = gated ? silu(sums[0]) * sums[1] : sums[0];
            if (extras) expected += double{residual[static_cast<size_t>(r * out + o)]};
            EXPECT(std::abs(double{output[static_cast<size_t>(r * out + o)]} - expected) <=
                   1e-6 * magnitude * (1 + (gated ? std::abs(sums[0]) + std::abs(sums[1]) : 0)));
        }
    }
}

void activation(const mustafar_context& context) {
    std::vector<float> input = numbers(2 * 2 * 37), output(2 * 37);
    const mustafar_rows in{input.data(), 74}, out{output.data(), 37};
    EXPECT_OK(mustafar_silu_mul(&context, MUSTAFAR_DTYPE_F32, 2, 37, &in, &out));
    for (size_t i = 0; i < output.size(); ++i) {
        const size_t at = i / 37 * 74 + i % 37;
        EXPECT(near(double{output[i]}, silu(double{input[at]}) * double{input[at + 37]}));
    }
}

struct Sampling {
    std::vector<float> logits;
    mustafar_sampling_options options{1, 0, 1, 0, 1, 0, 0, 0, 42};
    std::vector<int32_t> counts;
    std::vector<uint32_t> allowed;
    int64_t step = 0;
    float log_probability = 0;

    int64_t draw(const mustafar_context& context) {
        int64_t token = -2;
        mustafar_sampling s{};
        s.batch = 1;
        s.vocab_size = static_cast<int32_t>(logits.size());
        s.logits = {logits.data(), s.vocab_size};
        s.options = &options;
        s.steps = &step;
        s.counts = counts.empty() ? nullptr : counts.data();
        s.allowed = allowed.empty() ? nullptr : allowed.data();
        s.tokens = &token;
        s.log_probabilities = &log_probability;
        EXPECT_OK(mustafar_sample(&context, &s));
        return token;
    }
};

// Tokens that filters leave, found by many draws, and how often each is drawn.
std::vector<int> frequencies(const mustafar_context& context, Sampling s, int draws) {
    std::vector<int> counts(s.logits.size());
    for (int i = 0; i < draws; ++i) ++counts[static_cast<size_t>(s.draw(context))];
    EXPECT(s.step == draws);
    return counts;
}

void sampling(const mustafar_context& context) {
    Sampling s;
    const double probabilities[] = {0.05, 0.4, 0.1, 0.3, 0.1, 0.05};
    for (const double p : probabilities) s.logits.push_back(static_cast<float>(std::log(p)) + 3.0f);
    constexpr int draws = 20000;
    double chi_square = 0;
    std::vector<int> drawn = frequencies(context, s, draws);
    for (size_t i = 0; i < 6; ++i)
        chi_square += std::pow(drawn[i] - draws * probabilities[i], 2) / (draws * probabilities[i]);
    EXPECT(chi_square < 20.5);  // 5 degrees of freedom: exceeded once in 1000 seeds
    EXPECT(frequencies(context, s, draws) == drawn);

    const auto kept = [&](const Sampling& of) {
        std::vector<size_t> tokens;
        const std::vector<int> counts = frequencies(context, of, 2000);
        for (size_t i = 0; i < counts.size(); ++i)
            if (counts[i] > 0) tokens.push_back(i);
        return tokens;
    };
    using Tokens = std::vector<size_t>;
    Sampling some = s;
    some.options.top_k = 3;  // of the two of 0.1 the lower id
    EXPECT((kept(some) == Tokens{1, 2, 3}));
    some.options.top_p = 0.8f;  // of the 0.8 that top_k left: 0.4 + 0.3 reach 0.64
    EXPECT((kept(some) == Tokens{1, 3}));
    some = s;
    some.options.top_p = 0.75f;
    EXPECT((kept(some) == Tokens{1, 2, 3}));
    some.options.top_p = 0;
    EXPECT((kept(some) == Tokens{1}));
    some = s;
    some.options.min_p = 0.5f;
    EXPECT((kept(some) == Tokens{1, 3}));
    some = s;
    some.options.top_k = 100;
    EXPECT(kept(some).size() == 6);
    some.allowed = {0b110100};
    EXPECT((kept(some) == Tokens{2, 4, 5}));
    some = s;
    some.options.temperature = 0;
    EXPECT(some.draw(context) == 1 && near(double{some.log_probability}, std::log(0.4)));
    some.counts.assign(6, 0);
    some.options.presence_penalty = 100;
    for (const int64_t token : {1, 3, 2, 4, 0, 5}) EXPECT(some.draw(context) == token);
    EXPECT((some.counts == std::vector<int32_t>{1, 1, 1, 1, 1, 1}));

    constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    for (const float bad : {infinity, nan}) {
        some = s;
        some.logits[2] = bad;
        EXPECT(some.draw(context) == -1 && some.step == 0 && std::isnan(some.log_probability));
    }
    some = s;
    some.logits.assign(6, -infinity);
    EXPECT(some.draw(context) == -1);
    some.logits[4] = 0;
    EXPECT(some.draw(context) == 4);
}

}  // namespace

int main() {
    for (int32_t variant = MUSTAFAR_CPU_VARIANT_AUTO; variant < 32; ++variant) {
        if ((mustafar_cpu_variants() >> variant & 1) == 0) continue;
        for (const int32_t threads : {1, 3}) {
            const mustafar_context context{MUSTAFAR_DEVICE_CPU, 0, threads, variant, nullptr};
            for (const int n : {1, 3, 64, 333}) norms(context, n);
            rotation(context, 64, 64);
            rotation(context, 80, 32);
            rotated_append(context);
            for (const int rows : {0, 1, 3, 8})
                for (const int in : {1, 31, 256, 333})
                    for (const int out : {1, 5, 18})
                        for (const bool gated : {false, true})
                            for (const bool extras : {false, true}) linears(context, rows, in, out, gated, extras);
            activation(context);
            if (threads == 1) sampling(context);
        }
    }
    std::puts("the operations of a decode step agree with double precision");
}
