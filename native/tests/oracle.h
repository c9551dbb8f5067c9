// What the header says, written out plainly: the choice of channels and the bytes of a block.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cases.h"
#include "data.h"
#include "mustafar/mustafar.h"

inline uint16_t nearest_f16(double value) {
    if (std::isnan(value)) return 0x7e00;
    // Halves ascend with their bits: the last one that is not larger, or the next.
    int low = 0, high = 0x7c00;
    const double magnitude = std::abs(value);
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (double{f16_to_f32(static_cast<uint16_t>(middle))} <= magnitude ? low : high) = middle;
    }
    const double below = f16_to_f32(static_cast<uint16_t>(low));
    const double above = high == 0x7c00 ? 65536.0 : double{f16_to_f32(static_cast<uint16_t>(high))};
    const double middle = (below + above) / 2;
    if (magnitude > middle || (magnitude == middle && low % 2 == 1)) low = high;
    return static_cast<uint16_t>(low | (std::signbit(value) ? 0x8000 : 0));
}

inline float rounded(int32_t dtype, float value) {
    if (dtype == MUSTAFAR_DTYPE_F32 || std::isnan(value)) return value;
    if (dtype == MUSTAFAR_DTYPE_F16) return f16_to_f32(nearest_f16(double{value}));
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// ---------------------------------------------------------------------------------------------- channels that are kept --

inline std::vector<bool> bits_of(const Case& c, const std::vector<uint32_t>& bitmap, int64_t token) {
    std::vector<bool> kept(static_cast<size_t>(c.head_dim));
    for (int i = 0; i < c.head_dim; ++i)
        kept[static_cast<size_t>(i)] = bitmap[static_cast<size_t>(token * words(c) + i / 32)] >> i % 32 & 1;
    return kept;
}

struct Candidate {
    double magnitude;  // NaN above infinity, and that above any finite number
    int64_t token;
    int channel;
};

inline Candidate candidate(float value, int64_t token, int channel) {
    return {std::isnan(value) ? 1e301 : std::isinf(value) ? 1e300 : std::abs(double{value}), token, channel};
}

// Leaves the `count` largest; of equal ones the lower token, then the lower channel wins.
inline void keep_largest(std::vector<Candidate>& candidates, int count) {
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
        if (a.magnitude != b.magnitude) return a.magnitude > b.magnitude;
        return a.token != b.token ? a.token < b.token : a.channel < b.channel;
    });
    candidates.resize(static_cast<size_t>(count));
}

// The channels that the pattern of a FIXED format keeps of one head's tokens, [tokens, words]. importance: [head_dim] or null.
inline std::vector<uint32_t> pruned(const Case& c, const Memory& source, int64_t tokens,
                                    const float* importance = nullptr) {
    std::vector<uint32_t> bitmap(static_cast<size_t>(tokens * words(c)));
    const auto value = [&](int64_t t, int channel) {
        if (t >= tokens) return candidate(0.0f, t, channel);
        const float number = load(source.as(), t * c.head_dim + channel, c.dtype);
        return candidate(importance == nullptr ? number : number * importance[channel], t, channel);
    };
    const auto mark = [&](const std::vector<Candidate>& kept) {
        for (const Candidate& k : kept)
            if (k.token < tokens)
                bitmap[static_cast<size_t>(k.token * words(c) + k.channel / 32)] |= 1u << k.channel % 32;
    };
    // Of each unit's four groups the two largest of each, and the n largest of those.
    const auto mark_unit = [&](std::vector<Candidate>(&groups)[4]) {
        std::vector<Candidate> unit;
        for (std::vector<Candidate>& group : groups) {
            keep_largest(group, 2);
            unit.insert(unit.end(), group.begin(), group.end());
        }
        keep_largest(unit, 16 * c.keep / c.head_dim);
        mark(unit);
    };
    if (keeps_all(c) || c.pattern == MUSTAFAR_PATTERN_UNSTRUCTURED) {
        for (int64_t t = 0; t < tokens; ++t) {
            std::vector<Candidate> row;
            row.reserve(static_cast<size_t>(c.head_dim));
            for (int channel = 0; channel < c.head_dim; ++channel) row.push_back(value(t, channel));
            keep_largest(row, c.keep);
            mark(row);
        }
    } else if (c.pattern == MUSTAFAR_PATTERN_BALANCED_KEYS) {
        for (int64_t t = 0; t < tokens; ++t)
            for (int unit = 0; unit < c.head_dim / 16; ++unit) {
                std::vector<Candidate> groups[4];
                for (int i = 0; i < 4; ++i)
                    for (int m = 0; m < 4; ++m)
                        groups[i].push_back(value(t, unit / 4 * 16 + unit % 4 + 4 * i + m * c.head_dim / 4));
                mark_unit(groups);
            }
    } else {
        for (int64_t first = 0; first < tokens; first += 4)
            for (int channel = 0; channel < c.head_dim; channel += 4) {
                std::vector<Candidate> groups[4];
                for (int i = 0; i < 4; ++i)
                    for (int64_t t = first; t < first + 4; ++t) groups[i].push_back(value(t, channel + i));
                mark_unit(groups);
            }
    }
    return bitmap;
}

// The channels that a case keeps: what its pattern says, or any for the OFFSETS layout.
inline std::vector<uint32_t> kept_channels(const Case& c, const Memory& source, int64_t tokens) {
    const bool is_mask = c.layout == MUSTAFAR_LAYOUT_OFFSETS || c.pattern == MUSTAFAR_PATTERN_MASK;
    return is_mask ? any_bitmap(c, tokens) : pruned(c, source, tokens);
}

// ------------------------------------------------------------------------------------------------------------- storage --

// The dense bytes of tokens of which some channels are kept: the others are +0.
inline std::vector<uint8_t> decompressed(const Case& c, const Memory& source, const std::vector<uint32_t>& bitmap) {
    const size_t bytes = static_cast<size_t>(element_bytes(c.dtype));
    const int64_t tokens = static_cast<int64_t>(bitmap.size()) / words(c);
    std::vector<uint8_t> result(static_cast<size_t>(tokens * c.head_dim) * bytes);
    for (int64_t t = 0; t < tokens; ++t) {
        const std::vector<bool> kept = bits_of(c, bitmap, t);
        for (int i = 0; i < c.head_dim; ++i) {
            const size_t place = static_cast<size_t>(t * c.head_dim + i) * bytes;
            if (kept[static_cast<size_t>(i)]) std::memcpy(&result[place], source.as<uint8_t>() + place, bytes);
        }
    }
    return result;
}

// The blocks of native values in plain order, one after the other.
inline std::vector<uint8_t> native_blocks(const Case& c, const Memory& source, const std::vector<uint32_t>& bitmap) {
    const size_t element = static_cast<size_t>(element_bytes(c.dtype));
    const int64_t tokens = static_cast<int64_t>(bitmap.size()) / words(c);
    std::vector<uint8_t> bytes;
    for (int64_t first = 0; first < tokens; first += block_tokens) {
        std::vector<uint8_t> values;
        for (int64_t t = first; t < first + block_tokens; ++t)
            for (int word = 0; word < words(c); ++word) {
                const uint32_t bits = t < tokens ? bitmap[static_cast<size_t>(t * words(c) + word)] : 0;
                for (int byte = 0; byte < 4; ++byte) bytes.push_back(static_cast<uint8_t>(bits >> 8 * byte));
                for (int i = 0; i < 32; ++i) {
                    if ((bits >> i & 1) == 0) continue;
                    const uint8_t* const value =
                        source.as<uint8_t>() + static_cast<size_t>(t * c.head_dim + 32 * word + i) * element;
                    values.insert(values.end(), value, value + element);
                }
            }
        const size_t room = c.layout == MUSTAFAR_LAYOUT_FIXED ? static_cast<size_t>(block_tokens * c.keep) * element
                                                              : (values.size() + 15) / 16 * 16;
        values.resize(room);
        bytes.insert(bytes.end(), values.begin(), values.end());
    }
    return bytes;
}
