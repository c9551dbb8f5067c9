#include "cpu/integers.h"

#include <bit>
#include <cmath>

#include "core/hadamard.h"
#include "cpu/dense_row.h"
#include "cpu/quads_expand.h"
#include "cpu/row.h"

namespace mustafar {
namespace {

constexpr uint16_t nan_scale = 0x7e00, largest_scale = 0x7bff;  // f16: NaN, 65504

int largest_integer(const mustafar_format& format) {
    return format.value_format == MUSTAFAR_VALUE_FORMAT_INT8 ? 127 : 7;
}

bool all_finite(const float* row, int count) {
    bool finite = true;
    for (int c = 0; c < count; ++c) finite &= std::isfinite(row[c]);
    return finite;
}

// Quantises `count` numbers; returns their scale.
uint16_t quantize(const float* numbers, int count, int largest, int8_t* integers) {
    const float limit = static_cast<float>(largest);
    float top = 0.0f;
    for (int i = 0; i < count; ++i) top = std::abs(numbers[i]) > top ? std::abs(numbers[i]) : top;
    uint16_t scale = f32_to_f16(top / limit);
    if (scale > largest_scale) scale = largest_scale;
    const float divisor = f16_to_f32(scale);
    if (divisor == 0.0f) {
        std::memset(integers, 0, static_cast<size_t>(count));
        return scale;
    }
    constexpr float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    for (int i = 0; i < count; ++i) {
        // Clamped first, which gives the same result: the limit is an integer.
        float q = numbers[i] / divisor;
        q = q < limit ? q : limit;
        q = q > -limit ? q : -limit;
        integers[i] = static_cast<int8_t>(q + shifter - shifter);
    }
    return scale;
}

uint8_t nibble_of(int8_t integer) {
    return static_cast<uint8_t>(integer < 0 ? 8 - integer : integer);
}
int8_t integer_of(int nibble) {
    return static_cast<int8_t>(nibble & 8 ? -(nibble & 7) : nibble);
}

// Packed integers in plain order; places without a value are zero.
void pack(const mustafar_format& format, const int8_t* integers, int count, char* values, int64_t bytes) {
    int64_t used = count;
    if (format.value_format == MUSTAFAR_VALUE_FORMAT_INT8) {
        std::memcpy(values, integers, static_cast<size_t>(count));
    } else {
        used = (count + 1) / 2;
        for (int i = 0; i < count; i += 2)
            values[i / 2] =
                static_cast<char>(nibble_of(integers[i]) | (i + 1 < count ? nibble_of(integers[i + 1]) : 0) << 4);
    }
    std::memset(values + used, 0, static_cast<size_t>(bytes - used));
}

int8_t packed_integer(const mustafar_format& format, const char* values, int64_t i) {
    if (format.value_format == MUSTAFAR_VALUE_FORMAT_INT8) return static_cast<int8_t>(values[i]);
    return integer_of(static_cast<uint8_t>(values[i / 2]) >> i % 2 * 4 & 15);
}

/*
 * The quad orders hold unsigned numbers, integer + 128 or + 8, as vector instructions multiply them. A vector is 64
 * bytes: keys 16 tokens of 4 channels, values 16 channels of 4 tokens. 4-bit values are laid out like 8-bit values of
 * 16 tokens: the low nibble belongs to a token, the high nibble to the token 16 further on.
 */
struct Quads {
    explicit Quads(const mustafar_format& format)
        : keys(format.order == MUSTAFAR_ORDER_KEY_QUADS), wide(format.value_format == MUSTAFAR_VALUE_FORMAT_INT8),
          head_dim(format.head_dim) {}

    int byte(int token, int channel) const {
        const int t = wide ? token : token % 16;
        return keys ? (t / 16 * (head_dim / 4) + channel / 4) * 64 + t % 16 * 4 + channel % 4
                    : (channel / 16 * (wide ? 8 : 4) + t / 4) * 64 + channel % 16 * 4 + t % 4;
    }
    int8_t get(const char* values, int token, int channel) const {
        const uint8_t byte_value = static_cast<uint8_t>(values[byte(token, channel)]);
        return static_cast<int8_t>(wide ? byte_value - 128 : (byte_value >> token / 16 * 4 & 15) - 8);
    }
    bool keys, wide;
    int head_dim;
};

// Of a block that keeps all channels: [32][head_dim].
void write_all(const mustafar_format& format, const int8_t* integers, const Block& block) {
    if (!has_quads_order(format)) {
        const int count = block_tokens * format.head_dim;
        return pack(format, integers, count, block.writable_values(), values_bytes(format, count));
    }
    const bool keys = format.order == MUSTAFAR_ORDER_KEY_QUADS;
    const int head_dim = format.head_dim;
    char* const values = block.writable_values();
    const auto to_quads = keys ? key_quads : value_quads;
    if (format.value_format == MUSTAFAR_VALUE_FORMAT_INT8) return to_quads(integers, head_dim, values);
    // The halves of 16 tokens are interleaved from the 8-bit order, in pieces of this many bytes.
    char bytes[block_tokens * max_head_dim];
    to_quads(integers, head_dim, bytes);
    const int run = keys ? 16 * head_dim : 16 * 16;
    for (int first = 0; first < 16 * head_dim; first += run)
        for (int i = 0; i < run; ++i) {
            // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult): to_quads has written all of them
            const int low = static_cast<uint8_t>(bytes[2 * first + i]) - 120;
            const int high = static_cast<uint8_t>(bytes[2 * first + run + i]) - 120;
            values[first + i] = static_cast<char>(low | high << 4);
        }
}

// Packs the kept numbers of a row; returns how many there are.
int keep_only(float* row, const uint32_t* bitmap, int head_dim) {
    int count = 0;
    for (int w = 0; w < bitmap_words(head_dim); ++w)
        for (uint32_t bits = bitmap[w]; bits != 0; bits &= bits - 1)
            row[count++] = row[32 * w + std::countr_zero(bits)];
    return count;
}

}  // namespace

void write_integers(const Block& block, const mustafar_format& format, const BlockRows& rows, const float* factors) {
    const int head_dim = format.head_dim, words = bitmap_words(head_dim);
    int8_t integers[block_tokens * max_head_dim] = {};
    uint16_t* scales = block.writable_scales();
    int count = 0;
    for (int t = 0; t < block_tokens; ++t) {
        if (t >= rows.tokens) {
            scales[t] = 0;
            continue;
        }
        float row[max_head_dim];
        widen_row(format.dtype, rows.row[t], head_dim, row);
        bool finite = all_finite(row, head_dim);
        if (factors != nullptr)
            for (int c = 0; c < head_dim; ++c) row[c] /= factors[c];
        if (is_rotated(format)) {
            hadamard(row, head_dim);
            finite = finite && all_finite(row, head_dim);
        }
        const int kept = keeps_all(format) ? head_dim : keep_only(row, block.bitmap + t * words, head_dim);
        // The integers of a non-finite row stay zero.
        scales[t] = finite ? quantize(row, kept, largest_integer(format), integers + count) : nan_scale;
        count += kept;
    }
    if (keeps_all(format))
        write_all(format, integers, block);
    else
        pack(format, integers, count, block.writable_values(), values_bytes(format, block.value_capacity));
}

void read_integers(const Block& block, const mustafar_format& format, int first, int tokens, int8_t* integers) {
    const int head_dim = format.head_dim, words = bitmap_words(head_dim);
    if (keeps_all(format)) {
        const Quads quads(format);
        for (int t = 0; t < tokens; ++t)
            for (int c = 0; c < head_dim; ++c)
                integers[t * head_dim + c] =
                    has_quads_order(format) ? quads.get(block.values, first + t, c)
                                            : packed_integer(format, block.values, int64_t{first + t} * head_dim + c);
        return;
    }
    std::memset(integers, 0, static_cast<size_t>(tokens * head_dim));
    int64_t next = 0;
    for (int w = 0; w < first * words; ++w) next += std::popcount(block.bitmap[w]);
    for (int t = 0; t < tokens; ++t)
        for (int w = 0; w < words; ++w)
            for (uint32_t bits = block.bitmap[(first + t) * words + w]; bits != 0; bits &= bits - 1, ++next) {
                const int channel = 32 * w + std::countr_zero(bits);
                if (channel < head_dim) integers[t * head_dim + channel] = packed_integer(format, block.values, next);
            }
}

void dequantize(const Block& block, const mustafar_format& format, int first, int tokens, float* rows, int stride) {
    const int head_dim = format.head_dim;
    int8_t integers[block_tokens * max_head_dim];
    read_integers(block, format, first, tokens, integers);
    for (int t = 0; t < tokens; ++t) {
        const float scale = f16_to_f32(block.scales[first + t]);
        if (std::isfinite(scale) || keeps_all(format)) {
            for (int c = 0; c < head_dim; ++c)
                rows[t * stride + c] = static_cast<float>(integers[t * head_dim + c]) * scale;
            continue;
        }
        // A pruned channel is a zero whatever the scale.
        const uint32_t* const bits = block.bitmap + (first + t) * bitmap_words(head_dim);
        for (int c = 0; c < head_dim; ++c)
            rows[t * stride + c] =
                bits[c / 32] >> c % 32 & 1 ? static_cast<float>(integers[t * head_dim + c]) * scale : 0.0f;
    }
}

void expand_integers(const Block& block, const mustafar_format& format, int32_t order, char* expanded) {
    int8_t integers[block_tokens * max_head_dim];
    read_integers(block, format, 0, block_tokens, integers);
    mustafar_format all = format;
    all.value_format = MUSTAFAR_VALUE_FORMAT_INT8;
    all.order = order;
    Block target{};
    target.values = expanded;
    write_all(all, integers, target);
}

void convert_integers(const Block& source, const mustafar_format& from, const Block& destination,
                      const mustafar_format& to) {
    int8_t integers[block_tokens * max_head_dim];
    read_integers(source, from, 0, block_tokens, integers);
    write_all(to, integers, destination);
    std::memcpy(destination.writable_scales(), source.scales, static_cast<size_t>(scales_bytes(to)));
}

}  // namespace mustafar
