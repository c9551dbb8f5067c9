// One head of one token, normalised and rotated by a warp: for the kernel of rope.cu, and for others that take such rows.
#pragma once

#include "cuda/step/values.cuh"

namespace mustafar::cuda {

constexpr int max_rotary_head_dim = 512;

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

    // Called by a whole warp; row: head_dim floats of shared memory that are this warp's. `norm` may be null.
    template <class T>
    __device__ __forceinline__ void head(const T* source, T* target, const T* norm, int32_t position,
                                         float* row) const {
        const int lane = threadIdx.x % 32, pairs = rotary_dim / 2;
        float sum = 0.0f;
        for (int c = lane; c < head_dim; c += 32) {
            const float value = as_float(source[c]);
            row[c] = value;
            sum = fmaf(value, value, sum);
        }
        if (norm != nullptr) {
            const float factor = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(head_dim) + eps);
            for (int c = lane; c < head_dim; c += 32) row[c] *= factor * as_float(norm[c]);
        }
        __syncwarp();
        for (int i = lane; i < pairs; i += 32) {
            const float2 by = turn(position, i);
            const float a = row[i], b = row[i + pairs];
            target[i] = rounded_to<T>(a * by.x - b * by.y);
            target[i + pairs] = rounded_to<T>(b * by.x + a * by.y);
        }
        for (int c = rotary_dim + lane; c < head_dim; c += 32) target[c] = rounded_to<T>(row[c]);
    }
};

}  // namespace mustafar::cuda
