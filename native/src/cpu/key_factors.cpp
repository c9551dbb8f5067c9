#include "cpu/key_factors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/format.h"
#include "cpu/dense_row.h"
#include "cpu/row.h"

namespace mustafar {

void compute_key_factors(int32_t dtype, int head_dim, int64_t tokens, const std::function<const char*(int64_t)>& row,
                         float* factors) {
    float largest[max_head_dim] = {}, numbers[max_head_dim];
    for (int64_t t = 0; t < tokens; ++t) {
        widen_row(dtype, row(t), head_dim, numbers);
        for (int c = 0; c < head_dim; ++c) {
            const float magnitude = std::abs(numbers[c]);
            // A NaN counts as infinity, which no later number exceeds.
            largest[c] =
                std::max(largest[c], magnitude == magnitude ? magnitude : std::numeric_limits<float>::infinity());
        }
    }
    const auto counts = [](float magnitude) { return magnitude > 0.0f && std::isfinite(magnitude); };
    double sum = 0.0;
    int count = 0;
    for (int c = 0; c < head_dim; ++c) {
        if (!counts(largest[c])) continue;
        sum += double{largest[c]};
        ++count;
    }
    const double mean = count > 0 ? sum / count : 1.0;
    for (int c = 0; c < head_dim; ++c) {
        const double factor = counts(largest[c]) ? std::clamp(double{largest[c]} / mean, 0x1p-10, 0x1p10) : 1.0;
        factors[c] = f16_to_f32(f32_to_f16(static_cast<float>(factor)));
    }
}

}  // namespace mustafar
