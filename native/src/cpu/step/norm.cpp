#include <vector>

#include "cpu/parallel.h"
#include "cpu/step/step.h"
#include "cpu/step/values.h"

namespace mustafar {

void rms_norm(const mustafar_context& context, const mustafar_norm& norm) {
    const int threads = thread_count(context.num_threads, norm.rows);
    const size_t width = static_cast<size_t>(norm.hidden_size);
    std::vector<float> values(width * static_cast<size_t>(threads));
    with_dtype(norm.dtype, [&](auto type) {
        using T = decltype(type);
        const auto* weight = elements<T>(norm.weight);
        parallel_for(threads, norm.rows, [&](int64_t row, int thread) {
            float* x = values.data() + width * static_cast<size_t>(thread);
            const auto* input = row_of<T>(norm.input, row);
            if (norm.residual.data != nullptr) {
                auto* residual = row_of<T>(norm.residual, row);
                for (size_t i = 0; i < width; ++i) {
                    residual[i] = T::store(T::load(residual[i]) + T::load(input[i]));
                    x[i] = T::load(residual[i]);
                }
            } else {
                for (size_t i = 0; i < width; ++i) x[i] = T::load(input[i]);
            }
            const float factor = norm_factor(x, norm.hidden_size, norm.eps);
            auto* output = row_of<T>(norm.output, row);
            for (size_t i = 0; i < width; ++i) output[i] = T::store(x[i] * factor * T::load(weight[i]));
        });
    });
}

}  // namespace mustafar
