// Blocks from one order to another. Grid as in compress.cu.
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/compress/block_contents.cuh"
#include "cuda/compress/block_writer.cuh"
#include "cuda/compress/compress.h"

namespace mustafar::cuda {
namespace {

template <class T, int HeadDim>
__global__ void __launch_bounds__(block_threads)
    convert_blocks(Blocks source, ValueOrder from, Blocks destination, ValueOrder to, int tokens, int blocks) {
    using Writer = BlockWriter<T, HeadDim>;
    extern __shared__ __align__(16) uint8_t memory[];
    auto& image = *reinterpret_cast<typename Writer::Memory*>(memory);
    const int block = static_cast<int>(blockIdx.x % blocks);
    const int head = static_cast<int>(blockIdx.x / blocks % source.heads);
    const int sequence = static_cast<int>(blockIdx.x / blocks / source.heads);
    const BlockContents<HeadDim> contents(source, from, sequence, head, block);
    Writer writer(image);
    contents.load_bits(image.layout);
    writer.clear();
    __syncthreads();
    // Positions say which channels there are as they are read.
    const bool marks = from.arrangement == Arrangement::balanced;
    const auto place = [&](int token, int channel, auto value) {
        if (marks) atomicOr(&image.layout.bits[token][channel / 32], 1u << channel % 32);
        writer.put(token, channel, value, from.integer_bits);
    };
    if (from.integer_bits != 0)
        contents.integers(image.layout, place);
    else
        contents.template natives<T>(image.layout, place);
    __syncthreads();
    writer.end_at(tokens - block * block_tokens);
    uint32_t bytes;
    uint8_t* const target = destination.any(sequence, head, block, contents.header, bytes);
    if (from.integer_bits != 0)
        writer.store_integers(target, to, destination.keep, [&](int token) { return contents.scale(token); });
    else
        writer.store(target, to, block_tokens * destination.keep);
}

}  // namespace

void convert(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
             const mustafar_blocks& source, const mustafar_blocks& destination) {
    const int64_t blocks = divide_up(tokens, block_tokens);
    if (batch == 0 || heads == 0 || tokens == 0) return;
    const DeviceScope scope(context);
    dispatch("convert", source.format, [&](auto type, auto head_dim) {
        using T = typename decltype(type)::type;
        static std::atomic<uint64_t> allowed{0};
        const auto kernel = convert_blocks<T, head_dim()>;
        allow_shared_memory(scope, kernel, allowed, 1024);
        launch(scope, "convert", kernel,
               LaunchShape{blocks * heads * batch, block_threads, sizeof(typename BlockWriter<T, head_dim()>::Memory)},
               Blocks(source, heads), value_order(source.format), Blocks(destination, heads),
               value_order(destination.format), static_cast<int>(tokens), static_cast<int>(blocks));
    });
}

}  // namespace mustafar::cuda
