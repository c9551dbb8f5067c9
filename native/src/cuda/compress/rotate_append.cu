// Rotates the queries and keys of one new token of each sequence and appends its key and value, in one launch.
//
// Grid: of each sequence the thread blocks of its keys and values, KV heads slowest, and then those of its query heads, a warp
// for each head.
#include "cuda/compress/append.cuh"
#include "cuda/step/rotary.cuh"
#include "cuda/step/step.h"

namespace mustafar::cuda {
namespace {

constexpr int warps = block_threads / 32;

struct RotateAppendParams {
    AppendParams append;
    Rotary rotary;
    Dense query, key, query_output, key_output;
    const void *query_norm, *key_norm;
    Divisor by_unit;  // thread blocks of a sequence
    int32_t num_heads;
};

template <class T, int HeadDim>
__global__ void __launch_bounds__(block_threads) rotate_append_tokens(const __grid_constant__ RotateAppendParams p) {
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ float rows[warps][HeadDim];
    __shared__ __align__(16) T rotated[HeadDim];
    uint32_t unit = blockIdx.x;
    const int batch_row = static_cast<int>(p.by_unit.split(unit)), warp = threadIdx.x / 32;
    const int lists = 2 * static_cast<int>(p.append.by_head.value());
    wait_for_previous_grid();
    // Asked for by all, so that nobody waits for it after the sequence's numbers.
    const int32_t position = p.rotary.positions[batch_row];
    if (static_cast<int>(unit) >= lists) {
        const int head = (static_cast<int>(unit) - lists) * warps + warp;
        if (head < p.num_heads)
            p.rotary.head(p.query.row<const T>(batch_row, head, 0), p.query_output.row<T>(batch_row, head, 0),
                          static_cast<const T*>(p.query_norm), position, rows[warp]);
        return;
    }
    AppendedTokens<T> tokens(p.append, batch_row, static_cast<int>(unit >> 1), static_cast<int>(unit & 1));
    if (!tokens.exists()) return;
    if (tokens.which == 0) {
        if (warp == 0)
            p.rotary.head(p.key.row<const T>(batch_row, tokens.head, 0), rotated, static_cast<const T*>(p.key_norm),
                          position, rows[0]);
        __syncthreads();
        tokens.fresh = rotated;
        if (tokens.due > tokens.before) {
            // Compression reads tokens from global memory.
            T* const output = p.key_output.row<T>(batch_row, tokens.head, 0);
            for (int c = threadIdx.x; c < HeadDim; c += block_threads) output[c] = rotated[c];
            __syncthreads();
            tokens.fresh = output;
        }
    }
    append_part<T, HeadDim, false>(p.append, tokens, 0, memory);
}

}  // namespace

void rotate_append(const mustafar_context& context, const mustafar_rope& rope, const mustafar_append& a) {
    const AppendParams append_params(a);
    if (a.batch == 0 || a.num_tokens != 1 || append_params.chosen()) {
        rotate(context, rope);
        append(context, a);
        return;
    }
    const DeviceScope scope(context);
    const int64_t units = 2 * int64_t{a.num_kv_heads} + divide_up(rope.num_heads, warps);
    const RotateAppendParams p{append_params,   Rotary(rope),      rope.query,
                               rope.key,        rope.query_output, rope.key_output,
                               rope.query_norm, rope.key_norm,     Divisor(static_cast<uint32_t>(units)),
                               rope.num_heads};
    dispatch("rotate and append", a.keys.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        static std::atomic<uint64_t> allowed{0};
        const auto kernel = rotate_append_tokens<T, head_dim()>;
        allow_shared_memory(scope, kernel, allowed, 1024 + warps * max_rotary_head_dim * 4);
        launch(scope, "rotate and append", kernel,
               LaunchShape{units * a.batch, block_threads, sizeof(typename BlockWriter<T, head_dim()>::Memory), true},
               p);
    });
}

}  // namespace mustafar::cuda
