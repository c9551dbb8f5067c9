#include "cpu/pattern.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace mustafar {
namespace {

// Bits past head_dim in a row's last word.
uint32_t excess_bits(int head_dim) {
    return head_dim % 32 == 0 ? 0u : ~0u << head_dim % 32;
}

bool marks(const mustafar_format& format, const uint32_t* bitmap, int token, int channel) {
    return bitmap[token * bitmap_words(format.head_dim) + channel / 32] >> channel % 32 & 1;
}

[[noreturn]] void refuse_unit(const char* what, int token, int channel, const char* expected, int count, int kept) {
    fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
         "bitmap: expected %s%d channels in the %s of channel %d of token %d of a block, got %d", expected, count, what,
         channel, token, kept);
}

// Units of up to four tokens from `first` on.
void check_units(const mustafar_format& format, const uint32_t* bitmap, int first, int tokens) {
    const bool keys = format.pattern == MUSTAFAR_PATTERN_BALANCED_KEYS, whole = keys || tokens == 4;
    const int expected = balanced_kept(format), units = format.head_dim / (keys ? unit_elements : 4);
    for (int t = 0; t < (keys ? tokens : 1); ++t)
        for (int unit = 0; unit < units; ++unit) {
            const int channel = keys ? key_unit_channel(unit) : 4 * unit;
            int count = 0;
            for (int i = 0; i < 4; ++i) {
                int group = 0;
                for (int m = 0; m < (keys ? 4 : tokens); ++m)
                    group += keys ? marks(format, bitmap, first + t, channel + 4 * i + m * format.head_dim / 4)
                                  : marks(format, bitmap, first + m, channel + i);
                if (group > 2) refuse_unit("group", first + t, channel + (keys ? 4 * i : i), "at most ", 2, group);
                count += group;
            }
            if (whole ? count != expected : count > expected)
                refuse_unit("unit", first + t, channel, whole ? "" : "at most ", expected, count);
        }
}

void check(const mustafar_format& format, const Kernels& kernels, int tokens, const uint32_t* bitmap) {
    const int words = bitmap_words(format.head_dim);
    for (int t = 0; t < tokens; ++t)
        if (const uint32_t last = bitmap[t * words + words - 1]; (last & excess_bits(format.head_dim)) != 0)
            fail(MUSTAFAR_STATUS_CORRUPT_DATA, "bitmap: bits past head_dim %d are set (last word %08x)",
                 format.head_dim, last);
    if (format.layout == MUSTAFAR_LAYOUT_OFFSETS) return;
    if (is_balanced(format)) {
        for (int t = 0; t < tokens; t += 4) check_units(format, bitmap, t, std::min(4, tokens - t));
    } else if (format.pattern == MUSTAFAR_PATTERN_MASK) {
        const int count = kernels.count(bitmap, tokens), most = block_tokens * format.keep;
        if (count > most)
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
                 "bitmap: expected at most %d channels in a block of %d tokens (%d per token), got %d", most,
                 block_tokens, format.keep, count);
    } else {
        for (int t = 0; t < tokens; ++t)
            if (const int count = kernels.count(bitmap + t * words, 1); count != format.keep)
                fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
                     "bitmap: expected %d channels in each token, got %d in token %d of a block", format.keep, count,
                     t);
    }
}

}  // namespace

void choose(const mustafar_format& format, const Kernels& kernels, const BlockRows& rows, const Selection& selection,
            uint32_t* bitmap) {
    const int words = bitmap_words(format.head_dim);
    if (selection.bitmap != nullptr) {
        check(format, kernels, rows.tokens, selection.bitmap);
        std::memcpy(bitmap, selection.bitmap, static_cast<size_t>(rows.tokens * words) * sizeof *bitmap);
        return;
    }
    if (keeps_all(format)) {
        for (int t = 0; t < rows.tokens; ++t)
            for (int w = 0; w < words; ++w)
                bitmap[t * words + w] = format.head_dim - 32 * w >= 32 ? ~0u : (1u << format.head_dim % 32) - 1;
        return;
    }
    if (!is_balanced(format)) {
        kernels.select(rows.row, selection.importance, rows.tokens, format.head_dim, format.keep, bitmap);
        return;
    }
    const bool keys = format.pattern == MUSTAFAR_PATTERN_BALANCED_KEYS;
    const Kernels::Select balance = keys ? kernels.balance_keys : kernels.balance_values;
    for (int t = 0; t < rows.tokens; t += 4)
        balance(rows.row + t, selection.importance, std::min(4, rows.tokens - t), format.head_dim,
                balanced_kept(format), bitmap + t * words);
}

}  // namespace mustafar
