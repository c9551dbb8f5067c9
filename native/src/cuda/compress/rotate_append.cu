// Rotates the queries and keys of one new token of each sequence and appends its key and value, in one launch.
//
// Grid: of each sequence the thread blocks of its keys and values, KV heads slowest, and then those of its query heads, of which a
// warp has several.
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
__global__ void __launch_bounds__(block_threads, append_blocks<HeadDim>)
    rotate_append_tokens(const __grid_constant__ RotateAppendParams p) {
    constexpr int pairs = rotary_pairs(HeadDim);
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ __align__(16) T row[HeadDim];  // the token's key, rotated, or value
    uint32_t unit = blockIdx.x;
    const int batch_row = static_cast<int>(p.by_unit.split(unit)), warp = threadIdx.x / 32;
    const int lists = 2 * static_cast<int>(p.append.by_head.value());
    wait_for_previous_grid();
    const int32_t position = p.rotary.positions[batch_row];
    if (static_cast<int>(unit) >= lists) {
        const int first = ((static_cast<int>(unit) - lists) * warps + warp) * heads_of_warp;
        RotaryHead<T, pairs> heads[heads_of_warp];
#pragma unroll
        for (int j = 0; j < heads_of_warp; ++j)
            if (first + j < p.num_heads)
                heads[j].load(p.rotary, p.query.row<const T>(batch_row, first + j, 0),
                              p.query_output.row<T>(batch_row, first + j, 0), static_cast<const T*>(p.query_norm));
        const Turns<pairs> turns(p.rotary, position);
#pragma unroll
        for (int j = 0; j < heads_of_warp; ++j)
            if (first + j < p.num_heads) heads[j].store(p.rotary, turns);
        return;
    }
    const int head = static_cast<int>(unit >> 1), which = static_cast<int>(unit & 1);
    if (which == 0 && warp == 0) {
        RotaryHead<T, pairs> key;
        key.load(p.rotary, p.key.row<const T>(batch_row, head, 0), row, static_cast<const T*>(p.key_norm));
        key.store(p.rotary, Turns<pairs>(p.rotary, position));
    }
    if (which == 1) {
        const T* const value = p.append.fresh[1].row<const T>(batch_row, head, 0);
        for (int c = threadIdx.x; c < HeadDim; c += block_threads) row[c] = value[c];
    }
    AppendedTokens<T> tokens(p.append, batch_row, head, which);
    if (!tokens.exists()) return;
    __syncthreads();
    if (tokens.due <= tokens.before) {
        tokens.fresh = row;
    } else if (which == 0) {
        // Compression reads tokens from global memory.
        T* const output = p.key_output.row<T>(batch_row, head, 0);
        for (int c = threadIdx.x; c < HeadDim; c += block_threads) output[c] = row[c];
        __syncthreads();
        tokens.fresh = output;
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
    const int64_t units = 2 * int64_t{a.num_kv_heads} + divide_up(rope.num_heads, warps * heads_of_warp);
    const RotateAppendParams p{append_params,   Rotary(rope),      rope.query,
                               rope.key,        rope.query_output, rope.key_output,
                               rope.query_norm, rope.key_norm,     Divisor(static_cast<uint32_t>(units)),
                               rope.num_heads};
    dispatch("rotate and append", a.keys.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        static std::atomic<uint64_t> allowed{0};
        const auto kernel = rotate_append_tokens<T, head_dim()>;
        allow_shared_memory(scope, kernel, allowed, 1024 + head_dim() * sizeof(T));
        launch(scope, "rotate and append", kernel,
               LaunchShape{units * a.batch, block_threads, sizeof(typename BlockWriter<T, head_dim()>::Memory), true},
               p);
    });
}

}  // namespace mustafar::cuda
