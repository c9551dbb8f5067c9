/*
 * The kernels of quads.h for any vectors. Like row.h, compiled for each instruction set, which provides its operations:
 *   bytes                   of a vector of values
 *   rows                    query rows at once
 *   Digit, shift            numbers consist of digits of that many bits, the first one signed; digits(wide) of them
 *   bias(bits)              what stored values exceed the integers by, as dot sees them
 *   Values, Part, Sum       vectors of values, of four digits over and over, of 32-bit sums of four products each
 *   load, low, high         8-bit values; the nibbles of 4-bit values
 *   broadcast, dot, lanes   sums += values * part; the sums as integers
 *   widen                   f16 to f32
 * The halves of 16 tokens, or adjacent vectors, are processed two at a time, so that a part serves two products.
 */
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/quads.h"
#include "cpu/quads_expand.h"
#include "cpu/row.h"

namespace mustafar {
namespace {

constexpr int most_digits = 3;

// GCC copies every sum in each iteration of a loop that it does not unroll. With a sanitizer, unrolled loops take the
// compiler many minutes.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define MUSTAFAR_UNROLL_QUADS _Pragma("GCC unroll 8")
#else
#define MUSTAFAR_UNROLL_QUADS
#endif

// The largest number of that many bits, and so of its first digit: 127 * 2^7 or 127 * 2^14.
constexpr float largest_number(bool wide) {
    return wide ? 2080768.0f : 16256.0f;
}

// As many 32-bit numbers as a vector of sums has. Written as vectors: the compiler turns loops over them into scalars.
template <int Bytes>
struct Lanes {
    typedef int32_t Ints __attribute__((vector_size(Bytes)));
    typedef float Floats __attribute__((vector_size(Bytes)));
};

// Follows the digits of a prepared query, [digits][head_dim].
struct QueryScale {
    float step;  // the value of a unit
    int32_t sums[most_digits];
};

// Digits of `count` numbers in units of step: digits[digit * pitch + i]. Adds them up.
template <class Ops, int Digits>
MUSTAFAR_INLINE void to_digits(const float* __restrict numbers, int count, float per_unit,
                               typename Ops::Digit* __restrict digits, int pitch, int32_t* sums) {
    using Floats = typename Lanes<Ops::bytes>::Floats;
    using Ints = typename Lanes<Ops::bytes>::Ints;
    constexpr int lanes = Ops::bytes / 4;
    typedef typename Ops::Digit DigitLanes __attribute__((vector_size(lanes * sizeof(typename Ops::Digit))));
    constexpr float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
    Ints totals[Digits] = {};
    for (int i = 0; i < count; i += lanes) {
        const Ints number = reinterpret_cast<Ints>(load_vector<Floats>(numbers + i) * per_unit + shifter) -
                            static_cast<int32_t>(bits_of_f32(shifter));
        for (int d = 0; d < Digits; ++d) {
            const Ints above = number >> Ops::shift * (Digits - 1 - d);
            const Ints digit = d == 0 ? above : above & ((1 << Ops::shift) - 1);
            const DigitLanes stored = __builtin_convertvector(digit, DigitLanes);
            std::memcpy(digits + d * pitch + i, &stored, sizeof stored);
            totals[d] += digit;
        }
    }
    for (int d = 0; d < Digits; ++d)
        for (int lane = 0; lane < lanes; ++lane) sums[d] += totals[d][lane];
}

// The numbers that sums of digits represent, sums[digit * pitch], minus what the bias of the values has added.
template <class Ops, int Digits>
MUSTAFAR_INLINE typename Lanes<Ops::bytes>::Floats joined(const typename Ops::Sum* sums, int pitch,
                                                          const int32_t* digit_sums, int bias) {
    using Floats = typename Lanes<Ops::bytes>::Floats;
    Floats total = {};
    for (int d = 0; d < Digits; ++d)
        total = total * static_cast<float>(1 << Ops::shift) +
                __builtin_convertvector(Ops::lanes(sums[d * pitch]) - bias * digit_sums[d], Floats);
    return total;
}

// The bits of the largest magnitude; 0x7f800000 or more if one is not finite.
MUSTAFAR_INLINE int32_t largest_bits(const float* numbers, int count) {
    int32_t top = 0;
    for (int i = 0; i < count; ++i) {
        const int32_t bits = static_cast<int32_t>(bits_of_f32(numbers[i]) & 0x7fffffffu);
        top = bits > top ? bits : top;
    }
    return top;
}
constexpr int32_t infinity_bits = 0x7f800000;
constexpr int32_t smallest_bits = 0x0d000000;  // 2^-101: below, the reciprocal of a unit would not be finite

template <class Ops>
int64_t query_bytes(int head_dim) {
    const int bytes = head_dim * most_digits * int{sizeof(typename Ops::Digit)} + int{sizeof(QueryScale)};
    return divide_up(bytes, 64) * 64;
}

template <class Ops, int Digits>
QueryScale* query_scale(void* prepared, int head_dim) {
    return reinterpret_cast<QueryScale*>(static_cast<char*>(prepared) +
                                         sizeof(typename Ops::Digit) * static_cast<size_t>(Digits * head_dim));
}

template <class Ops>
void prepare_quad_query(const float* row, int head_dim, bool wide, void* prepared) {
    const auto prepare = [&]<int Digits>() {
        QueryScale& scale = *query_scale<Ops, Digits>(prepared, head_dim);
        scale = {};
        const int32_t top = largest_bits(row, head_dim);
        const float largest = f32_of_bits(static_cast<uint32_t>(top));
        const bool usable = top < infinity_bits && top >= smallest_bits;
        // Not finite: every score becomes NaN. Too small to distinguish from zero: all are zero.
        scale.step = usable ? largest / largest_number(wide) : top >= infinity_bits ? f32_of_bits(0x7fc00000u) : 0.0f;
        typename Ops::Digit* const digits = static_cast<typename Ops::Digit*>(prepared);
        if (usable)
            to_digits<Ops, Digits>(row, head_dim, largest_number(wide) / largest, digits, head_dim, scale.sums);
        else
            std::memset(digits, 0, static_cast<size_t>(Digits * head_dim) * sizeof *digits);
    };
    wide ? prepare.template operator()<Ops::digits(true)>() : prepare.template operator()<Ops::digits(false)>();
}

// The two vectors that are multiplied together: 8-bit values at two places, or both nibbles of one.
template <class Ops, bool Nibbles>
struct Two {
    typename Ops::Values x[2];
    MUSTAFAR_INLINE Two(const char* first, const char* second) {
        if constexpr (Nibbles) {
            x[0] = Ops::low(first);
            x[1] = Ops::high(first);
        } else {
            x[0] = Ops::load(first);
            x[1] = Ops::load(second);
        }
    }
};

// Prefetches what follows, in steps of that many bytes, a number or a constant.
template <class Ops, bool Nibbles, int Digits, int R, class Step>
[[gnu::noinline]] void block_scores(const char* values, const char* next, Step step, int head_dim, const float* scales,
                                    const char* prepared, int64_t row_bytes, float* scores, int64_t stride) {
    constexpr int slices = 64 / Ops::bytes, tokens = Ops::bytes / 4, unrolled = 4;  // divides the quads of any head_dim
    constexpr int digit_bytes = int{sizeof(typename Ops::Digit)};
    using Floats = typename Lanes<Ops::bytes>::Floats;
    const int quads = head_dim / 4;
    for (int slice = 0; slice < slices; ++slice) {
        typename Ops::Sum sums[R][Digits][2];
        for (int r = 0; r < R; ++r)
            for (int d = 0; d < Digits; ++d) sums[r][d][0] = sums[r][d][1] = Ops::zero();
        for (int first = 0; first < quads; first += unrolled) {
            MUSTAFAR_UNROLL_QUADS
            for (int q = first; q < first + unrolled; ++q) {
                const int place = q * 64 + slice * Ops::bytes;
                const Two<Ops, Nibbles> two(values + place, values + quads * 64 + place);
                if (slice == 0) {
                    __builtin_prefetch(next + q * step);
                    if constexpr (!Nibbles) __builtin_prefetch(next + (quads + q) * step);
                }
                for (int r = 0; r < R; ++r)
                    for (int d = 0; d < Digits; ++d) {
                        const typename Ops::Part part =
                            Ops::broadcast(prepared + r * row_bytes + (d * head_dim + q * 4) * digit_bytes);
                        sums[r][d][0] = Ops::dot(sums[r][d][0], two.x[0], part);
                        sums[r][d][1] = Ops::dot(sums[r][d][1], two.x[1], part);
                    }
            }
        }
        for (int r = 0; r < R; ++r) {
            const QueryScale& scale = *query_scale<Ops, Digits>(const_cast<char*>(prepared) + r * row_bytes, head_dim);
            const float unit = scale.step;
            for (int half = 0; half < 2; ++half) {
                const int first = half * 16 + slice * tokens;
                const Floats token_scales = load_vector<Floats>(scales + first) * unit;
                const Floats products =
                    joined<Ops, Digits>(&sums[r][0][half], 2, scale.sums, Ops::bias(Nibbles ? 4 : 8)) * token_scales;
                std::memcpy(scores + r * stride + first, &products, sizeof products);
            }
        }
    }
}

// Calls work.operator()<Digits, R>(first row) for chunks of query rows.
template <class Ops, class Work>
MUSTAFAR_INLINE void for_query_rows(int rows, bool wide, const Work& work) {
    for_row_chunks<Ops::rows>(rows, [&]<int R>(int first) {
        wide ? work.template operator()<Ops::digits(true), R>(first)
             : work.template operator()<Ops::digits(false), R>(first);
    });
}

using Line = std::integral_constant<int, 64>;

// Of blocks in quad order. step: as block_scores.
template <class Ops, class Step>
void quad_scores(const QuadBlocks& blocks, Step step, bool wide, const void* prepared, int rows, float* scores,
                 int64_t stride) {
    const int64_t row_bytes = query_bytes<Ops>(blocks.head_dim);
    for (int b = 0; b < blocks.count; ++b) {
        alignas(64) float scales[block_tokens];
        Ops::widen(blocks.blocks[b].scales, block_tokens, scales);
        const char *const values = blocks.blocks[b].values, *const next = blocks.ahead[b];
        __builtin_prefetch(next + blocks.blocks[b].bytes - 64);  // the scales, which a block needs first
        for_query_rows<Ops>(rows, wide, [&]<int Digits, int R>(int first) {
            const auto run = [&]<bool Nibbles>() {
                block_scores<Ops, Nibbles, Digits, R>(values, next, step, blocks.head_dim, scales,
                                                      static_cast<const char*>(prepared) + first * row_bytes, row_bytes,
                                                      scores + first * stride + b * block_tokens, stride);
            };
            blocks.bits == 4 ? run.template operator()<true>() : run.template operator()<false>();
        });
    }
}

// Packed blocks with all channels in 8 bits, as expand(blocks, block, out) writes them. What memory they come from, and how it is
// prefetched, stays that of the packed ones.
template <class Expand>
QuadBlocks expanded(const QuadBlocks& source, const Expand& expand) {
    QuadBlocks blocks = source;
    blocks.bits = 8;
    for (int b = 0; b < blocks.count; ++b) {
        char* const out = blocks.room + b * QuadBlocks::expanded_bytes(blocks.head_dim);
        expand(source, b, out);
        blocks.blocks[b].values = out;
    }
    return blocks;
}

// Packed blocks are prefetched while as many quads are read as they have with all channels in 8 bits.
MUSTAFAR_INLINE int packed_step(const QuadBlocks& blocks) {
    return static_cast<int>(blocks.blocks[0].bytes / (blocks.head_dim / 2));
}

// Packed blocks for any instruction set: expanded into quad order first.
template <class Ops>
struct Packed {
    static void values(const QuadBlocks& blocks, int block, char* out) {
        expand_block<Ops>(blocks.blocks[block], blocks.bits, blocks.head_dim, false, out);
    }
    // As QuadKernels::scores.
    static void scores(const QuadBlocks& blocks, bool wide, const void* prepared, int rows, float* scores,
                       int64_t stride) {
        const QuadBlocks quads = expanded(blocks, [](const QuadBlocks& source, int block, char* out) {
            expand_block<Ops>(source.blocks[block], source.bits, source.head_dim, true, out);
        });
        quad_scores<Ops>(quads, packed_step(blocks), wide, prepared, rows, scores, stride);
    }
};

template <class Ops, class PackedBlocks>
void any_scores(const QuadBlocks& blocks, bool wide, const void* prepared, int rows, float* scores, int64_t stride) {
    if (blocks.packed)
        PackedBlocks::scores(blocks, wide, prepared, rows, scores, stride);
    else
        quad_scores<Ops>(blocks, Line(), wide, prepared, rows, scores, stride);
}

// Rows of weights, times the tokens' scales, as digits.
template <class Ops, int Digits, int R>
struct Weights {
    static constexpr int pitch = QuadBlocks::most * block_tokens;
    typename Ops::Digit digits[R][Digits * pitch];
    float step[R];
    int32_t sums[R][Digits];
};

// Sums of `Count` vectors of channels from vector `first` on, over blocks begin ... end - 1. Prefetches what follows, in
// steps of that many bytes, a number or a constant.
template <class Ops, bool Nibbles, int Digits, int R, int Count, class Step>
MUSTAFAR_INLINE void block_sums(const QuadBlocks& blocks, int begin, int end, Step step, int first,
                                const Weights<Ops, Digits, R>& weights, typename Ops::Sum* sums) {
    constexpr int slices = 64 / Ops::bytes, quads = Nibbles ? 4 : 8, halves = Nibbles ? 2 : 1;
    typename Ops::Sum sum[R][Digits][Count];
    for (int r = 0; r < R; ++r)
        for (int d = 0; d < Digits; ++d)
            for (int i = 0; i < Count; ++i) sum[r][d][i] = sums[((first + i) * R + r) * Digits + d];
    // Digits are broadcast from memory: the compiler would keep those of all iterations in general registers, whose
    // broadcast takes the ports of the products.
    const auto* digits = &weights;
    asm("" : "+r"(digits));
    for (int block = begin; block < end; ++block) {
        const char *const values = blocks.blocks[block].values, *const next = blocks.ahead[block];
        MUSTAFAR_UNROLL_QUADS
        for (int q = 0; q < quads; ++q) {
            typename Ops::Values x[Count][halves];
            for (int i = 0; i < Count; ++i) {
                const int unit = first + i;
                const int64_t vector = unit / slices * quads + q, place = vector * 64 + unit % slices * Ops::bytes;
                if (unit % slices == 0) __builtin_prefetch(next + vector * step);
                if constexpr (Nibbles) {
                    x[i][0] = Ops::low(values + place);
                    x[i][1] = Ops::high(values + place);
                } else {
                    x[i][0] = Ops::load(values + place);
                }
            }
            for (int half = 0; half < halves; ++half)
                for (int r = 0; r < R; ++r)
                    for (int d = 0; d < Digits; ++d) {
                        const typename Ops::Part part =
                            Ops::broadcast(digits->digits[r] + d * weights.pitch + (block * 8 + half * 4 + q) * 4);
                        for (int i = 0; i < Count; ++i) sum[r][d][i] = Ops::dot(sum[r][d][i], x[i][half], part);
                    }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int d = 0; d < Digits; ++d)
            for (int i = 0; i < Count; ++i) sums[((first + i) * R + r) * Digits + d] = sum[r][d][i];
}

template <class Ops, bool Nibbles, int Digits, int R>
[[gnu::noinline]] void add_blocks(const QuadBlocks& blocks, const Weights<Ops, Digits, R>& weights, float* sums,
                                  int64_t sums_stride) {
    constexpr int channels = Ops::bytes / 4;
    using Floats = typename Lanes<Ops::bytes>::Floats;
    const int units = blocks.head_dim / channels;
    typename Ops::Sum total[max_head_dim / channels * R * Digits];
    for (int i = 0; i < units * R * Digits; ++i) total[i] = Ops::zero();
    const auto add = [&](int begin, int end, auto step) MUSTAFAR_INLINE_LAMBDA {
        int unit = 0;
        for (; unit + 1 < units; unit += 2)
            block_sums<Ops, Nibbles, Digits, R, 2>(blocks, begin, end, step, unit, weights, total);
        if (unit < units) block_sums<Ops, Nibbles, Digits, R, 1>(blocks, begin, end, step, unit, weights, total);
    };
    // Sums stay in registers over several blocks: all that were expanded, which are in the first-level cache. Others are read almost
    // from front to back, in pairs, which are also what is prefetched ahead.
    if (blocks.packed)
        add(0, blocks.count, packed_step(blocks));
    else
        for (int b = 0; b < blocks.count; b += 2) add(b, std::min(b + 2, blocks.count), Line());
    for (int unit = 0; unit < units; ++unit)
        for (int r = 0; r < R; ++r) {
            const Floats numbers = joined<Ops, Digits>(total + unit * R * Digits + r * Digits, 1, weights.sums[r],
                                                       Ops::bias(Nibbles ? 4 : 8));
            float* const out = sums + r * sums_stride + unit * channels;
            const Floats added = load_vector<Floats>(out) + numbers * weights.step[r];
            std::memcpy(out, &added, sizeof added);
        }
}

// numbers[t] = a weight times its token's scale; 0 for tokens without a weight. Returns the bits of the largest magnitude.
MUSTAFAR_INLINE int32_t scale_weights(const float* __restrict weights, const float* __restrict scales, int first,
                                      int tokens, int count, float* __restrict numbers) {
    for (int t = 0; t < first; ++t) numbers[t] = 0.0f;
    for (int t = 0; t < tokens; ++t) numbers[first + t] = weights[t] * scales[first + t];
    for (int t = first + tokens; t < count; ++t) numbers[t] = 0.0f;
    return largest_bits(numbers, count);
}

template <class Ops, class PackedBlocks>
int any_sum(const QuadBlocks& blocks, bool wide, int first, int tokens, const float* weights, int64_t stride, int rows,
            float* sums, int64_t sums_stride) {
    const int count = blocks.count * block_tokens;
    alignas(64) float scales[QuadBlocks::most * block_tokens];
    for (int b = 0; b < blocks.count; ++b) Ops::widen(blocks.blocks[b].scales, block_tokens, scales + b * block_tokens);
    int added = 0;
    const auto add = [&](const QuadBlocks& quads) {
        for_query_rows<Ops>(rows, wide, [&]<int Digits, int R>(int first_row) {
            if (added != first_row) return;
            Weights<Ops, Digits, R> parts;
            for (int r = 0; r < R; ++r) {
                alignas(64) float numbers[QuadBlocks::most * block_tokens];
                const int32_t top =
                    scale_weights(weights + (first_row + r) * stride, scales, first, tokens, count, numbers);
                if (top != 0 && (top < smallest_bits || top >= infinity_bits)) return;
                const float largest = f32_of_bits(static_cast<uint32_t>(top));
                parts.step[r] = largest / largest_number(wide);
                for (int d = 0; d < Digits; ++d) parts.sums[r][d] = 0;
                to_digits<Ops, Digits>(numbers, count, top == 0 ? 0.0f : largest_number(wide) / largest,
                                       parts.digits[r], parts.pitch, parts.sums[r]);
            }
            float* const out = sums + first_row * sums_stride;
            quads.bits == 4 ? add_blocks<Ops, true, Digits, R>(quads, parts, out, sums_stride)
                            : add_blocks<Ops, false, Digits, R>(quads, parts, out, sums_stride);
            added += R;
        });
    };
    blocks.packed ? add(expanded(blocks, PackedBlocks::values)) : add(blocks);
    return added;
}

// How packed blocks are multiplied: as Packed.
template <class Ops, class PackedBlocks = Packed<Ops>>
constexpr QuadKernels quad_table{.query_bytes = query_bytes<Ops>,
                                 .prepare_query = prepare_quad_query<Ops>,
                                 .scores = any_scores<Ops, PackedBlocks>,
                                 .sum = any_sum<Ops, PackedBlocks>};

}  // namespace
}  // namespace mustafar
