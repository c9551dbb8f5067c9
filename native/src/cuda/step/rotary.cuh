// Heads of one token, normalised and rotated by a warp: for the kernel of rope.cu, and for others that take such rows.
#pragma once

#include "cuda/step/values.cuh"

namespace mustafar::cuda {

constexpr int max_rotary_head_dim = 512;

// Of one token, by one warp: the angles are the same, and so are found once.
constexpr int heads_of_warp = 4;

// Pairs of a lane.
constexpr int rotary_pairs(int head_dim) {
    return (head_dim + 63) / 64;
}

struct Rotary {
    const int32_t* positions;  // [batch, num_tokens]
    const double* inv_freq;    // [rotary_dim / 2] or null
    const float* cosines;      // [table_positions, rotary_dim / 2]
    const float* sines;
    int64_t table_positions;
    float attention_scaling, eps;
    int32_t num_tokens, head_dim, rotary_dim;

    explicit Rotary(const mustafar_rope& rope)
        : positions(rope.positions), inv_freq(rope.inv_freq), cosines(rope.cosines), sines(rope.sines),
          table_positions(rope.table_positions), attention_scaling(rope.attention_scaling), eps(rope.eps),
          num_tokens(rope.num_tokens), head_dim(rope.head_dim), rotary_dim(rope.rotary_dim) {}

    // Cosine and sine of pair i at a position; NaN where there is none.
    __device__ __forceinline__ float2 turn(int32_t position, int i) const {
        const int pairs = rotary_dim / 2;
        float2 result;
        if (inv_freq != nullptr) {
            // Reduced in f64, so that the angle of a late position is as exact as that of an early one.
            const double angle = static_cast<double>(position) * inv_freq[i];
            const double turns = rint(angle * 0.15915494309189535);
            sincosf(static_cast<float>(fma(turns, -6.283185307179586, angle)), &result.y, &result.x);
            if (position < 0) result.x = result.y = __int_as_float(0x7fc00000);
        } else if (position < 0 || position >= table_positions) {
            result.x = result.y = __int_as_float(0x7fc00000);
        } else {
            result.x = cosines[static_cast<int64_t>(position) * pairs + i];
            result.y = sines[static_cast<int64_t>(position) * pairs + i];
        }
        return make_float2(result.x * attention_scaling, result.y * attention_scaling);
    }
};

// The turns of a position that a lane needs: of the pairs lane, lane + 32, ..., `Pairs` of them at most.
template <int Pairs>
struct Turns {
    float2 of[Pairs];

    __device__ __forceinline__ Turns(const Rotary& rotary, int32_t position) {
#pragma unroll
        for (int k = 0; k < Pairs; ++k) {
            const int i = threadIdx.x % 32 + 32 * k;
            if (i < rotary.rotary_dim / 2) of[k] = rotary.turn(position, i);
        }
    }
};

// A lane's part of a head of one token, which a warp normalises and rotates. The target may be the source.
template <class T, int Pairs>
class RotaryHead {
public:
    // norm: [head_dim] or null.
    __device__ __forceinline__ void load(const Rotary& rotary, const T* source, T* target, const T* norm) {
        source_ = source, target_ = target, norm_ = norm;
        const int pairs = rotary.rotary_dim / 2;
#pragma unroll
        for (int k = 0; k < Pairs; ++k) {
            const int i = lane() + 32 * k;
            low_[k] = i < pairs ? as_float(source[i]) : 0.0f;
            high_[k] = i < pairs ? as_float(source[i + pairs]) : 0.0f;
        }
    }

    __device__ __forceinline__ void store(const Rotary& rotary, const Turns<Pairs>& turns) {
        const int pairs = rotary.rotary_dim / 2;
        const float factor = norm_ == nullptr ? 1.0f : norm_factor(rotary);
#pragma unroll
        for (int k = 0; k < Pairs; ++k) {
            const int i = lane() + 32 * k;
            if (i >= pairs) break;
            const float2 by = turns.of[k];
            const float a = normed(low_[k], factor, i), b = normed(high_[k], factor, i + pairs);
            target_[i] = rounded_to<T>(fmaf(a, by.x, -b * by.y));
            target_[i + pairs] = rounded_to<T>(fmaf(b, by.x, a * by.y));
        }
        for (int c = rotary.rotary_dim + lane(); c < rotary.head_dim; c += 32)
            target_[c] = rounded_to<T>(normed(as_float(source_[c]), factor, c));
    }

private:
    static __device__ __forceinline__ int lane() {
        return static_cast<int>(threadIdx.x % 32);
    }

    __device__ __forceinline__ float norm_factor(const Rotary& rotary) const {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < Pairs; ++k) sum = fmaf(low_[k], low_[k], fmaf(high_[k], high_[k], sum));
        for (int c = rotary.rotary_dim + lane(); c < rotary.head_dim; c += 32) {
            const float value = as_float(source_[c]);
            sum = fmaf(value, value, sum);
        }
        return 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(rotary.head_dim) + rotary.eps);
    }
    __device__ __forceinline__ float normed(float value, float factor, int c) const {
        return norm_ == nullptr ? value : value * (factor * as_float(norm_[c]));
    }

    const T* source_;
    T* target_;
    const T* norm_;
    float low_[Pairs], high_[Pairs];
};

}  // namespace mustafar::cuda
