// Blocks back to dense rows. Grid as in compress.cu.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/compress/block_reader.cuh"
#include "cuda/compress/compress.h"
#include "cuda/compress/key_factors.cuh"

namespace mustafar::cuda {
namespace {

// Native values are there as they were. factors: of integers, or null.
template <class T, class Row>
__device__ __forceinline__ T restored(Row value, const float* factors, int channel) {
    if constexpr (sizeof(Row) == 2)
        return value;
    else
        return rounded_to<T>(factors == nullptr ? value : value * factors[channel]);
}

// Row: the type of the block's values when they are read, that of the tensor or, of integers, float.
template <class T, class Row, int HeadDim>
__global__ void __launch_bounds__(block_threads)
    decompress_blocks(Blocks source, ValueOrder order, const float* factors, Dense destination, int first, int tokens,
                      int blocks) {
    using Reader = BlockReader<Row, HeadDim>;
    extern __shared__ __align__(16) uint8_t memory[];
    auto& tile = *reinterpret_cast<typename Reader::Memory*>(memory);
    const int block = first / block_tokens + static_cast<int>(blockIdx.x % blocks);
    const int head = static_cast<int>(blockIdx.x / blocks % source.heads);
    const int sequence = static_cast<int>(blockIdx.x / blocks / source.heads);
    Reader::read(tile, source, order, sequence, head, block);
    const float* const own_factors = factors_of<HeadDim>(factors, sequence, source.heads, head);
    for (int i = threadIdx.x; i < block_tokens * HeadDim; i += block_threads) {
        const int row = i / HeadDim, channel = i % HeadDim, token = block * block_tokens + row - first;
        if (token >= 0 && token < tokens)
            destination.row<T>(sequence, head, token)[channel] =
                restored<T, Row>(tile.rows[row * Reader::Memory::stride + channel], own_factors, channel);
    }
}

}  // namespace

void decompress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                const mustafar_blocks& source, const float* key_factors, const mustafar_dense& destination) {
    if (batch == 0 || heads == 0 || tokens == 0) return;
    const int64_t blocks = divide_up(first + tokens, block_tokens) - first / block_tokens;
    const DeviceScope scope(context);
    const ValueOrder order = value_order(source.format);
    dispatch("decompress", source.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        const auto run = [&](auto row) {
            using Row = typename decltype(row)::type;
            static std::atomic<uint64_t> allowed{0};
            const auto kernel = decompress_blocks<T, Row, head_dim()>;
            allow_shared_memory(scope, kernel, allowed, 1024);
            launch(scope, "decompress", kernel,
                   LaunchShape{blocks * heads * batch, block_threads,
                               sizeof(typename BlockReader<Row, head_dim()>::Memory)},
                   Blocks(source, heads), order, key_factors, Dense(destination), static_cast<int>(first),
                   static_cast<int>(tokens), static_cast<int>(blocks));
        };
        if constexpr (sizeof(T) == 2)
            if (order.integer_bits != 0) return run(Type<float>{});
        run(Type<T>{});
    });
}

}  // namespace mustafar::cuda
