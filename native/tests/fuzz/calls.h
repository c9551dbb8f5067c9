// One call, or a few that belong together, per function. Each makes its arguments from the input.
#pragma once

#include "arguments.h"

namespace mustafar_fuzz {

void queries(Arguments& arguments);     // functions that take no tensor
void workspace(Arguments& arguments);   // the size of attention's workspace, for any shape
void prune(Arguments& arguments);       //
void compress(Arguments& arguments);    // FIXED blocks: compress, corrupt, decompress
void masked(Arguments& arguments);      // OFFSETS blocks: offsets, compress, corrupt, decompress
void decompress(Arguments& arguments);  // blocks of random content
void convert(Arguments& arguments);
void key_factors(Arguments& arguments);
void products(Arguments& arguments);
void attention(Arguments& arguments);
void append(Arguments& arguments);
void cache(Arguments& arguments);  // the life of a cache: appends, attention, corruption, attention
void rms_norm(Arguments& arguments);
void rotate(Arguments& arguments);
void rotate_append(Arguments& arguments);
void silu_mul(Arguments& arguments);
void linear(Arguments& arguments);
void sample(Arguments& arguments);

// What append and rotate_append append.
mustafar_append appended(Arguments& arguments);

}  // namespace mustafar_fuzz
