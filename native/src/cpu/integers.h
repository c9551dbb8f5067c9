// 8- and 4-bit values: how a row becomes integers and a scale, and where a block stores them. The public header has the
// rules, docs/format.md the orders.
#pragma once

#include <cstdint>

#include "cpu/block_reader.h"
#include "cpu/pattern.h"

namespace mustafar {

// Fills the values and scales of a block that already has its bitmap, from the rows divided by factors (null: by one).
void write_integers(const Block& block, const mustafar_format& format, const BlockRows& rows, const float* factors);

// The integers of tokens first ... first + tokens - 1, [tokens][head_dim], zeros where nothing is kept.
void read_integers(const Block& block, const mustafar_format& format, int first, int tokens, int8_t* integers);

// The same tokens in f32, rows `stride` apart.
void dequantize(const Block& block, const mustafar_format& format, int first, int tokens, float* rows, int stride);

// The values of a block that keeps all channels, as 8-bit values in another quad order.
void expand_integers(const Block& block, const mustafar_format& format, int32_t order, char* expanded);

// Copies a block from one order to another.
void convert_integers(const Block& source, const mustafar_format& from, const Block& destination,
                      const mustafar_format& to);

}  // namespace mustafar
