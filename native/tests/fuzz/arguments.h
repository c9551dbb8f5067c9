// Argument structs made from bytes: mostly ones that the ABI allows, now and then a field with any other number.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "memory.h"
#include "mustafar/mustafar.h"

namespace mustafar_fuzz {

class Arguments {
public:
    Arguments(const uint8_t* data, size_t size)
        : input(data, size), hostility(input.ConsumeIntegral<uint8_t>()),
          memory(input.ConsumeIntegral<uint32_t>() * uint64_t{0x9e3779b97f4a7c15}) {}

    // A number of low ... high; of a hostile input, sometimes one that is not.
    int64_t number(int64_t low, int64_t high);
    int32_t number32(int32_t low, int32_t high) { return static_cast<int32_t>(number(low, high)); }
    // One, two or three times a number, as far as 32 bits go.
    int32_t multiple(int32_t of) {
        return static_cast<int32_t>(static_cast<uint32_t>(of) * input.ConsumeIntegralInRange<uint32_t>(1, 3));
    }
    // True for about one in `of`, for hostile inputs only.
    bool mishap(int of = 16);
    // Sometimes null or an address that is not aligned.
    template <class T>
    T* address(T* proper) {
        if (!mishap(64) || proper == nullptr) return proper;
        void* const bytes = const_cast<std::remove_const_t<T>*>(proper);
        return input.ConsumeBool() ? nullptr : static_cast<T*>(static_cast<void*>(static_cast<char*>(bytes) + 1));
    }

    mustafar_context context();
    mustafar_format format(int32_t layout);
    // Rows of `width` elements that end with the buffer.
    mustafar_dense dense(int64_t batch, int64_t heads, int64_t tokens, int64_t width, int element);
    // The same of a matrix.
    mustafar_rows rows(int64_t count, int64_t width, int element);
    // Strides of a dense tensor without its memory.
    mustafar_dense strides(int64_t heads, int64_t tokens, int64_t width);
    // Places for blocks with random content: slabs of pages in any order and, for the OFFSETS layout, a table that ascends.
    mustafar_blocks blocks(const mustafar_format& format, int64_t slots, int64_t heads, int64_t tokens);
    // Slabs of slab_bytes.
    void slabs(mustafar_blocks& blocks, int32_t slab_pages, int32_t slab_count);
    // Channel scales, or none.
    float* key_factors(const mustafar_format& format, int64_t slots, int64_t heads);
    // An importance of each channel of (slot, head), or none.
    float* importance(const mustafar_format& format, int64_t slots, int64_t heads);
    // A bitmap of so many rows, or none where the pattern can choose.
    uint32_t* bitmap(const mustafar_format& format, wide rows);
    // Overwrites a few bytes of a buffer.
    void corrupt(void* buffer, size_t bytes);
    // The same for one of the slabs or page tables made so far.
    void corrupt_blocks();

    FuzzedDataProvider input;

private:
    uint8_t hostility;  // below 128: no field is out of its range on purpose

public:
    Memory memory;

private:
    void fixed_blocks(mustafar_blocks& blocks, int64_t slots, int64_t heads);
    void offset_blocks(mustafar_blocks& blocks, int64_t slots, int64_t heads);
    // A page table whose entries are 0 ... pages - 1.
    void page_table(mustafar_blocks& blocks, int64_t slots, int64_t pages);

    std::vector<std::pair<void*, size_t>> corruptible_;
};

int element_bytes(int32_t dtype);
int64_t bitmap_words(int32_t head_dim);
bool keeps_all(const mustafar_format& format);
wide span(const mustafar_dense& dense, int64_t batch, int64_t heads, int64_t tokens, int64_t width);

}  // namespace mustafar_fuzz
