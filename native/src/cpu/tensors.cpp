// Prune, compress and decompress whole tensors.
#include "cpu/tensors.h"

#include <algorithm>
#include <cstring>

#include "core/hadamard.h"
#include "cpu/block_reader.h"
#include "cpu/block_writer.h"
#include "cpu/dense_row.h"
#include "cpu/integers.h"
#include "cpu/kernels.h"
#include "cpu/key_factors.h"
#include "cpu/parallel.h"
#include "cpu/pattern.h"

namespace mustafar {
namespace {

// Calls work(batch, head, block, tokens of the block) for all blocks of tokens first ... end - 1, on all threads.
template <class Work>
void for_blocks(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t end,
                const Work& work) {
    if (batch == 0 || heads == 0 || first >= end) return;
    const int64_t first_block = first / block_tokens, blocks = divide_up(end, block_tokens) - first_block;
    const int64_t items = int64_t{batch} * heads * blocks;
    parallel_for(thread_count(context.num_threads, items), items, [&](int64_t item, int) {
        const int64_t head = item / blocks, block = first_block + item % blocks;
        work(static_cast<int32_t>(head / heads), static_cast<int32_t>(head % heads), block,
             static_cast<int>(std::min<int64_t>(block_tokens, end - block * block_tokens)));
    });
}

// Of one (sequence, head); null stays null.
const float* of_head(const float* channels, int64_t head, const mustafar_format& format) {
    return channels == nullptr ? nullptr : channels + head * format.head_dim;
}

// Tokens skipped ... count - 1 of a block of native values; row(t) is where token t goes.
template <class Row>
void restore_values(const Block& block, const mustafar_format& format, const Kernels& table, int skipped, int count,
                    const Row& row) {
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    const char* values = block.values;
    for (int t = 0; t < count; ++t) {
        const int kept = keeps_all(format) ? format.head_dim : table.count(block.bitmap + t * words, 1);
        if (t >= skipped && keeps_all(format))
            std::memcpy(row(t), values, static_cast<size_t>(kept * element));
        else if (t >= skipped)
            table.unpack(values, block.bitmap + t * words, format.head_dim, row(t));
        values += kept * element;
    }
}

template <class Row>
void restore_integers(const Block& block, const mustafar_format& format, const Kernels& table, int skipped, int count,
                      const float* factors, const Row& row) {
    alignas(64) float rows[block_tokens * max_head_dim];
    dequantize(block, format, skipped, count - skipped, rows, format.head_dim);
    for (int t = skipped; t < count; ++t) {
        float* const numbers = rows + (t - skipped) * format.head_dim;
        if (is_rotated(format)) hadamard(numbers, format.head_dim);
        if (factors != nullptr)
            for (int c = 0; c < format.head_dim; ++c) numbers[c] *= factors[c];
        table.finish(numbers, 1.0f, format.head_dim, row(t));
    }
}

}  // namespace

void prune(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads, int64_t tokens,
           const mustafar_dense& source, const float* importance, uint32_t* bitmap) {
    const Kernels& table = kernels(context.cpu_variant, format);
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    for_blocks(context, batch, heads, 0, tokens, [&](int32_t b, int32_t h, int64_t block, int count) {
        const int64_t first = block * block_tokens, head = int64_t{b} * heads + h;
        choose(format, table, block_rows(count, [&](int t) { return row_address(source, b, h, first + t, element); }),
               Selection{.bitmap = nullptr, .importance = of_head(importance, head, format)},
               bitmap + (head * tokens + first) * words);
    });
}

void offsets(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads,
             int64_t tokens, const uint32_t* bitmap, uint32_t* offsets, int64_t* page_bytes) {
    const Kernels& table = kernels(context.cpu_variant, format);
    const int words = bitmap_words(format.head_dim);
    const int64_t blocks = divide_up(tokens, block_tokens), rows = blocks == 0 ? 0 : int64_t{batch} * heads;
    int64_t units = 0;
    offsets[0] = 0;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = block * block_tokens;
            const int count = table.count(bitmap + (r * tokens + first) * words,
                                          static_cast<int>(std::min<int64_t>(block_tokens, tokens - first)));
            units += offsets_block_bytes(format, count) / 16;
            if (units > UINT32_MAX)
                fail(MUSTAFAR_STATUS_UNSUPPORTED,
                     "tokens: the compressed tensor is larger than 2^36 bytes, the reach of offsets");
            offsets[r * blocks + block + 1] = static_cast<uint32_t>(units);
        }
    *page_bytes = units * 16 + MUSTAFAR_PAGE_PADDING;
}

void compress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
              const mustafar_dense& source, const uint32_t* bitmap, const float* importance, const float* factors,
              const mustafar_blocks& destination) {
    const mustafar_format& format = destination.format;
    const Kernels& table = kernels(context.cpu_variant, format);
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    for_blocks(context, batch, heads, 0, tokens, [&](int32_t b, int32_t h, int64_t block, int count) {
        const int64_t head = int64_t{b} * heads + h;
        const uint32_t* given = bitmap == nullptr ? nullptr : bitmap + (head * tokens + block * block_tokens) * words;
        const BlockRows rows =
            block_rows(count, [&](int t) { return row_address(source, b, h, block * block_tokens + t, element); });
        write_block(BlockReader(destination, heads, b, h).locate(block), format, table, rows,
                    Selection{.bitmap = given, .importance = of_head(importance, head, format)},
                    of_head(factors, head, format));
    });
}

void decompress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                const mustafar_blocks& source, const float* factors, const mustafar_dense& destination) {
    const mustafar_format& format = source.format;
    const Kernels& table = kernels(context.cpu_variant, format);
    const int element = element_bytes(format.dtype);
    for_blocks(context, batch, heads, first, first + tokens, [&](int32_t b, int32_t h, int64_t index, int count) {
        const Block block = BlockReader(source, heads, b, h).read(index, count, table);
        const int skipped = static_cast<int>(std::max<int64_t>(first - index * block_tokens, 0));
        const auto row = [&](int t) {
            return row_address(destination, b, h, index * block_tokens + t - first, element);
        };
        if (has_integers(format)) {
            restore_integers(block, format, table, skipped, count, of_head(factors, int64_t{b} * heads + h, format),
                             row);
        } else {
            restore_values(block, format, table, skipped, count, row);
        }
    });
}

void convert(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
             const mustafar_blocks& source, const mustafar_blocks& destination) {
    const bool reordered = (has_quads_order(source.format) ? source.format.order : MUSTAFAR_ORDER_PLAIN) !=
                           (has_quads_order(destination.format) ? destination.format.order : MUSTAFAR_ORDER_PLAIN);
    for_blocks(context, batch, heads, 0, tokens, [&](int32_t b, int32_t h, int64_t index, int) {
        const Block from = BlockReader(source, heads, b, h).locate(index);
        const Block to = BlockReader(destination, heads, b, h).locate(index);
        if (reordered)
            convert_integers(from, source.format, to, destination.format);
        else
            std::memcpy(to.writable_begin(), from.begin, static_cast<size_t>(from.bytes));
    });
}

void key_factors(const mustafar_context& context, int32_t dtype, int32_t head_dim, int32_t batch, int32_t heads,
                 int64_t tokens, const mustafar_dense& source, float* factors) {
    const int64_t items = int64_t{batch} * heads;
    const int element = element_bytes(dtype);
    parallel_for(thread_count(context.num_threads, items), items, [&](int64_t item, int) {
        compute_key_factors(
            dtype, head_dim, tokens,
            [&](int64_t t) { return row_address(source, item / heads, item % heads, t, element); },
            factors + item * head_dim);
    });
}

}  // namespace mustafar
