#include "cpu/parallel.h"
#include "cpu/step/step.h"
#include "cpu/step/values.h"

namespace mustafar {

void silu_mul(const mustafar_context& context, int32_t dtype, int64_t rows, int32_t width, const mustafar_rows& input,
              const mustafar_rows& output) {
    with_dtype(dtype, [&](auto type) {
        using T = decltype(type);
        parallel_for(thread_count(context.num_threads, rows), rows, [&](int64_t row, int) {
            const int32_t count = width;  // a copy, which what is written cannot alias
            const auto* gate = row_of<T>(input, row);
            const auto* up = gate + count;
            auto* out = row_of<T>(output, row);
            for (int32_t i = 0; i < count; ++i) out[i] = T::store(silu(T::load(gate[i])) * T::load(up[i]));
        });
    });
}

}  // namespace mustafar
