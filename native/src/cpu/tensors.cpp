// Prune, compress and decompress whole tensors.
#include "cpu/tensors.h"

#include <algorithm>

#include "cpu/block_reader.h"
#include "cpu/block_writer.h"
#include "cpu/kernels.h"
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

// Bits past head_dim in a row's last word.
uint32_t excess_bits(int head_dim) {
    return head_dim % 32 == 0 ? 0u : ~0u << head_dim % 32;
}

void check_bitmap_row(const uint32_t* bits, int head_dim) {
    const uint32_t last = bits[bitmap_words(head_dim) - 1];
    if ((last & excess_bits(head_dim)) != 0)
        fail(MUSTAFAR_STATUS_CORRUPT_DATA, "bitmap: bits past head_dim %d are set (last word %08x)", head_dim, last);
}

}  // namespace

void prune(const mustafar_context& context, const mustafar_format& format, int32_t batch, int32_t heads, int64_t tokens,
           const mustafar_dense& source, uint32_t* bitmap) {
    const Kernels& table = kernels(context.cpu_variant, format);
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    for_blocks(context, batch, heads, 0, tokens, [&](int32_t b, int32_t h, int64_t block, int count) {
        const int64_t first = block * block_tokens;
        choose(format, table, block_rows(count, [&](int t) { return row_address(source, b, h, first + t, element); }),
               bitmap + ((int64_t{b} * heads + h) * tokens + first) * words);
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
            units += divide_up(bitmap_bytes(format.head_dim) + int64_t{count} * element_bytes(format.dtype), 16);
            if (units > UINT32_MAX)
                fail(MUSTAFAR_STATUS_UNSUPPORTED,
                     "tokens: the compressed tensor is larger than 2^36 bytes, more than offsets reach");
            offsets[r * blocks + block + 1] = static_cast<uint32_t>(units);
        }
    *page_bytes = units * 16 + MUSTAFAR_PAGE_PADDING;
}

void compress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t tokens,
              const mustafar_dense& source, const uint32_t* bitmap, const mustafar_blocks& destination) {
    const mustafar_format& format = destination.format;
    const Kernels& table = kernels(context.cpu_variant, format);
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    for_blocks(context, batch, heads, 0, tokens, [&](int32_t b, int32_t h, int64_t block, int count) {
        const auto row = [&](int t) { return row_address(source, b, h, block * block_tokens + t, element); };
        write_block(
            BlockReader(destination, heads, b, h).locate(block), format, table, count, row, [&](uint32_t* bits) {
                if (bitmap == nullptr) return choose(format, table, block_rows(count, row), bits);
                const uint32_t* given = bitmap + ((int64_t{b} * heads + h) * tokens + block * block_tokens) * words;
                for (int t = 0; t < count; ++t) check_bitmap_row(given + t * words, format.head_dim);
                std::copy_n(given, count * words, bits);
            });
    });
}

void decompress(const mustafar_context& context, int32_t batch, int32_t heads, int64_t first, int64_t tokens,
                const mustafar_blocks& source, const mustafar_dense& destination) {
    const mustafar_format& format = source.format;
    const Kernels& table = kernels(context.cpu_variant, format);
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    for_blocks(context, batch, heads, first, first + tokens, [&](int32_t b, int32_t h, int64_t block, int count) {
        const TokenRun run = BlockReader(source, heads, b, h).read(block, count, table);
        const char* values = static_cast<const char*>(run.data);
        for (int t = 0; t < count; ++t) {
            const uint32_t* bits = run.bitmap + t * words;
            const int64_t token = block * block_tokens + t;
            if (token >= first)
                table.unpack(values, bits, format.head_dim, row_address(destination, b, h, token - first, element));
            values += table.count(bits, 1) * element;
        }
    });
}

}  // namespace mustafar
