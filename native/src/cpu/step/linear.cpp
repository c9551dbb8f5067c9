// A linear layer for few rows: threads share the weight's rows, each of which is read once for all rows of the input.
#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/step/dot.h"
#include "cpu/step/step.h"
#include "cpu/step/values.h"
#include "cpu/variant.h"

namespace mustafar {
namespace {

constexpr int64_t chunk = 16;  // outputs of one work item

Dot dot_for(int32_t variant, int32_t dtype) {
    switch (resolved_variant(variant)) {
#if defined(__x86_64__)
        case MUSTAFAR_CPU_VARIANT_AVX512_BF16:  // its products of pairs would round the input and flush small weights
        case MUSTAFAR_CPU_VARIANT_AVX512:
        case MUSTAFAR_CPU_VARIANT_AVX512_CORE: return avx512core_dot(dtype);
        case MUSTAFAR_CPU_VARIANT_AVX2: return avx2_dot(dtype);
#endif
        default: return scalar_dot(dtype);
    }
}

// The input's rows as f32, normalised and rounded if there is a norm.
template <class T>
std::vector<float> prepared_input(const mustafar_linear& linear) {
    const size_t width = static_cast<size_t>(linear.in_features);
    std::vector<float> values(width * static_cast<size_t>(linear.rows));
    for (int32_t r = 0; r < linear.rows; ++r) {
        float* x = values.data() + width * static_cast<size_t>(r);
        const auto* input = row_of<T>(linear.input, r);
        for (size_t i = 0; i < width; ++i) x[i] = T::load(input[i]);
        if (linear.norm == nullptr) continue;
        const float factor = norm_factor(x, linear.in_features, linear.eps);
        const auto* norm = elements<T>(linear.norm);
        for (size_t i = 0; i < width; ++i) x[i] = T::load(T::store(x[i] * factor * T::load(norm[i])));
    }
    return values;
}

template <class T>
class Linear {
public:
    Linear(const mustafar_context& context, const mustafar_linear& linear)
        : linear_(linear), dot_(dot_for(context.cpu_variant, linear.dtype)), input_(prepared_input<T>(linear)) {}

    // Outputs first ... first + count - 1.
    void outputs(int64_t first, int64_t count) const {
        const bool gated = linear_.activation == MUSTAFAR_ACTIVATION_SILU_MUL;
        for (int32_t r = 0; r < linear_.rows; ++r) {
            float sums[chunk], ups[chunk];
            products(r, first, count, sums);
            if (gated) products(r, linear_.out_features + first, count, ups);
            auto* output = row_of<T>(linear_.output, r);
            for (int64_t i = 0; i < count; ++i) {
                float value = gated ? silu(sums[i]) * ups[i] : sums[i];
                if (linear_.residual.data != nullptr) value += T::load(row_of<T>(linear_.residual, r)[first + i]);
                output[first + i] = T::store(value);
            }
        }
    }

private:
    void products(int32_t r, int64_t first, int64_t count, float* sums) const {
        const float* x = input_.data() + int64_t{r} * linear_.in_features;
        for (int64_t i = 0; i < count; i += dot_rows) {
            if (count - i >= dot_rows) {
                dot_(row_of<T>(linear_.weight, first + i), linear_.weight.row_stride, x, linear_.in_features, sums + i);
                continue;
            }
            for (int64_t rest = i; rest < count; ++rest) {  // a stride of 0: one row, several times
                float same[dot_rows];
                dot_(row_of<T>(linear_.weight, first + rest), 0, x, linear_.in_features, same);
                sums[rest] = same[0];
            }
        }
        if (linear_.bias != nullptr)
            for (int64_t i = 0; i < count; ++i) sums[i] += T::load(elements<T>(linear_.bias)[first + i]);
    }

    const mustafar_linear& linear_;
    Dot dot_;
    std::vector<float> input_;  // [rows, in_features]
};

}  // namespace

void linear(const mustafar_context& context, const mustafar_linear& arguments) {
    if (arguments.rows == 0) return;
    with_dtype(arguments.dtype, [&](auto type) {
        const Linear<decltype(type)> layer(context, arguments);
        const int64_t items = divide_up(arguments.out_features, chunk);
        parallel_for(thread_count(context.num_threads, items), items, [&](int64_t item, int) {
            layer.outputs(item * chunk, std::min(chunk, arguments.out_features - item * chunk));
        });
    });
}

}  // namespace mustafar
