// Blocks back to dense rows. Grid as in compress.cu.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/compress/block_reader.cuh"
#include "cuda/compress/compress.h"

namespace mustafar::cuda {
namespace {

template <class T, int HeadDim>
__global__ void __launch_bounds__(block_threads)
    decompress_blocks(Blocks source, ValueOrder order, Dense destination, int first, int tokens, int blocks) {
    using Reader = BlockReader<T, HeadDim>;
    extern __shared__ __align__(16) uint8_t memory[];
    auto& tile = *reinterpret_cast<typename Reader::Memory*>(memory);
    const int block = first / block_tokens + static_cast<int>(blockIdx.x % blocks);
    const int head = static_cast<int>(blockIdx.x / blocks % source.heads);
    const int sequence = static_cast<int>(blockIdx.x / blocks / source.heads);
    Reader::read(tile, source, order, sequence, head, block);
    for (int i = threadIdx.x; i < block_tokens * HeadDim; i += block_threads) {
        const int row = i / HeadDim, channel = i % HeadDim, token = block * block_tokens + row - first;
        if (token >= 0 && token < tokens)
            destination.row<T>(sequence, head, token)[channel] = tile.rows[row * Reader::Memory::stride + channel];
    }
}

}  // namespace

void decompress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                const mustafar_blocks& source, const mustafar_dense& destination) {
    if (batch == 0 || heads == 0 || tokens == 0) return;
    const int64_t blocks = divide_up(first + tokens, block_tokens) - first / block_tokens;
    const DeviceScope scope(context);
    dispatch("decompress", source.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        static std::atomic<uint64_t> allowed{0};
        const auto kernel = decompress_blocks<T, head_dim()>;
        allow_shared_memory(scope, kernel, allowed, 1024);
        launch(scope, "decompress", kernel,
               LaunchShape{blocks * heads * batch, block_threads, sizeof(typename BlockReader<T, head_dim()>::Memory)},
               Blocks(source, heads), value_order(source.format), Dense(destination), static_cast<int>(first),
               static_cast<int>(tokens), static_cast<int>(blocks));
    });
}

}  // namespace mustafar::cuda
