// The arithmetic of sampling, the same on every device: f32 operations that are rounded one by one, and integers.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(_MSC_VER)
#include <intrin.h>
#endif

#include "mustafar/mustafar.h"

#if defined(__CUDACC__)
#define MUSTAFAR_EVERYWHERE __host__ __device__ inline
#else
#define MUSTAFAR_EVERYWHERE inline
#endif

namespace mustafar::sampling {

constexpr int weight_bits = 40;  // the largest weight is 2^40: 2^22 tokens' sum fits 64 bits

// Products and sums that no compiler contracts into one rounding. (For the CPU the build turns contraction off.)
MUSTAFAR_EVERYWHERE float product(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
MUSTAFAR_EVERYWHERE float sum(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}
MUSTAFAR_EVERYWHERE float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}
MUSTAFAR_EVERYWHERE double product(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}
MUSTAFAR_EVERYWHERE double sum(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}

MUSTAFAR_EVERYWHERE bool has_bit(const uint32_t* bits, int32_t token) {
    return (bits[token >> 5] >> (token & 31) & 1u) != 0;
}

MUSTAFAR_EVERYWHERE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Larger for a larger logit; equal for +0 and -0. Not for NaN.
MUSTAFAR_EVERYWHERE uint32_t order_key(float logit) {
    const uint32_t bits = bits_of(sum(logit, 0.0f));  // +0 for -0
    return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// The logit, never -0, that has this key.
MUSTAFAR_EVERYWHERE float logit_of(uint32_t order_key) {
    const uint32_t bits = order_key ^ ((order_key >> 31) != 0 ? 0x80000000u : 0xffffffffu);
    float logit;
    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

// The logit after penalties.
MUSTAFAR_EVERYWHERE float penalised(float logit, int32_t count, bool in_prompt, const mustafar_sampling_options& o) {
    const bool chosen = count > 0;
    if ((chosen || in_prompt) && o.repetition_penalty != 1.0f)
        logit = logit > 0.0f ? quotient(logit, o.repetition_penalty) : product(logit, o.repetition_penalty);
    if (chosen && (o.frequency_penalty != 0.0f || o.presence_penalty != 0.0f)) {
        const double penalty = sum(product(static_cast<double>(o.frequency_penalty), static_cast<double>(count)),
                                   static_cast<double>(o.presence_penalty));
        logit = sum(logit, -static_cast<float>(penalty));
    }
    return logit;
}

// log2(e) * (logit - largest) / temperature, not above 0; never decreases as the logit grows. logit <= largest, both
// not NaN, largest finite. Only down to -63, which has no weight.
MUSTAFAR_EVERYWHERE float power_of_two(float logit, float largest, float temperature) {
    const float power = product(quotient(sum(logit, -largest), temperature), 1.44269504f);
    return power > -63.0f ? power : -63.0f;
}

// 2^power, power from -63 to 0, in units of 2^-40, truncated.
MUSTAFAR_EVERYWHERE uint64_t weight(float power) {
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
    const float shifted = sum(power, shifter), whole = sum(shifted, -shifter);
    const float rest = sum(power, -whole);  // exact, -0.5 ... 0.5
    // Minimax polynomial of 2^rest.
    float value = 1.535336188e-4f;
    value = sum(product(value, rest), 1.339887440e-3f);
    value = sum(product(value, rest), 9.618437357e-3f);
    value = sum(product(value, rest), 5.550332548e-2f);
    value = sum(product(value, rest), 2.402264791e-1f);
    value = sum(product(value, rest), 6.931472028e-1f);
    value = sum(product(value, rest), 1.0f);
    const uint32_t mantissa = static_cast<uint32_t>(product(value, 8388608.0f));
    return uint64_t{mantissa} << (weight_bits - 23) >> (bits_of(shifter) - bits_of(shifted));
}

// 64 bits of Philox4x32-10 for a draw.
MUSTAFAR_EVERYWHERE uint64_t random_bits(uint64_t seed, uint64_t step) {
    uint32_t c0 = static_cast<uint32_t>(step), c1 = static_cast<uint32_t>(step >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return static_cast<uint64_t>(c1) << 32 | c0;
}

// floor(random * total / 2^64)
MUSTAFAR_EVERYWHERE uint64_t below(uint64_t random, uint64_t total) {
#if defined(__CUDA_ARCH__)
    return __umul64hi(random, total);
#elif defined(_MSC_VER) && !defined(__clang__)
    return __umulh(random, total);
#else
    __extension__ using wide = unsigned __int128;
    return static_cast<uint64_t>(static_cast<wide>(random) * total >> 64);
#endif
}

// The least integer weight that is at least `part` (above 0) of total, rounded in f64; total if that is more.
MUSTAFAR_EVERYWHERE uint64_t part_of(float part, uint64_t total) {
    const double exact = product(static_cast<double>(part), static_cast<double>(total));
    if (!(exact < 0x1p63)) return total;
    const uint64_t floor = static_cast<uint64_t>(exact);
    const uint64_t rounded_up = floor + (static_cast<double>(floor) < exact ? 1 : 0);
    return rounded_up < total ? rounded_up : total;
}

MUSTAFAR_EVERYWHERE bool is_greedy(const mustafar_sampling_options& o) {
    return !(o.temperature > 0.0f);
}
MUSTAFAR_EVERYWHERE bool has_nucleus(const mustafar_sampling_options& o) {
    return o.top_p < 1.0f;
}
MUSTAFAR_EVERYWHERE uint64_t least_weight(const mustafar_sampling_options& o) {
    const uint64_t least = o.min_p > 0.0f ? part_of(o.min_p, uint64_t{1} << weight_bits) : 1;
    return least > 0 ? least : 1;
}

}  // namespace mustafar::sampling
