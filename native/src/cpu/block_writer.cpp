#include "cpu/block_writer.h"

#include <cstring>

#include "cpu/integers.h"

namespace mustafar {
namespace {

void write_bitmap(const Block& block, const mustafar_format& format, const Kernels& kernels, const BlockRows& rows,
                  const Selection& selection) {
    const size_t words = static_cast<size_t>(bitmap_words(format.head_dim)),
                 used = static_cast<size_t>(rows.tokens) * words;
    uint32_t* const bitmap = block.writable_bitmap();
    choose(format, kernels, rows, selection, bitmap);
    std::memset(bitmap + used, 0, (block_tokens * words - used) * sizeof *bitmap);
    if (kernels.count(bitmap, rows.tokens) > block.value_capacity)
        fail(MUSTAFAR_STATUS_CORRUPT_DATA, "bitmap: it marks more values than the %lld that the block's offsets allow",
             static_cast<long long>(block.value_capacity));
}

// In the tensor's dtype.
void write_values(const Block& block, const mustafar_format& format, const Kernels& kernels, const BlockRows& rows) {
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    char* const values = block.writable_values();
    int64_t count = 0;
    for (int t = 0; t < rows.tokens; ++t) {
        char* const next = values + count * element;
        if (keeps_all(format)) {
            std::memcpy(next, rows.row[t], static_cast<size_t>(format.head_dim * element));
            count += format.head_dim;
        } else {
            count += kernels.pack(rows.row[t], block.bitmap + t * words, next);
        }
    }
    std::memset(values + count * element, 0, static_cast<size_t>((block.value_capacity - count) * element));
}

}  // namespace

void write_block(const Block& block, const mustafar_format& format, const Kernels& kernels, const BlockRows& rows,
                 const Selection& selection, const float* factors) {
    if (!keeps_all(format)) write_bitmap(block, format, kernels, rows, selection);
    if (has_integers(format))
        write_integers(block, format, rows, factors);
    else
        write_values(block, format, kernels, rows);
}

}  // namespace mustafar
