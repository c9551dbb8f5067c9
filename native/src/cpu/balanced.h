// Finds the elements that a balanced pattern keeps, for all units of up to four tokens at once. Like row.h, compiled
// for each instruction set: every loop is over positions or units, so that the compiler can vectorise it.
#pragma once

#include <limits>
#include <type_traits>

#include "core/balanced.h"
#include "cpu/keys.h"
#include "cpu/row.h"

namespace mustafar {
namespace {

/*
 * Positions are columns of four elements, the groups of the pattern; four positions make a unit. For values, the
 * elements of a position are one channel of four tokens; for keys, they are channels of one token, a quarter of
 * head_dim apart. Either way, the elements m of all positions lie in a few long runs of memory.
 */
template <bool Keys>
struct Positions {
    // A position's unit, and its group in the unit, from the order of channels in core/balanced.h.
    static constexpr int unit(int position) { return Keys ? position / 16 * 4 + position % 4 : position / 4; }
    static constexpr int group(int position) { return Keys ? position / 4 % 4 : position % 4; }
    static constexpr int position(int unit, int group) {
        return Keys ? unit / 4 * 16 + unit % 4 + 4 * group : 4 * unit + group;
    }
};

constexpr int most_positions = 256;

template <class Rank>
Rank lower(Rank a, Rank b) {
    return b < a ? b : a;
}
template <class Rank>
Rank higher(Rank a, Rank b) {
    return a < b ? b : a;
}

// Selects by key(row, channel). Keys must leave room for four more bits in a rank.
template <class Rank, bool Keys, class Key>
MUSTAFAR_INLINE void balance_by(const Key& key, int tokens, int head_dim, int kept, uint32_t* bitmap) {
    using Order = Positions<Keys>;
    constexpr Rank above_all = std::numeric_limits<Rank>::max();
    const int run = Keys ? head_dim / 4 : head_dim, runs = Keys ? tokens : 1, positions = run * runs;
    const int units = positions / 4;

    // Makes keys unique within a unit: of equal ones, the lower place ranks higher.
    const auto ranked = [](auto number, int m, int p) {
        return static_cast<Rank>((static_cast<Rank>(number) << 4) + 16 - 4 * m - Order::group(p));
    };
    alignas(64) Rank rank[4][most_positions];
    for (int m = 0; m < 4; ++m)
        for (int r = 0; r < runs; ++r) {
            Rank* const out = rank[m] + r * run;
            if (!Keys && m >= tokens) {  // no such token
                for (int p = 0; p < run; ++p) out[p] = ranked(0, m, p);
                continue;
            }
            for (int p = 0; p < run; ++p) out[p] = ranked(key(Keys ? r : m, (Keys ? m * run : 0) + p), m, p);
        }

    // The two elements of each position that may be kept. Of the eight in a unit, the 8 - kept lowest are dropped.
    alignas(64) Rank first[most_positions], second[most_positions];
    for (int p = 0; p < positions; ++p) {
        const Rank a = higher(rank[0][p], rank[1][p]), b = lower(rank[0][p], rank[1][p]);
        const Rank c = higher(rank[2][p], rank[3][p]), d = lower(rank[2][p], rank[3][p]);
        first[p] = higher(a, c);
        second[p] = higher(lower(a, c), higher(b, d));
    }
    alignas(64) Rank candidate[8][most_positions / 4], dropped[most_positions / 4];
    for (int i = 0; i < 4; ++i)
        for (int u = 0; u < units; ++u) {
            candidate[2 * i][u] = first[Order::position(u, i)];
            candidate[2 * i + 1][u] = second[Order::position(u, i)];
        }
    for (int u = 0; u < units; ++u) dropped[u] = 0;
    for (int drop = most_balanced; drop > kept; --drop)
        for (int u = 0; u < units; ++u) {
            Rank next = above_all;
            for (int i = 0; i < 8; ++i) next = lower(next, candidate[i][u] > dropped[u] ? candidate[i][u] : above_all);
            dropped[u] = next;
        }
    for (int p = 0; p < positions; ++p) second[p] = higher(second[p], dropped[Order::unit(p)] + 1);

    alignas(64) uint8_t keep[4][most_positions];
    for (int m = 0; m < 4; ++m)
        for (int p = 0; p < positions; ++p) keep[m][p] = rank[m][p] >= second[p];
    for (int t = 0; t < tokens; ++t)
        for (int channel = 0; channel < head_dim; channel += 32) {
            const auto bits = [&](int c) { return bits_of_16(Keys ? keep[c / run] + t * run + c % run : keep[t] + c); };
            bitmap[(t * head_dim + channel) / 32] = bits(channel) | bits(channel + 16) << 16;
        }
}

// Selects by 31-bit keys. A function of its own: inlined, it would take registers from the other way, of which AVX2 has too few.
template <class T, bool Keys>
[[gnu::noinline]] void balance_by_keys(const char* const* rows, const float* importance, int tokens, int head_dim,
                                       int kept, uint32_t* bitmap) {
    alignas(64) uint32_t keys[4][256];
    KeyRange range;
    for (int t = 0; t < tokens; ++t) range.add(keys_of<T>(rows[t], importance, head_dim, keys[t]));
    const uint32_t base = key_base(range.largest);
    if (range.least < base) {
        const auto key = [&](int t, int c) MUSTAFAR_INLINE_LAMBDA { return keys[t][c]; };
        return balance_by<int64_t, Keys>(key, tokens, head_dim, kept, bitmap);
    }
    const auto key = [&](int t, int c) MUSTAFAR_INLINE_LAMBDA { return above_base(keys[t][c], base); };
    balance_by<int32_t, Keys>(key, tokens, head_dim, kept, bitmap);
}

// Selects by magnitude or, with an importance, by score.
template <class T, bool Keys>
void balance(const char* const* rows, const float* importance, int tokens, int head_dim, int kept, uint32_t* bitmap) {
    using Bits = typename T::Bits;
    if (sizeof(Bits) != 2 || importance != nullptr)
        return balance_by_keys<T, Keys>(rows, importance, tokens, head_dim, kept, bitmap);
    const auto key = [&](int t, int c) MUSTAFAR_INLINE_LAMBDA {
        return Magnitude<T>::key(reinterpret_cast<const Bits*>(rows[t])[c]);
    };
    balance_by<int32_t, Keys>(key, tokens, head_dim, kept, bitmap);
}

}  // namespace
}  // namespace mustafar
