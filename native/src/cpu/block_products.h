// Products with the tokens of blocks, whatever their format: the only place that knows how each is multiplied. Keys and
// values have one each, so that any two formats can be combined.
#pragma once

#include "cpu/block_reader.h"
#include "cpu/kernels.h"
#include "cpu/quads.h"

namespace mustafar {

class BlockProducts {
public:
    enum class Role { keys, values };
    BlockProducts(int32_t cpu_variant, const mustafar_format& format, Role role);

    // Floats of a query row that is prepared differently than for dense tokens of the same dtype; otherwise 0.
    int64_t query_floats() const;
    // A query row, times factors if there are any, in the form that scores read.
    void prepare_query(const void* row, const float* factors, float* prepared) const;

    // Tokens begin ... end - 1 of one KV head, all in blocks; else as Kernels. next: what will be read after them.
    void scores(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next,
                const float* prepared, int rows, float* scores, int64_t stride) const;
    void sum(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next, const float* weights,
             int64_t stride, int rows, float* sums) const;

private:
    // For copies of values in another order, and of scales with those of empty tokens set to zero.
    struct Room {
        alignas(64) char values[QuadBlocks::room_bytes];
        uint16_t scales[QuadBlocks::most][block_tokens];
    };
    // As many of `count` blocks from the first on as are multiplied at once.
    QuadBlocks quad_blocks(const BlockReader& reader, int64_t first, int64_t count, const UpcomingBlocks& next,
                           Room& room) const;
    void quad_scores(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next,
                     const float* prepared, int rows, float* scores, int64_t stride) const;
    void quad_sum(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next,
                  const float* weights, int64_t stride, int rows, float* sums) const;
    void f32_sum(const BlockReader& reader, int64_t begin, int64_t end, const float* weights, int64_t stride, int rows,
                 float* sums) const;
    TokenRun run(const Block& block, int first, int tokens) const;

    const mustafar_format& format_;
    int32_t order_;             // quad order in which blocks are multiplied
    const Kernels& kernels_;    // of the dtype
    const Kernels& f32_;        // for integers that quads_ does not support, which are multiplied in f32
    const QuadKernels* quads_;  // for integers; null if the variant has none
};

}  // namespace mustafar
