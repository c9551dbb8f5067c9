// Checks of single arguments, shared by all functions of the C boundary.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>

#include "core/error.h"
#include "mustafar/mustafar.h"

namespace mustafar {

__extension__ using wide = __int128;

// No tensor spans more than this many bytes, so that every address computation fits 64 bits.
constexpr wide max_span_bytes = wide{1} << 56;

inline void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected %lld ... %lld, got %lld", name, (long long)low,
             (long long)high, (long long)value);
}

inline void check_pointer(const char* name, const void* pointer) {
    if (pointer == nullptr) fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected an address, got null", name);
}

inline void check_aligned(const char* name, const void* pointer, uintptr_t alignment) {
    check_pointer(name, pointer);
    if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected an address that is a multiple of %llu, got %p", name,
             (unsigned long long)alignment, pointer);
}

// An optional array.
inline void check_optional(const char* name, const void* pointer, uintptr_t alignment) {
    if (pointer != nullptr) check_aligned(name, pointer, alignment);
}

inline void check_dtype(const char* name, int32_t dtype) {
    if (dtype < MUSTAFAR_DTYPE_F32 || dtype > MUSTAFAR_DTYPE_BF16)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected a mustafar_dtype (0 f32, 1 f16, 2 bf16), got %d", name,
             dtype);
}

template <class T>
const T& not_null(const char* name, const T* pointer) {
    check_aligned(name, pointer, alignof(T));
    return *pointer;
}

struct Extent {
    int64_t batch, heads, tokens, width;
    bool empty() const { return batch == 0 || heads == 0 || tokens == 0; }
};

// A dense tensor that is read or written; an empty one may have any address. Each stride must fit, that of a dimension
// of one too: kernels count it in bytes.
inline void check_dense(const char* name, const mustafar_dense& dense, const Extent& extent, int element) {
    if (dense.batch_stride < 0 || dense.head_stride < 0 || dense.token_stride < 0)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "%s: expected strides >= 0, got [%lld, %lld, %lld]", name,
             (long long)dense.batch_stride, (long long)dense.head_stride, (long long)dense.token_stride);
    if (extent.empty()) return;
    check_aligned(name, dense.data, (uintptr_t)element);
    const auto reach = [](int64_t places, int64_t stride) { return wide{std::max<int64_t>(places - 1, 1)} * stride; };
    const wide span = reach(extent.batch, dense.batch_stride) + reach(extent.heads, dense.head_stride) +
                      reach(extent.tokens, dense.token_stride) + extent.width;
    if (span * element > max_span_bytes)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "%s: expected a tensor within 2^56 bytes, got strides [%lld, %lld, %lld]", name,
             (long long)dense.batch_stride, (long long)dense.head_stride, (long long)dense.token_stride);
}

// A tensor that is written must not map several elements to one address.
inline void check_written(const char* name, const mustafar_dense& dense, const Extent& extent, int element) {
    check_dense(name, dense, extent, element);
    if ((extent.tokens > 1 && dense.token_stride < extent.width) ||
        (extent.heads > 1 && dense.head_stride < extent.width) ||
        (extent.batch > 1 && dense.batch_stride < extent.width))
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT,
             "%s: expected strides >= %lld (rows that do not overlap), got [%lld, %lld, %lld]", name,
             (long long)extent.width, (long long)dense.batch_stride, (long long)dense.head_stride,
             (long long)dense.token_stride);
}

inline void check_heads(int32_t num_heads, int32_t num_kv_heads) {
    check_range("num_kv_heads", num_kv_heads, 1, INT_MAX);
    check_range("num_heads", num_heads, 1, INT_MAX);
    if (num_heads % num_kv_heads != 0)
        fail(MUSTAFAR_STATUS_INVALID_ARGUMENT, "num_heads: expected a multiple of num_kv_heads (%d), got %d",
             num_kv_heads, num_heads);
}

}  // namespace mustafar
