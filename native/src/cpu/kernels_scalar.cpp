// Portable kernels: the reference for the other variants, and the ones for any other CPU.
#include <cmath>
#include <limits>

#include "cpu/balanced.h"
#include "cpu/kernel_tables.h"
#include "cpu/kernels.h"
#include "cpu/row.h"
#include "cpu/select.h"

namespace mustafar {
namespace {

template <class T, int W, bool Packed>
class Reader {
public:
    explicit Reader(const TokenRun& run) : run_(run), next_(static_cast<const char*>(run.data)) {}

    // The next token's channels, padded with zeros.
    void read(int token, float* channels) {
        typename T::Bits bits[32 * W];
        if constexpr (Packed) {
            next_ += unpack_row<T, W>(next_, run_.bitmap + token * W, run_.head_dim, bits) *
                     static_cast<int64_t>(sizeof(typename T::Bits));
        } else {
            std::memcpy(bits, next_, static_cast<size_t>(run_.head_dim) * sizeof(typename T::Bits));
            next_ += run_.row_bytes;
        }
        for (int c = 0; c < 32 * W; ++c) channels[c] = c < run_.head_dim ? T::load(bits[c]) : 0.0f;
    }

private:
    const TokenRun& run_;
    const char* next_;
};

template <class T, int W, bool Packed>
void scores(const TokenRun& run, const void* prepared, int rows, float* scores, int64_t stride) {
    const float* query = static_cast<const float*>(prepared);
    Reader<T, W, Packed> reader(run);
    float channels[32 * W];
    for (int t = 0; t < run.tokens; ++t) {
        reader.read(t, channels);
        for (int r = 0; r < rows; ++r) {
            float sum = 0.0f;
            for (int c = 0; c < 32 * W; ++c) sum += query[r * 32 * W + c] * channels[c];
            scores[r * stride + t] = sum;
        }
    }
}

template <class T, int W, bool Packed>
void sum(const TokenRun& run, const float* weights, int64_t stride, int rows, float* sums) {
    Reader<T, W, Packed> reader(run);
    float channels[32 * W];
    for (int t = 0; t < run.tokens; ++t) {
        reader.read(t, channels);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < 32 * W; ++c) sums[r * 32 * W + c] += weights[r * stride + t] * channels[c];
    }
}

float softmax(float* scores, int count, float scale, float* maximum, float* sum) {
    float highest = *maximum;
    for (int i = 0; i < count; ++i) {
        scores[i] *= scale;
        if (highest < scores[i]) highest = scores[i];  // a NaN shows in the sum instead
    }
    const float factor = highest == *maximum ? 1.0f : std::exp2(*maximum - highest);
    float total = 0.0f;
    for (int i = 0; i < count; ++i) {
        scores[i] = scores[i] == -std::numeric_limits<float>::infinity() ? 0.0f : std::exp2(scores[i] - highest);
        total += scores[i];
    }
    *maximum = highest;
    *sum = *sum * factor + total;
    return factor;
}

struct Tables {
    template <class T, int W>
    static constexpr Kernels of = {
        .select = select_rows<T, W>,
        .balance_keys = balance<T, true>,
        .balance_values = balance<T, false>,
        .pack = pack_row<T, W>,
        .unpack = unpack_row<T, W>,
        .count = count_bits<W>,
        .prepare_query = prepare_f32<T, W>,
        .packed_scores = scores<T, W, true>,
        .dense_scores = scores<T, W, false>,
        .packed_sum = sum<T, W, true>,
        .dense_sum = sum<T, W, false>,
        .finish = finish_row<T>,
        .softmax = softmax,
        .rescale = rescale_row,
    };
};

}  // namespace

const Kernels& scalar_kernels(int32_t dtype, int words) {
    return table_for<Tables>(dtype, words);
}

}  // namespace mustafar
