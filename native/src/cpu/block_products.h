// Products with the tokens of blocks, whatever their format: the one place that knows how each is multiplied. Keys and
// values have one each, so that any two formats go together.
#pragma once

#include "cpu/block_reader.h"
#include "cpu/kernels.h"

namespace mustafar {

class BlockProducts {
public:
    BlockProducts(int32_t cpu_variant, const mustafar_format& format)
        : format_(format), kernels_(kernels(cpu_variant, format)), f32_(f32_kernels(cpu_variant, format)) {}

    // Whether queries are prepared as for dense tokens of the same dtype.
    bool prepares_as_dense() const { return !has_integers(format_); }
    // A query row, times factors if there are any, in the form that scores read: a padded row of floats.
    void prepare_query(const void* row, const float* factors, float* prepared) const;

    // Tokens first ... first + tokens - 1 of a block; else as Kernels.
    void scores(const Block& block, int first, int tokens, const float* prepared, int rows, float* scores,
                int64_t stride) const;
    void sum(const Block& block, int first, int tokens, const float* weights, int64_t stride, int rows,
             float* sums) const;

private:
    static const Kernels& f32_kernels(int32_t cpu_variant, mustafar_format format) {
        format.dtype = MUSTAFAR_DTYPE_F32;
        return kernels(cpu_variant, format);
    }
    TokenRun run(const Block& block, int first, int tokens) const;

    const mustafar_format& format_;
    const Kernels& kernels_;  // of the dtype
    const Kernels& f32_;      // for integers, which are multiplied in f32
};

}  // namespace mustafar
