#include <cmath>

#include "core/error.h"
#include "cpu/parallel.h"
#include "cpu/step/step.h"
#include "cpu/step/values.h"

namespace mustafar {
namespace {

constexpr int max_pairs = 256;

class Rotation {
public:
    Rotation(const mustafar_rope& rope, int32_t sequence, int32_t token) : rope_(rope), b_(sequence), t_(token) {
        const int32_t position = rope.positions[int64_t{sequence} * rope.num_tokens + token];
        const int pairs = rope.rotary_dim / 2;
        if (position < 0 || (rope.inv_freq == nullptr && position >= rope.table_positions))
            fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "positions: expected 0 ... %lld at token %d of sequence %d, got %d",
                 rope.inv_freq != nullptr ? 0x7fffffffLL : static_cast<long long>(rope.table_positions - 1), token,
                 sequence, position);
        for (int i = 0; i < pairs; ++i) {
            const double angle = rope.inv_freq != nullptr ? position * rope.inv_freq[i] : 0.0;
            const int64_t at = int64_t{position} * pairs + i;
            cos_[i] = rope.attention_scaling * (rope.inv_freq ? static_cast<float>(std::cos(angle)) : rope.cosines[at]);
            sin_[i] = rope.attention_scaling * (rope.inv_freq ? static_cast<float>(std::sin(angle)) : rope.sines[at]);
        }
    }

    template <class T>
    void heads(const mustafar_dense& source, const mustafar_dense& target, const void* norm, int32_t count) const {
        const int pairs = rope_.rotary_dim / 2;
        float x[2 * max_pairs] = {};
        for (int32_t head = 0; head < count; ++head) {
            const auto* in = row<T>(source, head);
            for (int c = 0; c < rope_.head_dim; ++c) x[c] = T::load(in[c]);
            if (norm != nullptr) {
                const float factor = norm_factor(x, rope_.head_dim, rope_.eps);
                for (int c = 0; c < rope_.head_dim; ++c) x[c] *= factor * T::load(elements<T>(norm)[c]);
            }
            auto* out = row<T>(target, head);
            for (int i = 0; i < pairs; ++i) {
                out[i] = T::store(x[i] * cos_[i] - x[i + pairs] * sin_[i]);
                out[i + pairs] = T::store(x[i + pairs] * cos_[i] + x[i] * sin_[i]);
            }
            for (int c = 2 * pairs; c < rope_.head_dim; ++c) out[c] = T::store(x[c]);
        }
    }

    template <class T>
    void copy(const mustafar_dense& source, const mustafar_dense& target, int32_t count) const {
        for (int32_t head = 0; head < count; ++head)
            std::memmove(row<T>(target, head), row<T>(source, head),
                         static_cast<size_t>(rope_.head_dim) * sizeof(typename T::Bits));
    }

private:
    template <class T>
    typename T::Bits* row(const mustafar_dense& dense, int32_t head) const {
        return static_cast<typename T::Bits*>(dense.data) + b_ * dense.batch_stride + head * dense.head_stride +
               t_ * dense.token_stride;
    }

    const mustafar_rope& rope_;
    int64_t b_, t_;
    float cos_[max_pairs], sin_[max_pairs];
};

}  // namespace

void rotate(const mustafar_context& context, const mustafar_rope& rope) {
    const int64_t items = int64_t{rope.batch} * rope.num_tokens;
    with_dtype(rope.dtype, [&](auto type) {
        using T = decltype(type);
        parallel_for(thread_count(context.num_threads, items), items, [&](int64_t item, int) {
            const Rotation rotation(rope, static_cast<int32_t>(item / rope.num_tokens),
                                    static_cast<int32_t>(item % rope.num_tokens));
            rotation.heads<T>(rope.query, rope.query_output, rope.query_norm, rope.num_heads);
            rotation.heads<T>(rope.key, rope.key_output, rope.key_norm, rope.num_kv_heads);
            if (rope.value.data != nullptr) rotation.copy<T>(rope.value, rope.value_output, rope.num_kv_heads);
        });
    });
}

}  // namespace mustafar
