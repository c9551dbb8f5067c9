// What the native tests of 8- and 4-bit values share: the rules of quantisation as plain computations, and test data.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cases.h"
#include "data.h"
#include "mustafar/mustafar.h"
#include "oracle.h"

constexpr float infinity = std::numeric_limits<float>::infinity();

// ------------------------------------------------------------------------------------- what the header says, plainly --

// A token's row as it is stored and as it reads.
struct Quantized {
    uint16_t scale = 0;
    std::vector<int> integers;  // of kept channels, in ascending order
    std::vector<float> row;     // before it is multiplied by factors
};

// The Hadamard matrix times a row.
inline void turn(std::vector<float>& row) {
    for (size_t distance = 1; distance < row.size(); distance *= 2)
        for (size_t i = 0; i < row.size(); ++i)
            if ((i & distance) == 0) {
                const float sum = row[i] + row[i + distance];
                row[i + distance] = row[i] - row[i + distance];
                row[i] = sum;
            }
    for (float& x : row) x *= 1.0f / std::sqrt(static_cast<float>(row.size()));
}

inline Quantized quantized(const Case& c, const std::vector<float>& row, const std::vector<bool>& kept,
                           const float* factors) {
    const float limit = c.value_format == MUSTAFAR_VALUE_FORMAT_INT8 ? 127.0f : 7.0f;
    Quantized result;
    result.row.assign(row.size(), 0.0f);
    const auto is_finite = [](const std::vector<float>& numbers) {
        return std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
    };
    std::vector<float> divided(row.size());
    for (size_t i = 0; i < row.size(); ++i) divided[i] = factors ? row[i] / factors[i] : row[i];
    const bool rotated = c.pattern == MUSTAFAR_PATTERN_ALL_ROTATED;
    if (rotated) turn(divided);
    const bool finite = is_finite(row) && (!rotated || is_finite(divided));
    float top = 0.0f;
    for (size_t i = 0; i < row.size(); ++i)
        if (kept[i]) top = std::max(top, std::abs(divided[i]));
    const float quotient = top / limit;
    result.scale = !finite ? 0x7e00 : nearest_f16(double{quotient}) == 0x7c00 ? 0x7bff : nearest_f16(double{quotient});
    const float scale = f16_to_f32(result.scale);
    for (size_t i = 0; i < row.size(); ++i) {
        if (!kept[i]) continue;
        const float q = finite && scale > 0 ? std::clamp(std::nearbyint(divided[i] / scale), -limit, limit) : 0.0f;
        result.integers.push_back(static_cast<int>(q));
        result.row[i] = q * scale;
    }
    if (rotated) turn(result.row);
    return result;
}

inline std::vector<float> key_factors(const std::vector<std::vector<float>>& rows, int head_dim) {
    std::vector<float> result;
    std::vector<double> largest(static_cast<size_t>(head_dim));
    for (size_t i = 0; i < largest.size(); ++i)
        for (const std::vector<float>& row : rows)
            largest[i] = std::isnan(row[i]) ? double{infinity} : std::max(largest[i], double{std::abs(row[i])});
    double sum = 0;
    int count = 0;
    for (const double m : largest)
        if (m > 0 && std::isfinite(m)) sum += m, ++count;
    for (const double m : largest) {
        const double factor = m > 0 && std::isfinite(m) ? std::clamp(m / (sum / count), 0x1p-10, 0x1p10) : 1.0;
        result.push_back(f16_to_f32(nearest_f16(double{static_cast<float>(factor)})));
    }
    return result;
}

// -------------------------------------------------------------------------------------------------------- test data --

// Any numbers: rows of very different size, zeros, and with `special` rows that are not finite.
inline void fill(void* data, int64_t tokens, const Case& c, bool special) {
    for (int64_t t = 0; t < tokens; ++t) {
        const int exponent = t % 11 == 7 ? -13 : static_cast<int>(random_bits() % 8) - 4;
        for (int i = 0; i < c.head_dim; ++i) {
            const uint32_t random = random_bits();
            float value = std::ldexp(1.0f + static_cast<float>(random & 0xffffu) / 65536.0f,
                                     exponent - static_cast<int>(random >> 16 & 3u));
            if (i % 16 == 5) value *= 16.0f;  // outlier channels
            if (t % 13 == 9) value = 0.0f;
            store(data, t * c.head_dim + i, c.dtype, value == 0.0f ? 0.0f : random >> 31 ? -value : value);
        }
        if (t % 13 == 9 && c.dtype != MUSTAFAR_DTYPE_F32)
            std::memset(static_cast<char*>(data) + t * c.head_dim * 2, 0, static_cast<size_t>(c.head_dim) * 2);
        if (!special || t % 6 != 4) continue;
        const int64_t i = t * c.head_dim + static_cast<int64_t>(random_bits() % static_cast<uint32_t>(c.head_dim));
        const uint32_t infinite = c.dtype == MUSTAFAR_DTYPE_F32   ? 0x7f800000u
                                  : c.dtype == MUSTAFAR_DTYPE_F16 ? 0x7c00u
                                                                  : 0x7f80u;
        const uint32_t bits = infinite + (random_bits() & 1u);
        if (c.dtype == MUSTAFAR_DTYPE_F32)
            static_cast<uint32_t*>(data)[i] = bits;
        else
            static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(bits);
    }
}

inline std::vector<std::vector<float>> rows_of(const Case& c, const Memory& memory, int64_t first, int64_t tokens) {
    std::vector<std::vector<float>> rows(static_cast<size_t>(tokens));
    for (int64_t t = 0; t < tokens; ++t)
        for (int i = 0; i < c.head_dim; ++i)
            rows[static_cast<size_t>(t)].push_back(load(memory.as(), (first + t) * c.head_dim + i, c.dtype));
    return rows;
}

inline std::vector<float> any_factors(const Case& c) {
    std::vector<float> factors(static_cast<size_t>(c.head_dim));
    for (float& factor : factors)
        factor = f16_to_f32(static_cast<uint16_t>(0x3400u + random_bits() % 0x1400u));  // 0.25 ... 8
    return factors;
}

// Every kind of format with integers.
inline std::vector<Case> integer_formats(int32_t variant, int32_t dtype, int32_t head_dim) {
    std::vector<Case> formats;
    for (const int32_t value_format : {MUSTAFAR_VALUE_FORMAT_INT8, MUSTAFAR_VALUE_FORMAT_INT4}) {
        Case c{variant, dtype, head_dim, value_format, MUSTAFAR_PATTERN_ALL, MUSTAFAR_LAYOUT_FIXED, head_dim, 0, false};
        for (const int32_t order : {MUSTAFAR_ORDER_PLAIN, MUSTAFAR_ORDER_KEY_QUADS, MUSTAFAR_ORDER_VALUE_QUADS}) {
            c.order = order;
            formats.push_back(c);
        }
        c.pattern = MUSTAFAR_PATTERN_ALL_ROTATED;
        for (const int32_t order : {MUSTAFAR_ORDER_PLAIN, MUSTAFAR_ORDER_KEY_QUADS}) {
            c.order = order;
            if (head_dim % 64 == 0) formats.push_back(c);
        }
        c.order = MUSTAFAR_ORDER_PLAIN;
        c.pattern = MUSTAFAR_PATTERN_UNSTRUCTURED;
        for (const int32_t keep : {1, head_dim * 5 / 16 + 1, head_dim}) {
            c.keep = keep;
            formats.push_back(c);
        }
        c.keep = head_dim / 2;
        for (const int32_t pattern : {MUSTAFAR_PATTERN_BALANCED_KEYS, MUSTAFAR_PATTERN_BALANCED_VALUES}) {
            c.pattern = pattern;
            if (head_dim % 64 == 0) formats.push_back(c);
        }
        c.pattern = MUSTAFAR_PATTERN_UNSTRUCTURED;
        c.layout = MUSTAFAR_LAYOUT_OFFSETS;
        c.keep = 0;
        formats.push_back(c);
    }
    return formats;
}
