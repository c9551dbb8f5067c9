// Fills one block.
#pragma once

#include "core/format.h"
#include "cpu/block_reader.h"
#include "cpu/kernels.h"
#include "cpu/pattern.h"

namespace mustafar {

// Writes the rows as the first tokens of a block. factors: the channel scales of keys, or null. Rows past the last
// token are empty, and unused space for values is zero, so that equal tokens give equal bytes.
void write_block(const Block& block, const mustafar_format& format, const Kernels& kernels, const BlockRows& rows,
                 const Selection& selection, const float* factors);

}  // namespace mustafar
