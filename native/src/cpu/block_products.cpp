#include "cpu/block_products.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/hadamard.h"
#include "cpu/dense_row.h"
#include "cpu/integers.h"

namespace mustafar {
namespace {

const Kernels& f32_kernels(int32_t cpu_variant, mustafar_format format) {
    format.dtype = MUSTAFAR_DTYPE_F32;
    return kernels(cpu_variant, format);
}

// Tokens of integers, in f32.
class Dequantized {
public:
    Dequantized(const Block& block, const mustafar_format& format, int first, int tokens) {
        dequantize(block, format, first, tokens, rows_, format.head_dim);
        run_ = TokenRun{.data = rows_,
                        .bitmap = nullptr,
                        .row_bytes = int64_t{format.head_dim} * int{sizeof(float)},
                        .head_dim = format.head_dim,
                        .tokens = tokens};
    }
    const TokenRun& run() const { return run_; }

private:
    alignas(64) float rows_[block_tokens * max_head_dim];
    TokenRun run_;
};

template <int HeadDim>
struct AllChannels {
    uint32_t words[block_tokens * bitmap_words(HeadDim)];

    constexpr AllChannels() : words() {
        constexpr int row = bitmap_words(HeadDim), last = HeadDim - 32 * (row - 1);
        for (int i = 0; i < block_tokens * row; ++i) words[i] = i % row == row - 1 ? ~0u >> (32 - last) : ~0u;
    }
};
constexpr AllChannels<80> all_of_80;
constexpr AllChannels<max_head_dim> all_of_any;

// The bitmap of a block that has none. Of the head_dims, only 80 fills a word partly.
const uint32_t* all_channels(int head_dim) {
    return head_dim == 80 ? all_of_80.words : all_of_any.words;
}

// Calls work(block, first, tokens, offset from begin) for the part of each block that lies in begin ... end - 1.
template <class Work>
void for_block_parts(int64_t begin, int64_t end, const Work& work) {
    for (int64_t token = begin; token < end;) {
        const int first = static_cast<int>(token % block_tokens);
        const int tokens = static_cast<int>(std::min<int64_t>(block_tokens - first, end - token));
        work(token / block_tokens, first, tokens, token - begin);
        token += tokens;
    }
}

}  // namespace

BlockProducts::BlockProducts(int32_t cpu_variant, const mustafar_format& format, Role role)
    : format_(format), order_(role == Role::keys ? MUSTAFAR_ORDER_KEY_QUADS : MUSTAFAR_ORDER_VALUE_QUADS),
      kernels_(kernels(cpu_variant, format)), f32_(f32_kernels(cpu_variant, format)),
      quads_(has_integers(format) ? quad_kernels(cpu_variant) : nullptr) {}

int64_t BlockProducts::query_floats() const {
    if (!has_integers(format_)) return 0;
    const int64_t bytes =
        quads_ != nullptr ? quads_->query_bytes(format_.head_dim) : 128 * bitmap_words(format_.head_dim);
    return divide_up(bytes, 64) * 16;
}

void BlockProducts::prepare_query(const void* row, const float* factors, float* prepared) const {
    if (!has_integers(format_)) return kernels_.prepare_query(row, format_.head_dim, prepared);
    float query[max_head_dim];
    widen_row(format_.dtype, row, format_.head_dim, query);
    const bool finite = std::all_of(query, query + format_.head_dim, [](float x) { return std::isfinite(x); });
    for (int c = 0; c < format_.head_dim; ++c)
        query[c] = !finite              ? std::numeric_limits<float>::quiet_NaN()
                   : factors != nullptr ? query[c] * factors[c]
                                        : query[c];
    if (is_rotated(format_)) hadamard(query, format_.head_dim);
    if (quads_ != nullptr)
        quads_->prepare_query(query, format_.head_dim, format_.dtype == MUSTAFAR_DTYPE_F32, prepared);
    else
        f32_.prepare_query(query, format_.head_dim, prepared);
}

// Native values: packed behind a bitmap, or rows as in a dense tensor.
TokenRun BlockProducts::run(const Block& block, int first, int tokens) const {
    const int element = element_bytes(format_.dtype);
    const bool packed = block.bitmap != nullptr;
    const int64_t skipped = packed ? kernels_.count(block.bitmap, first) : int64_t{first} * format_.head_dim;
    return TokenRun{.data = block.values + skipped * element,
                    .bitmap = packed ? block.bitmap + first * bitmap_words(format_.head_dim) : nullptr,
                    .row_bytes = packed ? 0 : int64_t{format_.head_dim} * element,
                    .head_dim = format_.head_dim,
                    .tokens = tokens};
}

QuadBlocks BlockProducts::quad_blocks(const BlockReader& reader, int64_t first, int64_t count,
                                      const UpcomingBlocks& next, Room& room) const {
    const int words = bitmap_words(format_.head_dim);
    const bool quads = has_quads_order(format_), reordered = quads && format_.order != order_;
    // A token without kept channels, which these formats allow, is all zeros whatever its scale.
    const bool may_be_empty = !keeps_all(format_) && (format_.pattern != MUSTAFAR_PATTERN_UNSTRUCTURED ||
                                                      format_.layout != MUSTAFAR_LAYOUT_FIXED);
    QuadBlocks blocks;
    blocks.packed = !quads;
    blocks.bits = reordered ? 8 : value_bits(format_);
    blocks.head_dim = format_.head_dim;
    blocks.room = room.values;
    const int most_expanded = QuadBlocks::most_expanded(format_.head_dim);
    blocks.count = static_cast<int>(std::min<int64_t>(count, quads && !reordered ? QuadBlocks::most : most_expanded));
    for (int i = 0; i < blocks.count; ++i) {
        Block& block = blocks.blocks[i];
        block = reader.read(first + i, block_tokens, kernels_);
        if (reordered) {
            char* const expanded = room.values + i * QuadBlocks::expanded_bytes(format_.head_dim);
            expand_integers(block, format_, order_, expanded);
            block.begin = block.values = expanded;
        }
        if (may_be_empty) {
            for (int t = 0; t < block_tokens; ++t) {
                uint32_t kept = 0;
                for (int w = 0; w < words; ++w) kept |= block.bitmap[t * words + w];
                room.scales[i][t] = kept == 0 ? uint16_t{0} : block.scales[t];
            }
            block.scales = room.scales[i];
        }
        if (blocks.packed && block.bitmap == nullptr) block.bitmap = all_channels(format_.head_dim);
    }
    // 12 KB ahead, and at least two blocks, as sums read pairs of them: half of that was too little for memory, and of 8-bit values a third
    // more was too much for the first-level cache. Of packed blocks as many as are checked at once, so that the bitmaps of all of them are
    // in the cache.
    const int distance =
        blocks.packed ? most_expanded : std::max(2, 3 * 4096 / (block_tokens * blocks.head_dim * blocks.bits / 8));
    for (int i = 0; i < blocks.count; ++i) {
        const int64_t later = i + distance, beyond = next.first + later - count;
        blocks.ahead[i] = later < blocks.count ? blocks.blocks[later].begin
                          : later < count      ? reader.locate(first + later).begin
                          : beyond < next.end  ? next.reader->locate(beyond).begin
                                               : blocks.blocks[i].begin;
    }
    return blocks;
}

void BlockProducts::scores(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next,
                           const float* prepared, int rows, float* scores, int64_t stride) const {
    if (quads_ != nullptr) return quad_scores(reader, begin, end, next, prepared, rows, scores, stride);
    for_block_parts(begin, end, [&](int64_t index, int first, int tokens, int64_t offset) {
        const Block block = reader.read(index, first + tokens, kernels_);
        if (has_integers(format_)) {
            const Dequantized dense(block, format_, first, tokens);
            return f32_.dense_scores(dense.run(), prepared, rows, scores + offset, stride);
        }
        const TokenRun part = run(block, first, tokens);
        (keeps_all(format_) ? kernels_.dense_scores : kernels_.packed_scores)(part, prepared, rows, scores + offset,
                                                                              stride);
    });
}

void BlockProducts::quad_scores(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next,
                                const float* prepared, int rows, float* scores, int64_t stride) const {
    const bool wide = format_.dtype == MUSTAFAR_DTYPE_F32;
    Room room;
    for (int64_t token = begin; token < end;) {
        const int first = static_cast<int>(token % block_tokens);
        const int64_t whole = first == 0 ? (end - token) / block_tokens : 0;
        const QuadBlocks blocks = quad_blocks(reader, token / block_tokens, std::max<int64_t>(whole, 1), next, room);
        if (whole > 0) {
            quads_->scores(blocks, wide, prepared, rows, scores + (token - begin), stride);
            token += blocks.count * block_tokens;
            continue;
        }
        // A part of a block, for which all scores are computed.
        const int tokens = static_cast<int>(std::min<int64_t>(block_tokens - first, end - token));
        constexpr int most_rows = 4;
        for (int begin_row = 0; begin_row < rows; begin_row += most_rows) {
            float all[most_rows][block_tokens];
            const int count = std::min(rows - begin_row, most_rows);
            quads_->scores(blocks, wide, prepared + begin_row * query_floats(), count, all[0], block_tokens);
            for (int r = 0; r < count; ++r)
                std::copy_n(all[r] + first, tokens, scores + (begin_row + r) * stride + (token - begin));
        }
        token += tokens;
    }
}

void BlockProducts::sum(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next,
                        const float* weights, int64_t stride, int rows, float* sums) const {
    if (quads_ != nullptr) return quad_sum(reader, begin, end, next, weights, stride, rows, sums);
    if (has_integers(format_)) return f32_sum(reader, begin, end, weights, stride, rows, sums);
    for_block_parts(begin, end, [&](int64_t index, int first, int tokens, int64_t offset) {
        const TokenRun part = run(reader.read(index, first + tokens, kernels_), first, tokens);
        (keeps_all(format_) ? kernels_.dense_sum : kernels_.packed_sum)(part, weights + offset, stride, rows, sums);
    });
}

// Not inlined: its stack would be that of all sums.
[[gnu::noinline]] void BlockProducts::f32_sum(const BlockReader& reader, int64_t begin, int64_t end,
                                              const float* weights, int64_t stride, int rows, float* sums) const {
    for_block_parts(begin, end, [&](int64_t index, int first, int tokens, int64_t offset) {
        const Dequantized dense(reader.read(index, first + tokens, kernels_), format_, first, tokens);
        f32_.dense_sum(dense.run(), weights + offset, stride, rows, sums);
    });
}

void BlockProducts::quad_sum(const BlockReader& reader, int64_t begin, int64_t end, const UpcomingBlocks& next,
                             const float* weights, int64_t stride, int rows, float* sums) const {
    Room room;
    for (int64_t token = begin; token < end;) {
        const int first = static_cast<int>(token % block_tokens);
        const QuadBlocks blocks =
            quad_blocks(reader, token / block_tokens, divide_up(end - token + first, block_tokens), next, room);
        const int tokens = static_cast<int>(std::min<int64_t>(blocks.count * block_tokens - first, end - token));
        const float* const own = weights + (token - begin);
        const int64_t padded = 32 * bitmap_words(format_.head_dim);
        const int added =
            quads_->sum(blocks, format_.dtype == MUSTAFAR_DTYPE_F32, first, tokens, own, stride, rows, sums, padded);
        if (added < rows)
            f32_sum(reader, token, token + tokens, own + added * stride, stride, rows - added, sums + added * padded);
        token += tokens;
    }
}

}  // namespace mustafar
