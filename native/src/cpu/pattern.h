// Which channels of a block are kept, for every pattern.
#pragma once

#include "core/format.h"
#include "cpu/kernels.h"

namespace mustafar {

// The addresses of a block's rows.
struct BlockRows {
    const char* row[block_tokens];
    int tokens;
};

template <class Row>
BlockRows block_rows(int tokens, const Row& row) {
    BlockRows rows;
    rows.tokens = tokens;
    for (int t = 0; t < tokens; ++t) rows.row[t] = row(t);
    return rows;
}

// What selects the kept channels: a caller's bitmap rows of a block, or the pattern, by magnitude or by the importance
// of each channel. Whatever is not used is null.
struct Selection {
    const uint32_t* bitmap;
    const float* importance;
};

// Fills the bitmap rows of the block's tokens; throws Error if the selection's bitmap does not fit the format.
void choose(const mustafar_format& format, const Kernels& kernels, const BlockRows& rows, const Selection& selection,
            uint32_t* bitmap);

}  // namespace mustafar
