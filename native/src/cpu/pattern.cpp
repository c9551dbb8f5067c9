#include "cpu/pattern.h"

#include <algorithm>

namespace mustafar {

void choose(const mustafar_format& format, const Kernels& kernels, const BlockRows& rows, uint32_t* bitmap) {
    const int words = bitmap_words(format.head_dim);
    if (keeps_all(format)) {
        for (int t = 0; t < rows.tokens; ++t)
            for (int w = 0; w < words; ++w)
                bitmap[t * words + w] = format.head_dim - 32 * w >= 32 ? ~0u : (1u << format.head_dim % 32) - 1;
        return;
    }
    if (!is_balanced(format)) {
        for (int t = 0; t < rows.tokens; ++t)
            kernels.select(rows.row[t], format.head_dim, format.keep, bitmap + t * words);
        return;
    }
    const bool keys = format.pattern == MUSTAFAR_PATTERN_BALANCED_KEYS;
    const Kernels::Balance balance = keys ? kernels.balance_keys : kernels.balance_values;
    for (int t = 0; t < rows.tokens; t += 4)
        balance(rows.row + t, std::min(4, rows.tokens - t), format.head_dim, balanced_kept(format), bitmap + t * words);
}

}  // namespace mustafar
