// NEON kernels (Advanced SIMD of ARMv8.0, which every 64-bit ARM CPU has). Eight channels at a time are expanded in
// registers by a table look-up that a bitmap byte selects, for up to four tokens and up to eight query rows at once:
// each part of a query is loaded once for these tokens, each token is expanded once for these rows.
#include <arm_neon.h>

#include <limits>
#include <utility>

#include "cpu/balanced.h"
#include "cpu/kernel_tables.h"
#include "cpu/kernels.h"
#include "cpu/row.h"
#include "cpu/select.h"

namespace mustafar {
namespace {

// Byte indices for tbl, which gives zero for 0xff.
struct Shuffles {
    // From packed values to the eight channels of a bitmap byte.
    alignas(64) uint8_t spread16[256][16];
    alignas(64) uint8_t spread32[256][32];
    // From eight channels (16-bit values) or four (32-bit) to packed values.
    alignas(64) uint8_t pack16[256][16];
    alignas(64) uint8_t pack32[16][16];
};

constexpr Shuffles make_shuffles() {
    Shuffles table{};
    for (unsigned byte = 0; byte < 256; ++byte) {
        unsigned next = 0;
        for (unsigned c = 0; c < 8; ++c) {
            const bool kept = (byte >> c & 1) != 0;
            for (unsigned i = 0; i < 2; ++i) {
                table.spread16[byte][2 * c + i] = static_cast<uint8_t>(kept ? 2 * next + i : 0xff);
                if (kept) table.pack16[byte][2 * next + i] = static_cast<uint8_t>(2 * c + i);
            }
            for (unsigned i = 0; i < 4; ++i) {
                table.spread32[byte][4 * c + i] = static_cast<uint8_t>(kept ? 4 * next + i : 0xff);
                if (kept && byte < 16) table.pack32[byte][4 * next + i] = static_cast<uint8_t>(4 * c + i);
            }
            next += kept;
        }
    }
    return table;
}

constexpr Shuffles shuffles = make_shuffles();

// Calls body.operator()<0>() ... <Count - 1>().
template <int Count, class Body>
MUSTAFAR_INLINE void repeat(const Body& body) {
    [&]<int... I>(std::integer_sequence<int, I...>) MUSTAFAR_INLINE_LAMBDA {
        (body.template operator()<I>(), ...);
    }
    (std::make_integer_sequence<int, Count>());
}

// Eight channels as they are stored.
template <class T>
struct Raw {
    static constexpr int registers = sizeof(typename T::Bits) / 2;
    uint8x16_t bytes[registers];
};

// Eight channels in f32.
struct Octet {
    float32x4_t low, high;
};

template <class T>
MUSTAFAR_INLINE Octet widen(Raw<T> x);

template <>
MUSTAFAR_INLINE Octet widen<F32>(Raw<F32> x) {
    return {vreinterpretq_f32_u8(x.bytes[0]), vreinterpretq_f32_u8(x.bytes[1])};
}
template <>
MUSTAFAR_INLINE Octet widen<F16>(Raw<F16> x) {
    const float16x8_t half = vreinterpretq_f16_u8(x.bytes[0]);
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
}
template <>
MUSTAFAR_INLINE Octet widen<BF16>(Raw<BF16> x) {
    const uint16x8_t half = vreinterpretq_u16_u8(x.bytes[0]);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(half, 16))};
}

// Up to eight octets of a packed token. Reading one reads at most 32 bytes past the values.
template <class T, bool Packed>
class Part {
public:
    static constexpr bool narrow = sizeof(typename T::Bits) == 2;

    template <int Octets>
    MUSTAFAR_INLINE void open(const uint8_t* values, const uint8_t* bitmap) {
        values_ = values;
        bits_ = 0;
        std::memcpy(&bits_, bitmap, Octets);
        // A product with ones sums the counts of all lower bytes into each. For 16-bit values with twos, which makes
        // them offsets in bytes; those of 32-bit values would not fit.
        const uint64_t counts = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(bits_))), 0);
        ends_ = counts * (narrow ? 0x0202020202020202u : 0x0101010101010101u);
    }
    template <int I>
    MUSTAFAR_INLINE Raw<T> octet() const {
        const uint64_t byte = bits_ >> 8 * I & 0xffu;
        const uint8_t* values = I == 0 ? values_ : at(ends_ >> ((8 * I - 8) & 63) & 0xffu);
        if constexpr (narrow) {
            return {vqtbl1q_u8(vld1q_u8(values), vld1q_u8(shuffles.spread16[byte]))};
        } else {
            const uint8x16x2_t x = vld1q_u8_x2(values);
            const uint8_t* indices = shuffles.spread32[byte];
            return {vqtbl1q_u8(x.val[0], vld1q_u8(indices)), vqtbl2q_u8(x, vld1q_u8(indices + 16))};
        }
    }
    MUSTAFAR_INLINE const uint8_t* end() const { return at(ends_ >> 56); }

private:
    MUSTAFAR_INLINE const uint8_t* at(uint64_t values) const { return values_ + (narrow ? values : 4 * values); }

    const uint8_t* values_;
    uint64_t bits_, ends_;
};

// Octets of a dense row.
template <class T>
class Part<T, false> {
public:
    template <int Octets>
    MUSTAFAR_INLINE void open(const uint8_t* row, const uint8_t*) {
        row_ = row;
        end_ = row + 8 * Octets * sizeof(typename T::Bits);
    }
    template <int I>
    MUSTAFAR_INLINE Raw<T> octet() const {
        Raw<T> x;
        for (int i = 0; i < x.registers; ++i) x.bytes[i] = vld1q_u8(row_ + 16 * (I * x.registers + i));
        return x;
    }
    MUSTAFAR_INLINE const uint8_t* end() const { return end_; }

private:
    const uint8_t *row_, *end_;
};

// P consecutive tokens of head_dim channels.
template <int P>
struct Tokens {
    const uint8_t* data[P];    // packed: the next value; dense: the next channel
    const uint8_t* bitmap[P];  // packed: one byte per octet
    int head_dim;
};

// Calls body(octet, Raw[P]) for Octets octets of tokens from octet first on.
template <class T, bool Packed, int Octets, int P, class Body>
MUSTAFAR_INLINE void for_part(Tokens<P>& tokens, int first, const Body& body) {
    Part<T, Packed> parts[P];
    for (int p = 0; p < P; ++p)
        parts[p].template open<Octets>(tokens.data[p], Packed ? tokens.bitmap[p] + first : nullptr);
    repeat<Octets>([&]<int I>() MUSTAFAR_INLINE_LAMBDA {
        Raw<T> x[P];
        for (int p = 0; p < P; ++p) x[p] = parts[p].template octet<I>();
        body(first + I, x);
    });
    for (int p = 0; p < P; ++p) tokens.data[p] = parts[p].end();
}

// The same for all octets of tokens: 64 channels at a time, the rest of head_dim 80 and 96 by 16.
template <class T, bool Packed, int P, class Body>
MUSTAFAR_INLINE void for_octets(Tokens<P>& tokens, const Body& body) {
    const int octets = tokens.head_dim / 8;
    int octet = 0;
    for (; octet + 8 <= octets; octet += 8) for_part<T, Packed, 8>(tokens, octet, body);
    for (; octet < octets; octet += 2) for_part<T, Packed, 2>(tokens, octet, body);
}

MUSTAFAR_INLINE int count_token(const uint32_t* bitmap, int words) {
    if (words == 4) return vaddvq_u8(vcntq_u8(vreinterpretq_u8_u32(vld1q_u32(bitmap))));
    uint8x8_t total = vdup_n_u8(0);
    for (int w = 0; w + 2 <= words; w += 2) total = vadd_u8(total, vcnt_u8(vreinterpret_u8_u32(vld1_u32(bitmap + w))));
    return vaddlv_u8(total) + (words % 2 == 1 ? std::popcount(bitmap[words - 1]) : 0);
}

// Processes the tokens of a run one after another.
template <class T, bool Packed>
class Walk {
public:
    MUSTAFAR_INLINE explicit Walk(const TokenRun& run)
        : run_(run), words_(bitmap_words(run.head_dim)), next_(static_cast<const uint8_t*>(run.data)) {}

    MUSTAFAR_INLINE int token() const { return token_; }
    MUSTAFAR_INLINE int left() const { return run_.tokens - token_; }

    template <int P>
    MUSTAFAR_INLINE Tokens<P> take() {
        Tokens<P> tokens;
        tokens.head_dim = run_.head_dim;
        for (int p = 0; p < P; ++p, ++token_) {
            tokens.data[p] = next_;
            if constexpr (Packed) {
                const uint32_t* bitmap = run_.bitmap + token_ * words_;
                tokens.bitmap[p] = reinterpret_cast<const uint8_t*>(bitmap);
                next_ += static_cast<int>(sizeof(typename T::Bits)) * count_token(bitmap, words_);
            } else {
                next_ += run_.row_bytes;
            }
        }
        return tokens;
    }

private:
    const TokenRun& run_;
    int words_, token_ = 0;
    const uint8_t* next_;
};

// Lane i of the result is the sum of all lanes of x[i].
MUSTAFAR_INLINE float32x4_t sum_each_of_4(const float32x4_t* x) {
    return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3]));
}

// Scores of R query rows, P tokens at a time while there are that many. Separate functions, since compilers take long
// over large ones.
template <class T, bool Packed, int R, int P>
[[gnu::noinline]] Walk<T, Packed> score_rows(Walk<T, Packed> walk, const float* query, int64_t width, float* scores,
                                             int64_t stride) {
    while (walk.left() >= P) {
        float* out = scores + walk.token();
        Tokens<P> tokens = walk.template take<P>();
        // 16 accumulators at most; two for each sum, where they are few, hide the latency.
        constexpr int chains = R * P <= 8 ? 2 : 1;
        float32x4_t sums[R * P][chains];
        for (int i = 0; i < R * P; ++i)
            for (int c = 0; c < chains; ++c) sums[i][c] = vdupq_n_f32(0.0f);
        for_octets<T, Packed>(tokens, [&](int octet, const Raw<T>(&raw)[P]) MUSTAFAR_INLINE_LAMBDA {
            Octet x[P];
            for (int p = 0; p < P; ++p) x[p] = widen<T>(raw[p]);
            for (int r = 0; r < R; ++r) {
                const float* q = query + r * width + 8 * octet;
                const float32x4_t low = vld1q_f32(q), high = vld1q_f32(q + 4);
                for (int p = 0; p < P; ++p) {
                    float32x4_t* sum = sums[r * P + p];
                    sum[0] = vfmaq_f32(sum[0], x[p].low, low);
                    sum[chains - 1] = vfmaq_f32(sum[chains - 1], x[p].high, high);
                }
            }
        });
        float32x4_t whole[R * P];
        for (int i = 0; i < R * P; ++i)
            whole[i] = chains == 2 ? vaddq_f32(sums[i][0], sums[i][chains - 1]) : sums[i][0];
        if constexpr (P == 4) {
            for (int r = 0; r < R; ++r) vst1q_f32(out + r * stride, sum_each_of_4(whole + 4 * r));
        } else if constexpr (P == 2) {
            for (int r = 0; r < R; r += 2) {
                const float32x4_t two_rows = sum_each_of_4(whole + 2 * r);
                vst1_f32(out + r * stride, vget_low_f32(two_rows));
                vst1_f32(out + (r + 1) * stride, vget_high_f32(two_rows));
            }
        } else {
            for (int r = 0; r < R; ++r) out[r * stride] = vaddvq_f32(whole[r]);
        }
    }
    return walk;
}

template <class T, bool Packed>
void scores(const TokenRun& run, const void* prepared, int rows, float* scores, int64_t stride) {
    const int64_t width = 32 * bitmap_words(run.head_dim);
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        const float* query = static_cast<const float*>(prepared) + first * width;
        float* out = scores + first * stride;
        const Walk<T, Packed> rest =
            score_rows<T, Packed, R, (R == 8 ? 2 : 4)>(Walk<T, Packed>(run), query, width, out, stride);
        for (int r = 0; r < R && rest.left() > 0; ++r)
            score_rows<T, Packed, 1, 1>(rest, query + r * width, width, out + r * stride, stride);
    });
}

// Adds to the sums of R rows, P tokens at a time while there are that many. The sums stay in memory: several tokens
// at a time make their loads and stores cheap, and one pass over the run serves any number of channels and rows.
template <class T, bool Packed, int R, int P>
[[gnu::noinline]] Walk<T, Packed> sum_rows(Walk<T, Packed> walk, const float* weights, int64_t stride, float* sums,
                                           int64_t width) {
    while (walk.left() >= P) {
        float32x4_t weight[R];
        for (int r = 0; r < R; ++r) {
            const float* w = weights + r * stride + walk.token();
            weight[r] = P == 4 ? vld1q_f32(w) : vld1q_dup_f32(w);
        }
        Tokens<P> tokens = walk.template take<P>();
        for_octets<T, Packed>(tokens, [&](int octet, const Raw<T>(&raw)[P]) MUSTAFAR_INLINE_LAMBDA {
            Octet x[P];
            for (int p = 0; p < P; ++p) x[p] = widen<T>(raw[p]);
            for (int r = 0; r < R; ++r) {
                float* target = sums + r * width + 8 * octet;
                float32x4_t low = vld1q_f32(target), high = vld1q_f32(target + 4);
                repeat<P>([&]<int I>() MUSTAFAR_INLINE_LAMBDA {
                    low = vfmaq_laneq_f32(low, x[I].low, weight[r], I);
                    high = vfmaq_laneq_f32(high, x[I].high, weight[r], I);
                });
                vst1q_f32(target, low);
                vst1q_f32(target + 4, high);
            }
        });
    }
    return walk;
}

template <class T, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    const int64_t width = 32 * bitmap_words(run.head_dim);
    for_row_chunks<8>(rows, [&]<int R>(int first) {
        const float* w = weights + first * stride;
        float* out = sums + first * width;
        const Walk<T, Packed> rest = sum_rows<T, Packed, R, 4>(Walk<T, Packed>(run), w, stride, out, width);
        for (int r = 0; r < R && rest.left() > 0; ++r)
            sum_rows<T, Packed, 1, 1>(rest, w + r * stride, stride, out + r * width, width);
    });
}

// 2^x to 2 ulp for x <= 0; 0 below 2^-126; NaN stays NaN.
MUSTAFAR_INLINE float32x4_t exp2_of(float32x4_t x) {
    const uint32x4_t tiny = vcltq_f32(x, vdupq_n_f32(-126.0f));
    x = vmaxq_f32(x, vdupq_n_f32(-126.0f));  // NaN if x is
    const float32x4_t whole = vrndnq_f32(x);
    const float32x4_t f = vsubq_f32(x, whole);
    float32x4_t p = vdupq_n_f32(exp2_polynomial[0]);
    for (int i = 1; i < 7; ++i) p = vfmaq_f32(vdupq_n_f32(exp2_polynomial[i]), p, f);
    const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127)), 23);
    const float32x4_t power = vmulq_f32(p, vreinterpretq_f32_s32(exponent));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(power), tiny));
}

float softmax(float* scores, int count, float scale, float* maximum, float* sum) {
    const float none = -std::numeric_limits<float>::infinity();
    const int whole = count / 4 * 4;
    alignas(16) float last[4] = {none, none, none, none};
    for (int i = whole; i < count; ++i) last[i - whole] = scores[i];
    // Calls body with all scores, four at a time.
    const auto for_scores = [&](const auto& body) MUSTAFAR_INLINE_LAMBDA {
        for (int i = 0; i < whole; i += 4) body(scores + i);
        if (whole < count) body(last);
    };
    float32x4_t most = vdupq_n_f32(none);
    for_scores([&](float* p) MUSTAFAR_INLINE_LAMBDA {
        const float32x4_t x = vmulq_n_f32(vld1q_f32(p), scale);
        most = vmaxnmq_f32(most, x);  // a NaN shows in the sum instead
        vst1q_f32(p, x);
    });
    const float tile = vmaxnmvq_f32(most);
    const float highest = tile > *maximum ? tile : *maximum;
    float factor = 1.0f;
    if (highest != *maximum) factor = vgetq_lane_f32(exp2_of(vdupq_n_f32(*maximum - highest)), 0);
    const float32x4_t shift = vdupq_n_f32(highest == none ? 0.0f : highest);
    float32x4_t total = vdupq_n_f32(0.0f);
    for_scores([&](float* p) MUSTAFAR_INLINE_LAMBDA {
        const float32x4_t x = exp2_of(vsubq_f32(vld1q_f32(p), shift));
        total = vaddq_f32(total, x);
        vst1q_f32(p, x);
    });
    for (int i = whole; i < count; ++i) scores[i] = last[i - whole];
    *maximum = highest;
    *sum = *sum * factor + vaddvq_f32(total);
    return factor;
}

template <int W>
int count(const uint32_t* bitmap, int tokens) {
    const int words = tokens * W;
    uint16x8_t total = vdupq_n_u16(0);  // a block has too few bits to overflow
    int i = 0;
    for (; i + 4 <= words; i += 4) total = vpadalq_u8(total, vcntq_u8(vreinterpretq_u8_u32(vld1q_u32(bitmap + i))));
    int count = vaddvq_u16(total);
    for (; i < words; ++i) count += std::popcount(bitmap[i]);
    return count;
}

template <class T, int W>
int pack(const void* source, const uint32_t* bitmap, void* target) {
    const uint8_t* row = static_cast<const uint8_t*>(source);
    constexpr int channels = 16 / static_cast<int>(sizeof(typename T::Bits));  // of a register
    alignas(16) uint8_t values[32 * W * sizeof(typename T::Bits) + 16];        // whole registers are stored
    uint8_t* next = values;
    for (int c = 0; c < 32 * W; c += channels, row += 16) {
        const uint32_t bits = bitmap[c / 32] >> c % 32 & ((1u << channels) - 1);
        if (W == 3 && bits == 0) continue;  // the row of head_dim 80 may end here
        const uint8_t* indices = channels == 8 ? shuffles.pack16[bits] : shuffles.pack32[bits];
        vst1q_u8(next, vqtbl1q_u8(vld1q_u8(row), vld1q_u8(indices)));
        next += static_cast<int>(sizeof(typename T::Bits)) * std::popcount(bits);
    }
    const size_t bytes = static_cast<size_t>(next - values);
    std::memcpy(target, values, bytes);
    return static_cast<int>(bytes / sizeof(typename T::Bits));
}

template <class T>
int unpack(const void* source, const uint32_t* bitmap, int head_dim, void* target) {
    const uint8_t* values = static_cast<const uint8_t*>(source);
    uint8_t* row = static_cast<uint8_t*>(target);
    Tokens<1> token{{values}, {reinterpret_cast<const uint8_t*>(bitmap)}, head_dim};
    for_octets<T, true>(token, [&](int octet, const Raw<T>(&x)[1]) MUSTAFAR_INLINE_LAMBDA {
        for (int i = 0; i < x->registers; ++i) vst1q_u8(row + 16 * (octet * x->registers + i), x->bytes[i]);
    });
    return static_cast<int>((token.data[0] - values) / static_cast<int>(sizeof(typename T::Bits)));
}

struct Tables {
    template <class T, int W>
    static constexpr Kernels of = {
        .select = select_rows<T, W>,
        .balance_keys = balance<T, true>,
        .balance_values = balance<T, false>,
        .pack = pack<T, W>,
        .unpack = unpack<T>,
        .count = count<W>,
        .prepare_query = prepare_f32<T, W>,
        .packed_scores = scores<T, true>,
        .dense_scores = scores<T, false>,
        .packed_sum = sum<T, true>,
        .dense_sum = sum<T, false>,
        .finish = finish_row<T>,
        .softmax = softmax,
        .rescale = rescale_row,
    };
};

}  // namespace

const Kernels& neon_kernels(int32_t dtype, int words) {
    return table_for<Tables>(dtype, words);
}

}  // namespace mustafar
