// Prunes 32 rows and writes them as one block: the work of a thread block of 128 threads.
#pragma once

#include "cuda/compress/balanced_integers.cuh"
#include "cuda/compress/unstructured_integers.cuh"

namespace mustafar::cuda {

template <class T, int HeadDim>
class BlockWriter {
public:
    using Layout = BlockLayout<HeadDim>;
    using Part = RowPart<T, HeadDim>;
    static constexpr int words = Layout::words;
    static constexpr bool has_fragments = Layout::has_fragments && sizeof(T) == 2;

    struct Memory {
        // Rows are one 32-bit word longer than their channels, so that the same channel of several rows is spread over
        // the banks.
        static constexpr int stride = HeadDim + 4 / sizeof(T);
        alignas(16) T values[block_tokens * HeadDim];
        T rows[block_tokens * stride];
        typename Layout::Memory layout;
    };

    __device__ __forceinline__ explicit BlockWriter(Memory& memory)
        : memory_(memory), token_(static_cast<int>(threadIdx.x) >> 2), t_(threadIdx.x & 3) {}

    int __device__ __forceinline__ token() const { return token_; }

    // Reads this lane's quarter of its token's row; null: there is no such token. The rows are in shared memory after the
    // next barrier.
    __device__ __forceinline__ void load(const T* row, bool aligned) {
        present_ = row != nullptr;
        if (present_)
            read(row, aligned);
        else
            part_ = {};
        uint32_t* const own = reinterpret_cast<uint32_t*>(memory_.rows + token_ * Memory::stride + t_ * Part::channels);
#pragma unroll
        for (int j = 0; j < Part::words; ++j) own[j] = part_.word[j];
    }

    // Bitmap of the rows by the pattern; ends with all bits visible to all threads.
    __device__ __forceinline__ void select(int32_t pattern, uint32_t keep) {
        if constexpr (HeadDim % 64 == 0)
            if (pattern == MUSTAFAR_PATTERN_BALANCED_KEYS || pattern == MUSTAFAR_PATTERN_BALANCED_VALUES) {
                clear_bits();
                select_balanced<T, HeadDim>(memory_.rows, Memory::stride, pattern == MUSTAFAR_PATTERN_BALANCED_KEYS,
                                            balanced_kept(HeadDim, keep), memory_.layout.bits);
                __syncthreads();
                marks_absent_ = true;
                return;
            }
        part_.to_keys();
        const typename Part::Mask mask = select_channels(part_, keep, t_);
        set_bits(present_ ? mask : typename Part::Mask{0});
    }

    // Bitmap of the rows as given; `words` of this thread's token, or null.
    __device__ __forceinline__ void take_bits(const uint32_t* row) {
        constexpr uint32_t last = HeadDim % 32 == 0 ? 0xffffffffu : (1u << HeadDim % 32) - 1;
        for (int j = t_; j < words; j += 4)
            memory_.layout.bits[token_][j] = row == nullptr ? 0 : row[j] & (j == words - 1 ? last : 0xffffffffu);
        __syncthreads();
    }

    __device__ __forceinline__ const uint32_t* bits() const {
        return memory_.layout.bits[token_];
    }

    // Prunes by the pattern and writes what is kept, `keep` values of each token. factors: channel scales of integer keys, or
    // null.
    __device__ __forceinline__ void compress(int32_t pattern, uint32_t keep, uint8_t* block, ValueOrder order,
                                             const float* factors) {
        if constexpr (has_fragments) {
            if (order.integer_bits != 0) return compress_integers(keep, block, order, factors);
            if (order.arrangement == Arrangement::balanced) {
                __syncthreads();
                const int kept = balanced_kept(HeadDim, keep);
                store_balanced(block, order, kept, [&](const auto&, const UnitElements& elements) {
                    return largest_elements<T>(elements, kept);
                });
                return;
            }
        }
        select(pattern, keep);
        store(block, order, block_tokens * keep);
    }

    // Writes bitmap and values; `capacity` values have room behind the bitmap, those that stay free become zero.
    __device__ __forceinline__ void store(uint8_t* block, ValueOrder order, uint32_t capacity) {
        if constexpr (has_fragments)
            if (order.arrangement == Arrangement::balanced) {
                store_balanced(block, order, balanced_kept(HeadDim, capacity / block_tokens),
                               [&](const auto& unit, const UnitElements&) {
                                   return elements_of_bitmap(memory_.layout.bits, unit);
                               });
                return;
            }
        if (marks_absent_) {
            // Zeros of tokens that do not exist fill up the units, but a bitmap does not show them.
            if (!present_)
                for (int j = t_; j < words; j += 4) memory_.layout.bits[token_][j] = 0;
            __syncthreads();
        }
        const uint32_t count =
            Layout::for_each_value(order, memory_.layout, [&](uint32_t index, int token, int channel) {
                memory_.values[index] = memory_.rows[token * Memory::stride + channel];
            });
        for (uint32_t i = count + threadIdx.x; i < capacity; i += block_threads) memory_.values[i] = T(0.0f);
        __syncthreads();
        constexpr int bitmap = 4 * words * block_tokens;
        copy(block, memory_.layout.bits, bitmap);
        copy(block + bitmap, memory_.values, capacity * sizeof(T));
        __syncthreads();
    }

private:
    static constexpr int integer_stride = HeadDim + 4;  // bytes

    __device__ __forceinline__ void compress_integers(uint32_t keep, uint8_t* block, ValueOrder order,
                                                      const float* factors) {
        if (order.arrangement == Arrangement::bitmap)
            compress_unstructured_integers(keep, block, order, factors);
        else if (order.integer_bits == 4)
            compress_operands<4>(block, order, factors);
        else
            compress_operands<8>(block, order, factors);
    }

    template <int Bits>
    __device__ __forceinline__ void compress_operands(uint8_t* block, ValueOrder order, const float* factors) {
        using Geometry = IntegerGeometry<HeadDim, Bits>;
        if (order.arrangement == Arrangement::balanced) {
            if (order.keys)
                compress_balanced_integers<Bits, true>(block, factors);
            else
                compress_balanced_integers<Bits, false>(block, factors);
            return;
        }
        __syncthreads();
        quantize(~0u, factors, Bits, Geometry::scale_start);
        write_integers<HeadDim, Bits>(image(), order.keys, integers(), integer_stride);
        copy_image(block, Geometry::block_bytes);
    }

    template <int Bits, bool Keys>
    __device__ __forceinline__ void compress_balanced_integers(uint8_t* block, const float* factors) {
        using Geometry = BalancedIntegerGeometry<HeadDim, Bits>;
        clear_bits();
        const OwnUnits<T, HeadDim, Keys> units(reinterpret_cast<const uint16_t*>(memory_.rows), Memory::stride,
                                               memory_.layout.bits);
        __syncthreads();
        quantize(own_bits(), factors, Bits, Geometry::scale_start);
        units.template write<Bits>(image(), integers(), integer_stride);
        copy_image(block, Geometry::block_bytes);
    }

    __device__ __forceinline__ void compress_unstructured_integers(uint32_t keep, uint8_t* block, ValueOrder order,
                                                                   const float* factors) {
        const Part part = part_;
        select(MUSTAFAR_PATTERN_UNSTRUCTURED, keep);  // makes keys of the part
        part_ = part;
        const int scale_start = bitmap_bytes(HeadDim) + block_tokens * keep * order.integer_bits / 8;
        quantize(own_bits(), factors, order.integer_bits, scale_start);
        write_unstructured_integers<HeadDim>(image(), IntegerByte{order.integer_bits}, order.keys, keep, memory_.layout,
                                             integers(), integer_stride);
        copy_image(block, scale_start + 2 * block_tokens);
    }

    // This lane's channels in the bitmap, whose further bits are of no interest.
    __device__ __forceinline__ uint32_t own_bits() const {
        const int first = t_ * Part::channels;
        return memory_.layout.bits[token_][first / 32] >> first % 32;
    }

    // Replaces the rows, which nobody reads any more, by integers and puts the scales into the image. kept: of this lane's
    // channels. Ends with a barrier.
    __device__ __forceinline__ void quantize(uint32_t kept, const float* factors, int bits, int scale_start) {
        float number[Part::channels];
#pragma unroll
        for (int j = 0; j < Part::words; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const uint16_t half = static_cast<uint16_t>(part_.word[j] >> 16 * e);
                number[2 * j + e] = as_float(*reinterpret_cast<const T*>(&half));
            }
        const QuantizedPart<Part::channels> part(
            number, kept, factors == nullptr ? nullptr : factors + t_ * Part::channels, (1 << (bits - 1)) - 1);
        int8_t* const row = integers() + token_ * integer_stride + t_ * Part::channels;
#pragma unroll
        for (int c = 0; c < Part::channels; ++c) row[c] = part.values[c];
        if (t_ == 0) reinterpret_cast<uint16_t*>(image() + scale_start)[scale_place(token_)] = part.scale;
        __syncthreads();
    }

    __device__ __forceinline__ int8_t* integers() {
        return reinterpret_cast<int8_t*>(memory_.rows);
    }
    __device__ __forceinline__ uint8_t* image() {
        return reinterpret_cast<uint8_t*>(memory_.values);
    }

    __device__ __forceinline__ void copy_image(uint8_t* block, uint32_t bytes) {
        __syncthreads();
        copy(block, image(), bytes);
        __syncthreads();
    }

    template <class Choose>
    __device__ __forceinline__ void store_balanced(uint8_t* block, ValueOrder order, int kept, Choose&& choose) {
        const auto* const rows = reinterpret_cast<const uint16_t*>(memory_.rows);
        if (order.keys)
            write_balanced<HeadDim, true>(image(), kept, rows, Memory::stride, choose);
        else
            write_balanced<HeadDim, false>(image(), kept, rows, Memory::stride, choose);
        copy(block, image(), BalancedGeometry<HeadDim>::value_start(kept) + 4 * HeadDim * kept);
        __syncthreads();
    }

    static __device__ __forceinline__ void copy(uint8_t* target, const void* source, uint32_t bytes) {
        for (uint32_t i = threadIdx.x; i < bytes / 16; i += block_threads)
            reinterpret_cast<uint4*>(target)[i] = static_cast<const uint4*>(source)[i];
    }

    __device__ __forceinline__ void read(const T* row, bool aligned) {
        const T* const own = row + t_ * Part::channels;
        if (Part::words % 4 == 0 && aligned) {
#pragma unroll
            for (int j = 0; j < Part::words / 4; ++j) {
                const uint4 v = __ldcs(reinterpret_cast<const uint4*>(own) + j);
                part_.word[4 * j] = v.x, part_.word[4 * j + 1] = v.y, part_.word[4 * j + 2] = v.z,
                               part_.word[4 * j + 3] = v.w;
            }
        } else if constexpr (Part::paired) {
            const uint16_t* const elements = reinterpret_cast<const uint16_t*>(own);
#pragma unroll
            for (int j = 0; j < Part::words; ++j) part_.word[j] = elements[2 * j] | uint32_t{elements[2 * j + 1]} << 16;
        } else {
#pragma unroll
            for (int j = 0; j < Part::words; ++j) part_.word[j] = reinterpret_cast<const uint32_t*>(own)[j];
        }
    }

    // Ends with a barrier.
    __device__ __forceinline__ void clear_bits() {
        for (int i = threadIdx.x; i < block_tokens * words; i += block_threads) (&memory_.layout.bits[0][0])[i] = 0;
        __syncthreads();
    }

    __device__ __forceinline__ void set_bits(typename Part::Mask mask) {
        if constexpr (Part::channels % 32 == 0) {
#pragma unroll
            for (int j = 0; j < Part::channels / 32; ++j)
                memory_.layout.bits[token_][Part::channels / 32 * t_ + j] =
                    static_cast<uint32_t>(mask >> (31 * j) >> j);
        } else {
            // Quarters do not end at words: they are put together in shared memory.
            clear_bits();
            const int first = t_ * Part::channels;
            const uint64_t shifted = static_cast<uint64_t>(mask) << first % 32;
            atomicOr(&memory_.layout.bits[token_][first / 32], static_cast<uint32_t>(shifted));
            if (shifted >> 32 != 0)
                atomicOr(&memory_.layout.bits[token_][first / 32 + 1], static_cast<uint32_t>(shifted >> 32));
        }
        __syncthreads();
    }

    Memory& memory_;
    Part part_;
    const int token_, t_;
    bool present_ = false, marks_absent_ = false;
};

}  // namespace mustafar::cuda
