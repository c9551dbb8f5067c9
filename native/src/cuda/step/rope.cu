// Rotary position embedding. Grid: a warp for every few heads of queries, keys and values (fastest), then tokens, then sequences.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/plain_block.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/step/rotary.cuh"
#include "cuda/step/step.h"

namespace mustafar::cuda {
namespace {

constexpr int warps = 4;

struct RopeParams {
    Rotary rotary;
    Dense source[3], target[3];  // queries, keys, values
    const void* norm[2];         // of queries and keys
    int32_t num_heads, num_kv_heads, heads;
    int32_t units_of_token;  // each a warp's
    int64_t units;
};

template <class T, int Pairs>
__global__ void __launch_bounds__(32 * warps) rotate_heads(const __grid_constant__ RopeParams p) {
    const int lane = threadIdx.x % 32;
    const int64_t unit = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
    let_next_grid_start();
    wait_for_previous_grid();
    if (unit >= p.units) return;
    const int64_t token_index = unit / p.units_of_token;
    const int first = static_cast<int>(unit % p.units_of_token) * heads_of_warp;
    const int token = static_cast<int>(token_index % p.rotary.num_tokens);
    const int sequence = static_cast<int>(token_index / p.rotary.num_tokens);
    const int32_t position = p.rotary.positions[token_index];
    const auto is_rotated = [&](int j) { return first + j < p.num_heads + p.num_kv_heads; };
    RotaryHead<T, Pairs> heads[heads_of_warp];
#pragma unroll
    for (int j = 0; j < heads_of_warp; ++j) {
        if (!is_rotated(j)) continue;
        const int which = first + j < p.num_heads ? 0 : 1, head = first + j - which * p.num_heads;
        heads[j].load(p.rotary, p.source[which].row<const T>(sequence, head, token),
                      p.target[which].row<T>(sequence, head, token), static_cast<const T*>(p.norm[which]));
    }
    const Turns<Pairs> turns(p.rotary, position);
#pragma unroll
    for (int j = 0; j < heads_of_warp; ++j) {
        if (is_rotated(j)) {
            heads[j].store(p.rotary, turns);
        } else if (first + j < p.heads) {
            const int head = first + j - p.num_heads - p.num_kv_heads;
            const T* const source = p.source[2].row<const T>(sequence, head, token);
            T* const target = p.target[2].row<T>(sequence, head, token);
            for (int c = lane; c < p.rotary.head_dim; c += 32) target[c] = source[c];
        }
    }
}

}  // namespace

void rotate(const mustafar_context& context, const mustafar_rope& rope) {
    const DeviceScope scope(context);
    RopeParams p{Rotary(rope)};
    p.source[0] = rope.query;
    p.source[1] = rope.key;
    p.source[2] = rope.value;
    p.target[0] = rope.query_output;
    p.target[1] = rope.key_output;
    p.target[2] = rope.value_output;
    p.norm[0] = rope.query_norm;
    p.norm[1] = rope.key_norm;
    p.num_heads = rope.num_heads;
    p.num_kv_heads = rope.num_kv_heads;
    p.heads = rope.num_heads + rope.num_kv_heads * (rope.value.data != nullptr ? 2 : 1);
    p.units_of_token = static_cast<int32_t>(divide_up(p.heads, heads_of_warp));
    p.units = int64_t{rope.batch} * rope.num_tokens * p.units_of_token;
    dispatch_dtype("RoPE", rope.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const auto kernel = rope.head_dim <= 64    ? rotate_heads<T, rotary_pairs(64)>
                            : rope.head_dim <= 128 ? rotate_heads<T, rotary_pairs(128)>
                                                   : rotate_heads<T, rotary_pairs(max_rotary_head_dim)>;
        launch(scope, "RoPE", kernel, LaunchShape{divide_up(p.units, warps), 32 * warps, 0, true}, p);
    });
}

}  // namespace mustafar::cuda
