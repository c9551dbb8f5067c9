// Rotary position embedding. Grid: a warp for each head of queries, keys and values (fastest), then tokens, then sequences.
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
    int64_t rows;  // heads of all tokens
};

template <class T>
__global__ void __launch_bounds__(32 * warps) rotate_heads(const __grid_constant__ RopeParams p) {
    __shared__ float rows[warps][max_rotary_head_dim];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t index = static_cast<int64_t>(blockIdx.x) * warps + warp;
    let_next_grid_start();
    wait_for_previous_grid();
    if (index >= p.rows) return;
    int head = static_cast<int>(index % p.heads);
    const int64_t token_index = index / p.heads;
    const int token = static_cast<int>(token_index % p.rotary.num_tokens);
    const int sequence = static_cast<int>(token_index / p.rotary.num_tokens);
    const int which = head < p.num_heads ? 0 : head < p.num_heads + p.num_kv_heads ? 1 : 2;
    head -= which == 0 ? 0 : p.num_heads + (which - 1) * p.num_kv_heads;
    const T* const source = p.source[which].row<const T>(sequence, head, token);
    T* const target = p.target[which].row<T>(sequence, head, token);
    if (which < 2)
        p.rotary.head(source, target, static_cast<const T*>(p.norm[which]), p.rotary.positions[token_index],
                      rows[warp]);
    else
        for (int c = lane; c < p.rotary.head_dim; c += 32) target[c] = source[c];
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
    p.rows = int64_t{rope.batch} * rope.num_tokens * p.heads;
    dispatch_dtype("RoPE", rope.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch(scope, "RoPE", rotate_heads<T>, LaunchShape{divide_up(p.rows, warps), 32 * warps, 0, true}, p);
    });
}

}  // namespace mustafar::cuda
