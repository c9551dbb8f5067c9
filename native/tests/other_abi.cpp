// Stands in for a library of a release that its caller was not made for.
#include "mustafar/mustafar.h"

int32_t mustafar_abi_version(void) {
    return MUSTAFAR_ABI_VERSION + 1;
}
