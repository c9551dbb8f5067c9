// The entry of libFuzzer: the first byte chooses what is called.
#include "calls.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace mustafar_fuzz;
    // The first bytes in the corpus are numbers of these: new ones go to the end.
    static constexpr void (*calls[])(Arguments&) = {queries,  workspace, prune,         compress, masked,  decompress,
                                                    products, attention, append,        cache,    convert, key_factors,
                                                    rms_norm, rotate,    rotate_append, silu_mul, linear,  sample};
    if (size < 8) return 0;
    Arguments arguments(data + 1, size - 1);
    calls[data[0] % std::size(calls)](arguments);
    return 0;
}
