// The logits of one sequence as order keys (core/sampling.h), spread over the warps of a cluster. A warp has one piece of the
// vocabulary, in order of ids, and reads it tile by tile.
#pragma once

#include <cstdint>

#include "core/sampling.h"
#include "cuda/step/cluster.cuh"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {

struct SampleParams {
    Rows logits;                               // [batch, vocab_size]
    const mustafar_sampling_options* options;  // [batch]
    int64_t* steps;                            // [batch]
    int32_t* counts;                           // [batch, vocab_size]
    const uint32_t* prompt;                    // [batch, words]
    const uint32_t* allowed;                   // [words], every allowed_stride
    int64_t allowed_stride, words;
    int64_t* tokens;           // [batch]
    float* log_probabilities;  // [batch]
    int32_t vocab_size;
    int32_t cluster;     // thread blocks of a row
    int32_t warp_tiles;  // the most that a warp has
    bool aligned, counts_aligned;
};

// Of a token that does not exist or is not allowed, and of NaN. All other keys are between them.
constexpr uint32_t no_key = 0, nan_key = 0xffffffffu;

// Whether it is the key of a finite logit.
__device__ __forceinline__ bool is_finite_key(uint32_t key) {
    return key > 0x007fffffu && key < 0xff800000u;
}

constexpr int tile_pieces = 32;  // one for each lane
template <class T>
constexpr int tile_tokens = Piece<T>::count* tile_pieces;

// Of a tile's keys in shared memory.
template <class T>
constexpr int tile_key_bytes = 4 * tile_tokens<T>;

// Cached: the keys stay in shared memory once the logits were read; else every visit reads the logits again.
template <class T, bool Cached>
class SampleRow {
public:
    // A lane's tokens of a tile of logits, and of one of keys.
    static constexpr int count = Piece<T>::count, visit_count = Cached ? 4 : count;

    const mustafar_sampling_options options;

    __device__ __forceinline__ SampleRow(const SampleParams& p, int sequence, const Cluster& cluster, uint4* cache)
        : options(p.options[sequence]), logits_(p.logits.row<const T>(sequence)),
          allowed_(p.allowed != nullptr ? p.allowed + sequence * p.allowed_stride : nullptr), vocab_size_(p.vocab_size),
          aligned_(p.aligned), counts_aligned_(p.counts_aligned), lane_(cluster.lane),
          cache_(cache + cluster.warp * p.warp_tiles * (tile_tokens<T> / 4)) {
        // Counts are many bytes, which are not read for nothing.
        if (options.repetition_penalty != 1.0f || options.frequency_penalty != 0.0f ||
            options.presence_penalty != 0.0f) {
            prompt_ = p.prompt != nullptr ? p.prompt + sequence * p.words : nullptr;
            counts_ = p.counts != nullptr ? p.counts + int64_t{sequence} * p.vocab_size : nullptr;
        }
        const int tiles = (vocab_size_ + tile_tokens<T> - 1) / tile_tokens<T>;
        const int warps = cluster.size * row_warps, warp = cluster.rank * row_warps + cluster.warp;
        const int first = warp * tiles / warps;
        tiles_ = (warp + 1) * tiles / warps - first;
        first_token_ = first * tile_tokens<T>;
    }

    __device__ __forceinline__ bool exists(int token) const { return token < vocab_size_; }
    __device__ __forceinline__ float logit(int token) const { return as_float(logits_[token]); }

    // Calls with this lane's first token and its logits for each tile of the warp; lanes stay together.
    template <class Call>
    __device__ __forceinline__ void visit_logits(Call&& call) const {
        int token = first_token_ + lane_ * count;
        Piece<T> next = load(token);
        for (int i = 0; i < tiles_; ++i, token += tile_tokens<T>) {
            const Piece<T> piece = next;
            if (i + 1 < tiles_) next = load(token + tile_tokens<T>);
            call(token, piece, i);
        }
    }

    // The first visit: with the logits as they came and the keys. Where these are cached a lane may read other lanes' later, so
    // a barrier has to follow.
    template <class Call>
    __device__ __forceinline__ void read(Call&& call) const {
        visit_logits([&](int token, const Piece<T>& piece, int tile) {
            uint32_t keys[count];
            find_keys(token, piece, keys);
            if constexpr (Cached) {
                uint4* const place = cache_ + (tile * tile_pieces + lane_) * (count / visit_count);
#pragma unroll
                for (int i = 0; i < count; i += visit_count)
                    place[i / visit_count] = make_uint4(keys[i], keys[i + 1], keys[i + 2], keys[i + 3]);
            }
            call(token, piece, keys);
        });
    }

    // Later ones: with this lane's first token and its keys; lanes stay together and tokens in order.
    template <class Call>
    __device__ __forceinline__ void visit(Call&& call) const {
        if constexpr (Cached) {
            const int vectors = tiles_ * (tile_tokens<T> / visit_count);
            for (int i = lane_; i < vectors; i += 32) {
                const uint4 cached = cache_[i];
                const uint32_t keys[visit_count] = {cached.x, cached.y, cached.z, cached.w};
                call(first_token_ + i * visit_count, keys);
            }
        } else {
            visit_logits([&](int token, const Piece<T>& piece, int) {
                uint32_t keys[count];
                find_keys(token, piece, keys);
                call(token, keys);
            });
        }
    }

    template <class Call>
    __device__ __forceinline__ void each(Call&& call) const {
        visit([&](int, const auto& keys) {
#pragma unroll
            for (int i = 0; i < visit_count; ++i) call(keys[i]);
        });
    }

private:
    static_assert(32 % count == 0, "the bits of a lane's tokens are in one word");

    __device__ __forceinline__ Piece<T> load(int token) const {
        return load_piece(logits_ + token, vocab_size_ - token, aligned_);
    }

    // Bits of the tokens from `token` on.
    __device__ __forceinline__ uint32_t bits_of(const uint32_t* bits, int token, uint32_t without) const {
        return bits != nullptr && exists(token) ? bits[token >> 5] >> (token & 31) : without;
    }

    __device__ __forceinline__ void find_keys(int token, const Piece<T>& piece, uint32_t (&keys)[count]) const {
        const uint32_t allowed = bits_of(allowed_, token, ~0u);
        float scores[count];
#pragma unroll
        for (int i = 0; i < count; ++i) scores[i] = as_float(piece.values[i]);
        if (prompt_ != nullptr || counts_ != nullptr) penalise(token, scores);
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const uint32_t key = isnan(scores[i]) ? nan_key : sampling::order_key(scores[i]);
            keys[i] = exists(token + i) && (allowed >> i & 1) != 0 ? key : no_key;
        }
    }

    __device__ __forceinline__ void penalise(int token, float (&scores)[count]) const {
        const uint32_t in_prompt = bits_of(prompt_, token, 0);
#pragma unroll
        for (int i = 0; i < count; i += Piece<int32_t>::count) {
            Piece<int32_t> chosen{};
            if (counts_ != nullptr) chosen = load_piece(counts_ + token + i, vocab_size_ - token - i, counts_aligned_);
#pragma unroll
            for (int j = 0; j < Piece<int32_t>::count; ++j)
                scores[i + j] =
                    sampling::penalised(scores[i + j], chosen.values[j], (in_prompt >> (i + j) & 1) != 0, options);
        }
    }

    const T* logits_;
    const uint32_t *allowed_, *prompt_ = nullptr;
    const int32_t* counts_ = nullptr;
    int32_t vocab_size_;
    bool aligned_, counts_aligned_;
    int lane_;
    uint4* cache_;             // of the warp
    int tiles_, first_token_;  // of the warp
};

}  // namespace mustafar::cuda
