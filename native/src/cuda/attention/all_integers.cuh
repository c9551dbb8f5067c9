// Keys and values of integers with all channels kept: dense products, for IntegerDecoder.
#pragma once

#include "cuda/attention/integer_operands.cuh"
#include "cuda/attention/query.cuh"

namespace mustafar::cuda {

template <int HeadDim>
struct AllIntegerRows : QuarterRows<HeadDim> {
    using QuarterRows<HeadDim>::part_words;

    static __device__ __forceinline__ uint2 query_fragment(const uint32_t (&row)[part_words], int step, int) {
        return {row[2 * step], row[2 * step + 1]};
    }
};

template <int HeadDim>
struct AllIntegerKeys {
    using Rows = AllIntegerRows<HeadDim>;

    template <int Bits, int Tiles>
    static __device__ __forceinline__ void multiply(uint32_t block, int lane,
                                                    const QueryFragments<Rows::steps, Tiles>& query,
                                                    float (&score)[Tiles][2][4]) {
        for_each_operand<IntegerGeometry<HeadDim, Bits>>(block, lane, [&](int operand, const uint32_t(&a)[4]) {
#pragma unroll
            for (int n = 0; n < Tiles; ++n) {
                const uint2 q = query(n, operand % Rows::steps);
                mma_16816<__half>(score[n][operand / Rows::steps], a[0], a[1], a[2], a[3], q.x, q.y);
            }
        });
    }
};

template <int HeadDim>
struct AllIntegerValues {
    template <int Bits, int Tiles>
    static __device__ __forceinline__ void multiply(uint32_t block, int lane, const uint32_t (&probability)[Tiles][4],
                                                    float (&accumulator)[Tiles][HeadDim / 16][4]) {
        for_each_operand<IntegerGeometry<HeadDim, Bits>>(block, lane, [&](int operand, const uint32_t(&a)[4]) {
            const int k = operand & 1;
#pragma unroll
            for (int n = 0; n < Tiles; ++n)
                mma_16816<__half>(accumulator[n][operand >> 1], a[0], a[1], a[2], a[3], probability[n][2 * k],
                                  probability[n][2 * k + 1]);
        });
    }
};

}  // namespace mustafar::cuda
