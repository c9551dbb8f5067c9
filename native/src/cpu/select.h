// Finds the largest channels of a row. Like row.h, compiled for each instruction set.
#pragma once

#include "cpu/keys.h"
#include "cpu/row.h"

namespace mustafar {
namespace {

// For 32 keys: bit i says whether keys[i] is at least the threshold.
[[maybe_unused]] MUSTAFAR_INLINE uint32_t reach(const uint16_t* keys, uint16_t threshold) {
#if defined(__AVX512BW__)
    return _mm512_cmpge_epu16_mask(_mm512_loadu_si512(keys), _mm512_set1_epi16(static_cast<int16_t>(threshold)));
#elif defined(__AVX2__)
    const __m256i lowest = _mm256_set1_epi16(static_cast<int16_t>(threshold));
    __m256i reached[2];
    for (int i = 0; i < 2; ++i) {
        const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys) + i);
        reached[i] = _mm256_cmpeq_epi16(_mm256_max_epu16(half, lowest), half);
    }
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(reached[0], reached[1]), 0xd8);
    return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
#else
    uint32_t reached = 0;
    for (int i = 0; i < 32; ++i) reached |= uint32_t{keys[i] >= threshold} << i;
    return reached;
#endif
}

// A set of a row's channels: bits in W words.
template <int W>
struct Channels {
    uint32_t words[W] = {};

    Channels() = default;
    explicit Channels(int head_dim) {
        for (int w = 0; w < W; ++w) words[w] = head_dim - 32 * w >= 32 ? ~0u : (1u << (head_dim - 32 * w)) - 1;
    }

    int count() const {
        int count = 0;
        for (int w = 0; w < W; ++w) count += std::popcount(words[w]);
        return count;
    }
    void add(const Channels& others) {
        for (int w = 0; w < W; ++w) words[w] |= others.words[w];
    }
    void store(uint32_t* bitmap) const { std::memcpy(bitmap, words, sizeof words); }
    // Keeps only the `most` lowest channels.
    void keep_lowest(int most) {
        for (int w = 0; w < W; ++w) {
            const int there = std::popcount(words[w]);
            if (there > most) words[w] = lowest_set(words[w], most);
            most -= there < most ? there : most;
        }
    }
};

// 16-bit keys of a row's channels; keys beyond the row are 0.
template <int W>
struct Keys16 {
    alignas(64) uint16_t keys[32 * W];

    // The number of keys that are at least a threshold, which is above 0.
    MUSTAFAR_INLINE int count_from(uint32_t threshold) const {
#if defined(__AVX2__)
        int count = 0;
        for (int w = 0; w < W; ++w) count += std::popcount(reach(keys + 32 * w, static_cast<uint16_t>(threshold)));
#else
        const uint16_t lowest = static_cast<uint16_t>(threshold);
        uint16_t count = 0;
        for (const uint16_t key : keys) count = static_cast<uint16_t>(count + (key >= lowest));
#endif
        return count;
    }

    Channels<W> at_least(uint32_t threshold, const Channels<W>& among) const {
        Channels<W> reached;
        if (threshold > 0xffffu) return reached;
        for (int w = 0; w < W; ++w)
            reached.words[w] = reach(keys + 32 * w, static_cast<uint16_t>(threshold)) & among.words[w];
        return reached;
    }

    struct Split {
        Channels<W> above, level;
    };
    // Of some channels those above a threshold, and those level with it.
    Split split(uint32_t threshold, const Channels<W>& among) const {
        Split parts{at_least(threshold + 1, among), at_least(threshold, among)};
        for (int w = 0; w < W; ++w) parts.level.words[w] &= ~parts.above.words[w];
        return parts;
    }

    // The `keep` largest of some channels. At least `keep` of them reach the threshold and fewer exceed it; of equal
    // ones the lower are taken.
    Channels<W> largest(uint32_t threshold, int keep, const Channels<W>& among) const {
        auto [chosen, level] = split(threshold, among);
        level.keep_lowest(keep - chosen.count());
        chosen.add(level);
        return chosen;
    }
};

#if defined(__AVX2__)
constexpr int rows_together = 4;
#else
constexpr int rows_together = 1;  // a count takes longer than the wait for the one before
#endif

/*
 * Exact selection without a sort: finds for each row, bit by bit, the largest threshold of `bits` bits that at least
 * `keep` of its keys reach, or any threshold that exactly `keep` reach. Each count waits for the one before, so several
 * rows take turns.
 */
template <int R, int W>
void find_thresholds(const Keys16<W>* rows, int bits, int keep, uint32_t* found) {
    for (int r = 0; r < R; ++r) found[r] = 0;
    for (uint32_t bit = 1u << (bits - 1); bit != 0; bit >>= 1)
        for (int r = 0; r < R; ++r) {
            const int count = rows[r].count_from(found[r] | bit);
            found[r] |= count >= keep ? bit : 0;
            if (R == 1 && count == keep) return;
        }
}

// 31-bit keys of a row's channels.
template <int W>
struct Keys32 {
    alignas(64) uint32_t keys[32 * W];
    uint32_t top;  // the largest

    // The upper 14 bits above the base. They mostly decide: two bits more would take two counts of the row and save few ties.
    void narrow(Keys16<W>* narrowed) const { narrow_keys(keys, 32 * W, key_base(top), narrowed->keys); }

    // The `wanted` largest of a few channels.
    Channels<W> largest_of(const Channels<W>& few, int wanted) const {
        Channels<W> chosen;
        for (; wanted > 0; --wanted) {
            int best = -1;
            for (int w = 0; w < W; ++w)
                for (uint32_t rest = few.words[w] & ~chosen.words[w]; rest != 0; rest &= rest - 1) {
                    const int channel = 32 * w + std::countr_zero(rest);
                    if (best < 0 || keys[channel] > keys[best]) best = channel;
                }
            chosen.words[best / 32] |= 1u << best % 32;
        }
        return chosen;
    }

    // Decides by the upper halves of the keys, and among equal ones by the lower halves.
    Channels<W> largest(int keep, const Channels<W>& all) const {
        Keys16<W> part;
        uint32_t threshold;
        for (int c = 0; c < 32 * W; ++c) part.keys[c] = static_cast<uint16_t>(keys[c] >> 16);
        find_thresholds<1>(&part, 15, keep, &threshold);
        auto [chosen, level] = part.split(threshold, all);
        const int wanted = keep - chosen.count();
        if (level.count() > wanted) {
            const uint16_t upper = static_cast<uint16_t>(threshold);
            for (int c = 0; c < 32 * W; ++c)
                part.keys[c] = part.keys[c] == upper ? static_cast<uint16_t>(keys[c]) : uint16_t{0};
            find_thresholds<1>(&part, 16, wanted, &threshold);
            level = part.largest(threshold, wanted, level);
        }
        chosen.add(level);
        return chosen;
    }
};

// Marks the `keep` largest of each row's channels; of equal ones, the lower.
template <int W>
void mark_largest(const Keys16<W>* rows, int count, int keep, const Channels<W>& all, uint32_t* bitmap) {
    uint32_t thresholds[rows_together];
    find_thresholds<rows_together>(rows, 15, keep, thresholds);
    for (int r = 0; r < count; ++r) rows[r].largest(thresholds[r], keep, all).store(bitmap + r * W);
}

template <int W>
void mark_largest(const Keys32<W>* rows, int count, int keep, const Channels<W>& all, uint32_t* bitmap) {
    if constexpr (rows_together == 1) return rows[0].largest(keep, all).store(bitmap);
    Keys16<W> narrowed[rows_together];
    uint32_t thresholds[rows_together];
    for (int r = 0; r < rows_together; ++r) rows[r].narrow(&narrowed[r]);
    find_thresholds<rows_together>(narrowed, 14, keep, thresholds);
    for (int r = 0; r < count; ++r) {
        auto [chosen, level] = narrowed[r].split(thresholds[r], all);
        const int wanted = keep - chosen.count(), there = level.count();
        constexpr int few = 8;  // that are found one by one in less time than by counts of the row
        if (there > few && there != wanted)
            chosen = rows[r].largest(keep, all);
        else
            chosen.add(there == wanted ? level : rows[r].largest_of(level, wanted));
        chosen.store(bitmap + r * W);
    }
}

// Sets the bits of the `keep` channels with the largest magnitudes in each row or, with an importance, the largest
// scores.
template <class T, int W>
void select_rows(const char* const* rows, const float* importance, int tokens, int head_dim, int keep,
                 uint32_t* bitmap) {
    using Bits = typename T::Bits;
    const Channels<W> all(head_dim);
    const auto for_rows = [&](auto* keys, const auto& fill) MUSTAFAR_INLINE_LAMBDA {
        for (int t = 0; t < tokens; t += rows_together) {
            const int count = tokens - t < rows_together ? tokens - t : rows_together;
            for (int r = 0; r < count; ++r) fill(reinterpret_cast<const Bits*>(rows[t + r]), keys[r]);
            mark_largest(keys, count, keep, all, bitmap + t * W);
        }
    };
    if (sizeof(Bits) == 2 && importance == nullptr) {
        Keys16<W> keys[rows_together] = {};
        for_rows(keys, [&](const Bits* row, Keys16<W>& own) MUSTAFAR_INLINE_LAMBDA {
            for (int c = 0; c < head_dim; ++c) own.keys[c] = static_cast<uint16_t>(Magnitude<T>::key(row[c]));
        });
        return;
    }
    Keys32<W> keys[rows_together] = {};
    for_rows(keys, [&](const Bits* row, Keys32<W>& own)
                       MUSTAFAR_INLINE_LAMBDA { own.top = keys_of<T>(row, importance, head_dim, own.keys).largest; });
}

}  // namespace
}  // namespace mustafar
