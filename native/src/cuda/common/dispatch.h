// One place for each axis of a template: dtype and head_dim.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "core/error.h"
#include "core/format.h"
#include "cuda/common/order.h"

namespace mustafar::cuda {

template <class T>
struct Type {
    using type = T;
};

template <class Call>
void dispatch_dtype(const char* operation, int32_t dtype, Call&& call) {
    switch (dtype) {
        case MUSTAFAR_DTYPE_F32: return call(Type<float>{});
        case MUSTAFAR_DTYPE_F16: return call(Type<__half>{});
        case MUSTAFAR_DTYPE_BF16: return call(Type<__nv_bfloat16>{});
        default: fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s: no kernel for dtype %d", operation, dtype);
    }
}

template <class Call>
void dispatch_head_dim(const char* operation, int32_t head_dim, Call&& call) {
    switch (head_dim) {
        case 64: return call(std::integral_constant<int, 64>{});
        case 80: return call(std::integral_constant<int, 80>{});
        case 96: return call(std::integral_constant<int, 96>{});
        case 128: return call(std::integral_constant<int, 128>{});
        case 256: return call(std::integral_constant<int, 256>{});
        default: fail(MUSTAFAR_STATUS_UNSUPPORTED, "%s: no kernel for head_dim %d", operation, head_dim);
    }
}

// Calls with Type<T> and an integral_constant of head_dim.
template <class Call>
void dispatch(const char* operation, const mustafar_format& format, Call&& call) {
    dispatch_dtype(operation, format.dtype, [&](auto type) {
        dispatch_head_dim(operation, format.head_dim, [&](auto head_dim) { call(type, head_dim); });
    });
}

}  // namespace mustafar::cuda
