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
        Sums sums, ups;
        products(first, count, sums);
        if (gated) products(linear_.out_features + first, count, ups);
        for (int32_t r = 0; r < linear_.rows; ++r) {
            auto* output = row_of<T>(linear_.output, r);
            for (int64_t i = 0; i < count; ++i) {
                float value = gated ? silu(sums[r][i]) * ups[r][i] : sums[r][i];
                if (linear_.residual.data != nullptr) value += T::load(row_of<T>(linear_.residual, r)[first + i]);
                output[first + i] = T::store(value);
            }
        }
    }

private:
    using Sums = float[MUSTAFAR_LINEAR_MAX_ROWS][chunk];  // of every row of the input

    void products(int64_t first, int64_t count, Sums& sums) const {
        for (int64_t i = 0; i < count;) {
            // Fewer rows of the weight than are read at once: one, several times.
            const int64_t rows = count - i >= dot_rows ? dot_rows : 1;
            for (int32_t r = 0; r < linear_.rows; r += dot_inputs) {
                const int inputs = std::min(dot_inputs, linear_.rows - r);
                float found[dot_inputs * dot_rows];
                dot_(row_of<T>(linear_.weight, first + i), rows == 1 ? 0 : linear_.weight.row_stride,
                     input_.data() + int64_t{r} * linear_.in_features, inputs, linear_.in_features, found);
                for (int n = 0; n < inputs; ++n) std::copy_n(found + n * dot_rows, rows, sums[r + n] + i);
            }
            i += rows;
        }
        if (linear_.bias == nullptr) return;
        for (int32_t r = 0; r < linear_.rows; ++r)
            for (int64_t i = 0; i < count; ++i) sums[r][i] += T::load(elements<T>(linear_.bias)[first + i]);
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

bool linear_reads_once(const mustafar_context& context, const mustafar_linear& arguments) {
    const int32_t variant = resolved_variant(context.cpu_variant);
    if (variant == MUSTAFAR_CPU_VARIANT_SCALAR || variant == MUSTAFAR_CPU_VARIANT_NEON) return arguments.rows <= 1;
    // Where a processor has products of bf16, a library takes longer for few rows only.
    const bool has_products = variant == MUSTAFAR_CPU_VARIANT_AVX512_BF16 && arguments.dtype == MUSTAFAR_DTYPE_BF16;
    return arguments.rows <= (has_products ? 8 : 16);
}

}  // namespace mustafar
