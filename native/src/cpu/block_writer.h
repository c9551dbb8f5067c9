// Fills one block.
#pragma once

#include <cstring>

#include "core/format.h"
#include "cpu/block_reader.h"
#include "cpu/kernels.h"

namespace mustafar {

// Writes tokens 0 ... tokens - 1 of a block. row(t) is the address of token t; choose(bitmap) fills the bitmap's rows.
// Rows past tokens are empty, and the rest of the values' room is zero, so that equal tokens give equal bytes.
template <class Row, class Choose>
void write_block(const Block& block, const mustafar_format& format, const Kernels& kernels, int tokens, const Row& row,
                 const Choose& choose) {
    const int words = bitmap_words(format.head_dim), element = element_bytes(format.dtype);
    uint32_t* bitmap = block.writable_bitmap();
    char* values = block.writable_values();
    int64_t count = 0;
    choose(bitmap);
    for (int t = 0; t < tokens; ++t) {
        const uint32_t* bits = bitmap + t * words;
        if (count + kernels.count(bits, 1) > block.value_capacity)
            fail(MUSTAFAR_STATUS_CORRUPT_DATA,
                 "bitmap: it marks more values than the block's %lld, which its offsets give",
                 static_cast<long long>(block.value_capacity));
        count += kernels.pack(row(t), bits, values + count * element);
    }
    std::memset(bitmap + tokens * words, 0, static_cast<size_t>((block_tokens - tokens) * words) * sizeof(uint32_t));
    std::memset(values + count * element, 0, static_cast<size_t>((block.value_capacity - count) * element));
}

}  // namespace mustafar
