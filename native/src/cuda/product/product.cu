// The two sparse products, apart: for looking at scores and for other forms of attention. The fused kernels do not use
// them. Blocks are expanded in shared memory, 128 threads each.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/compress/block_reader.cuh"
#include "cuda/compress/key_factors.cuh"
#include "cuda/product/product.h"

namespace mustafar::cuda {
namespace {

struct ProductParams {
    Blocks blocks;
    ValueOrder order;
    Dense dense, weights;
    const float* key_factors;
    int32_t num_kv_heads, group, num_queries, tokens;
    float scale;
};

// Grid: x = blocks fastest, then KV heads, then sequences.
// Row: the type of the blocks' values when they are read, that of the tensors or, of integers, float.
template <class T, class Row, int HeadDim>
__global__ void __launch_bounds__(block_threads) key_scores_block(const __grid_constant__ ProductParams p, int blocks) {
    using Reader = BlockReader<Row, HeadDim>;
    extern __shared__ __align__(16) uint8_t memory[];
    auto& tile = *reinterpret_cast<typename Reader::Memory*>(memory);
    const int block = static_cast<int>(blockIdx.x % blocks);
    const int kv_head = static_cast<int>(blockIdx.x / blocks % p.num_kv_heads);
    const int sequence = static_cast<int>(blockIdx.x / blocks / p.num_kv_heads);
    Reader::read(tile, p.blocks, p.order, sequence, kv_head, block);
    const float* const factors = factors_of<HeadDim>(p.key_factors, sequence, p.num_kv_heads, kv_head);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, token = block * block_tokens + lane;
    for (int row = warp; row < p.group * p.num_queries; row += block_threads / 32) {
        const int head = kv_head * p.group + row / p.num_queries, query = row % p.num_queries;
        const T* const vector = p.dense.row<const T>(sequence, head, query);
        float sum = 0.0f, poison = 0.0f;  // NaN if a channel of the query isn't finite
        for (int c = 0; c < HeadDim; ++c) {
            const float q = as_float(vector[c]);
            poison = fmaf(q, 0.0f, poison);
            sum = fmaf(factors == nullptr ? q : q * factors[c], as_float(tile.rows[lane * Reader::Memory::stride + c]),
                       sum);
        }
        if (token < p.tokens)
            p.weights.row<float>(sequence, head, query)[token] =
                (p.order.integer_bits != 0 ? sum + poison : sum) * p.scale;
    }
}

// Grid: x = query rows of a KV head, four to a block, fastest, then KV heads, then sequences.
template <class T, class Row, int HeadDim>
__global__ void __launch_bounds__(block_threads)
    value_sum_rows(const __grid_constant__ ProductParams p, int row_blocks) {
    using Reader = BlockReader<Row, HeadDim>;
    constexpr int own_channels = (HeadDim + 31) / 32;
    extern __shared__ __align__(16) uint8_t memory[];
    auto& tile = *reinterpret_cast<typename Reader::Memory*>(memory);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int row = static_cast<int>(blockIdx.x % row_blocks) * (block_threads / 32) + warp;
    const int kv_head = static_cast<int>(blockIdx.x / row_blocks % p.num_kv_heads);
    const int sequence = static_cast<int>(blockIdx.x / row_blocks / p.num_kv_heads);
    const bool present = row < p.group * p.num_queries;
    const int head = kv_head * p.group + row / p.num_queries, query = row % p.num_queries;
    const float* const weights = present ? p.weights.row<const float>(sequence, head, query) : nullptr;
    float sum[own_channels] = {};
    for (int block = 0; block * block_tokens < p.tokens; ++block) {
        Reader::read(tile, p.blocks, p.order, sequence, kv_head, block);
        if (!present) continue;
        const int token = block * block_tokens + lane;
        const float own = token < p.tokens ? weights[token] : 0.0f;
        const int count = min(block_tokens, p.tokens - block * block_tokens);
        for (int i = 0; i < count; ++i) {
            const float weight = __shfl_sync(full_warp, own, i);
#pragma unroll
            for (int j = 0; j < own_channels; ++j)
                if (32 * j + lane < HeadDim)
                    sum[j] = fmaf(weight, as_float(tile.rows[i * Reader::Memory::stride + 32 * j + lane]), sum[j]);
        }
    }
    if (!present) return;
    T* const output = p.dense.row<T>(sequence, head, query);
#pragma unroll
    for (int j = 0; j < own_channels; ++j)
        if (32 * j + lane < HeadDim) output[32 * j + lane] = static_cast<T>(sum[j] * p.scale);
}

ProductParams parameters(const mustafar_product& product, bool keys) {
    ProductParams p{};
    p.blocks = Blocks(product.blocks, product.num_kv_heads);
    p.order = value_order(product.blocks.format, keys);
    p.dense = product.dense;
    p.weights = product.weights;
    p.key_factors = product.key_factors;
    p.num_kv_heads = product.num_kv_heads;
    p.group = product.num_heads / product.num_kv_heads;
    p.num_queries = product.num_queries;
    p.tokens = static_cast<int32_t>(product.tokens);
    p.scale = product.scale;
    return p;
}

}  // namespace

void key_scores(const mustafar_context& context, const mustafar_product& product) {
    if (product.batch == 0 || product.num_queries == 0 || product.tokens == 0) return;
    const DeviceScope scope(context);
    const ProductParams p = parameters(product, true);
    const int64_t blocks = divide_up(product.tokens, block_tokens);
    dispatch("key scores", product.blocks.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        const auto run = [&](auto row) {
            using Row = typename decltype(row)::type;
            static std::atomic<uint64_t> allowed{0};
            const auto kernel = key_scores_block<T, Row, head_dim()>;
            allow_shared_memory(scope, kernel, allowed, 1024);
            launch(scope, "key scores", kernel,
                   LaunchShape{blocks * product.num_kv_heads * product.batch, block_threads,
                               sizeof(typename BlockReader<Row, head_dim()>::Memory)},
                   p, static_cast<int>(blocks));
        };
        if constexpr (sizeof(T) == 2)
            if (p.order.integer_bits != 0) return run(Type<float>{});
        run(Type<T>{});
    });
}

void value_sum(const mustafar_context& context, const mustafar_product& product) {
    if (product.batch == 0 || product.num_queries == 0) return;
    const DeviceScope scope(context);
    const ProductParams p = parameters(product, false);
    const int64_t row_blocks = divide_up(int64_t{p.group} * p.num_queries, block_threads / 32);
    dispatch("value sum", product.blocks.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        const auto run = [&](auto row) {
            using Row = typename decltype(row)::type;
            static std::atomic<uint64_t> allowed{0};
            const auto kernel = value_sum_rows<T, Row, head_dim()>;
            allow_shared_memory(scope, kernel, allowed, 1024);
            launch(scope, "value sum", kernel,
                   LaunchShape{row_blocks * product.num_kv_heads * product.batch, block_threads,
                               sizeof(typename BlockReader<Row, head_dim()>::Memory)},
                   p, static_cast<int>(row_blocks));
        };
        if constexpr (sizeof(T) == 2)
            if (p.order.integer_bits != 0) return run(Type<float>{});
        run(Type<T>{});
    });
}

}  // namespace mustafar::cuda
