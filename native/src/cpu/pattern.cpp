#include "cpu/pattern.h"

#include <cstring>
#include <type_traits>

namespace mustafar {
namespace {

// Magnitudes as integers in the same order; NaNs are equal to each other and above infinity.
template <class Bits, Bits Infinity>
struct Magnitude {
    using Rank = std::conditional_t<sizeof(Bits) == 2, uint32_t, uint64_t>;

    static Rank key(const char* row, int channel) {
        Bits bits;
        std::memcpy(&bits, row + static_cast<size_t>(channel) * sizeof(Bits), sizeof bits);
        const Bits magnitude = bits & static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
        return magnitude > Infinity ? Rank{Infinity} + 1 : Rank{magnitude};
    }
};

using F32Magnitude = Magnitude<uint32_t, 0x7f800000u>;
using F16Magnitude = Magnitude<uint16_t, 0x7c00u>;
using BF16Magnitude = Magnitude<uint16_t, 0x7f80u>;

template <class M>
void balanced_keys(const BlockRows& rows, int head_dim, int kept, uint32_t* bitmap) {
    const int words = bitmap_words(head_dim), quarter = head_dim / 4;
    for (int t = 0; t < rows.tokens; ++t) {
        uint32_t* bits = bitmap + t * words;
        std::memset(bits, 0, static_cast<size_t>(words) * sizeof *bits);
        for (int unit = 0; unit < head_dim / unit_elements; ++unit) {
            const int first = key_unit_channel(unit);
            typename M::Rank rank[unit_elements];
            for (int bit = 0; bit < unit_elements; ++bit)
                rank[bit] = unit_rank(M::key(rows.row[t], first + 4 * (bit & 3) + quarter * (bit >> 2)), bit);
            const uint32_t mask = select_unit(rank, kept);
            for (int bit = 0; bit < unit_elements; ++bit) {
                const int channel = first + 4 * (bit & 3) + quarter * (bit >> 2);
                bits[channel / 32] |= (mask >> bit & 1u) << channel % 32;
            }
        }
    }
}

template <class M>
void balanced_values(const BlockRows& rows, int head_dim, int kept, uint32_t* bitmap) {
    const int words = bitmap_words(head_dim);
    std::memset(bitmap, 0, static_cast<size_t>(rows.tokens * words) * sizeof *bitmap);
    for (int token = 0; token < rows.tokens; token += 4)
        for (int channel = 0; channel < head_dim; channel += 4) {
            typename M::Rank rank[unit_elements];
            for (int bit = 0; bit < unit_elements; ++bit) {
                const int t = token + (bit >> 2);
                rank[bit] =
                    unit_rank(t < rows.tokens ? M::key(rows.row[t], channel + (bit & 3)) : typename M::Rank{0}, bit);
            }
            const uint32_t mask = select_unit(rank, kept);
            for (int m = 0; m < 4 && token + m < rows.tokens; ++m)
                bitmap[(token + m) * words + channel / 32] |= (mask >> 4 * m & 0xfu) << channel % 32;
        }
}

template <class M>
void balanced(const mustafar_format& format, const BlockRows& rows, uint32_t* bitmap) {
    const auto select = format.pattern == MUSTAFAR_PATTERN_BALANCED_KEYS ? balanced_keys<M> : balanced_values<M>;
    select(rows, format.head_dim, balanced_kept(format), bitmap);
}

}  // namespace

void choose(const mustafar_format& format, const Kernels& kernels, const BlockRows& rows, uint32_t* bitmap) {
    if (!is_balanced(format)) {
        for (int t = 0; t < rows.tokens; ++t)
            kernels.select(rows.row[t], format.head_dim, format.keep, bitmap + t * bitmap_words(format.head_dim));
        return;
    }
    switch (format.dtype) {
        case MUSTAFAR_DTYPE_F16: return balanced<F16Magnitude>(format, rows, bitmap);
        case MUSTAFAR_DTYPE_BF16: return balanced<BF16Magnitude>(format, rows, bitmap);
        default: return balanced<F32Magnitude>(format, rows, bitmap);
    }
}

}  // namespace mustafar
