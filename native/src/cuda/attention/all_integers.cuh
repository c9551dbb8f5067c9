// Keys and values of integers with all channels kept: dense products, for IntegerDecoder.
#pragma once

#include "cuda/attention/integer_decoder.cuh"

namespace mustafar::cuda {

// Dense rows, and queries among them: lane 4g + t has the channels D/4 t ....
template <int HeadDim>
struct QuarterRows {
    static constexpr int head_dim = HeadDim;
    static constexpr int part_words = HeadDim / 8;
    static constexpr int steps = HeadDim / 16;

    // First channel of word `word` of a lane's part.
    static constexpr int part_channel(int t, int word) { return 2 * (part_words * t + word); }

    template <class E>
    static __device__ __forceinline__ void load_part(uint32_t (&part)[part_words], const E* row, int t, bool aligned) {
        load_row(part, row + part_channel(t, 0), aligned);
    }
    static __device__ __forceinline__ uint2 query_fragment(const uint32_t (&row)[part_words], int step, int) {
        return {row[2 * step], row[2 * step + 1]};
    }
};

template <int HeadDim, int Bits>
struct AllIntegerKeys {
    using Geometry = IntegerGeometry<HeadDim, Bits>;
    using Rows = QuarterRows<HeadDim>;

    template <int Tiles>
    static __device__ __forceinline__ void multiply(uint32_t block, int lane,
                                                    const QueryFragments<Rows::steps, Tiles>& query,
                                                    float (&score)[Tiles][2][4]) {
        for_each_operand<Geometry>(block, lane, [&](int operand, const uint32_t(&a)[4]) {
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
                const uint2 q = query(n, operand % Rows::steps);
                mma_16816<__half>(score[n][operand / Rows::steps], a[0], a[1], a[2], a[3], q.x, q.y);
            }
        });
    }
};

template <int HeadDim, int Bits>
struct AllIntegerValues {
    using Geometry = IntegerGeometry<HeadDim, Bits>;

    template <int Tiles>
    static __device__ __forceinline__ void multiply(uint32_t block, int lane, const uint32_t (&probability)[Tiles][4],
                                                    float (&accumulator)[Tiles][HeadDim / 16][4]) {
        for_each_operand<Geometry>(block, lane, [&](int operand, const uint32_t(&a)[4]) {
            const int k = operand & 1;
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
                mma_16816<__half>(accumulator[n][operand >> 1], a[0], a[1], a[2], a[3], probability[n][2 * k],
                                  probability[n][2 * k + 1]);
        });
    }
};

template <int HeadDim, int Bits>
using AllIntegerDecoder = IntegerDecoder<AllIntegerKeys<HeadDim, Bits>, AllIntegerValues<HeadDim, Bits>>;

}  // namespace mustafar::cuda
