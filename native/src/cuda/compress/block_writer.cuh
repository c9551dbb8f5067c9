// Prunes 32 rows and writes them as one block: the work of a thread block of 128 threads.
#pragma once

#include "cuda/compress/balanced_integers.cuh"
#include "cuda/compress/plain_integers.cuh"
#include "cuda/compress/unstructured_integers.cuh"

namespace mustafar::cuda {

// What decides which channels of a block are kept: a caller's bitmap, or the pattern by magnitude or by an importance of the
// head's channels. The same for all threads but for their rows.
struct Choice {
    bool by_bitmap = false;
    const uint32_t* bits = nullptr;     // the bitmap's row of this thread's token; null: there is no such token
    const float* importance = nullptr;  // [head_dim] or null
};

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
        T rows[block_tokens * stride];
        // The image of a block: its bitmap, if it has one, and its values.
        typename Layout::Memory layout;
        alignas(16) T values[block_tokens * HeadDim];
        Importance<HeadDim> importance;
        alignas(16) ChannelFactors<HeadDim> factors;
    };

    __device__ __forceinline__ explicit BlockWriter(Memory& memory)
        : memory_(memory), token_(static_cast<int>(threadIdx.x) >> 2), t_(threadIdx.x & 3) {}

    int __device__ __forceinline__ token() const { return token_; }

    // Reads this lane's quarter of its token's row; null: there is no such token.
    __device__ __forceinline__ void load(const T* row, bool aligned) {
        present_ = row != nullptr;
        if (present_)
            read(row, aligned);
        else
            part_ = {};
        largest_ = part_.largest();
    }

    // Puts the rows into shared memory, complete after the next barrier.
    __device__ __forceinline__ void share_rows() {
        uint32_t* const own = reinterpret_cast<uint32_t*>(memory_.rows + token_ * Memory::stride + t_ * Part::channels);
#pragma unroll
        for (int j = 0; j < Part::words; ++j) own[j] = part_.word[j];
    }

    // Ranks channels by their magnitude times this importance: [head_dim], or null. Ends without a barrier.
    __device__ __forceinline__ void rank_by(const float* importance) {
        scores_ = importance != nullptr;
        if (scores_) memory_.importance.load(importance);
    }

    // Bitmap of the rows by the pattern; ends with all bits visible to all threads. Rows have to be shared for balanced patterns, an
    // importance and f32: magnitudes of 16 bits are ranked in registers.
    __device__ __forceinline__ void select(int32_t pattern, uint32_t keep) {
        if constexpr (HeadDim % 64 == 0)
            if (is_balanced(pattern)) {
                const bool keys = pattern == MUSTAFAR_PATTERN_BALANCED_KEYS;
                const int kept = balanced_kept(HeadDim, keep);
                clear_bits();
                if (scores_) {
                    const int end = __syncthreads_count(present_) / 4;  // lanes of a token
                    select_balanced<HeadDim, true>(
                        memory_.rows, Memory::stride, keys, kept, memory_.layout.bits,
                        [&](T value, int token, int channel) {
                            return token < end ? score(as_float(value), *memory_.importance.from(channel)) : 0u;
                        });
                } else {
                    select_balanced<HeadDim, !Part::paired>(memory_.rows, Memory::stride, keys, kept,
                                                            memory_.layout.bits,
                                                            [](T value, int, int) { return Part::key(value); });
                }
                __syncthreads();
                marks_absent_ = true;
                return;
            }
        const typename Part::Mask mask = scores_ ? by_scores(keep) : by_magnitudes(keep);
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

    // Prunes and writes what is kept, `keep` values of each token. factors: channel scales of integer keys, or null.
    // MayBeIntegers: else values are native, which takes fewer registers.
    template <bool MayBeIntegers>
    __device__ __forceinline__ void compress(const Choice& choice, int32_t pattern, uint32_t keep, uint8_t* block,
                                             ValueOrder order, const float* factors) {
        const bool integers = MayBeIntegers && order.integer_bits != 0;
        rank_by(choice.importance);
        // Visible after the barrier with which every choice of channels ends.
        if (integers && factors != nullptr) memory_.factors.load(factors);
        // Magnitudes of 16 bits are ranked and quantised in registers.
        if (!integers || !Part::paired || scores_ || is_balanced(pattern)) share_rows();
        if constexpr (has_fragments)
            if (order.arrangement == Arrangement::balanced && !choice.by_bitmap && ranks_units()) {
                if (!integers) return compress_balanced(balanced_kept(HeadDim, keep), block, order);
                if constexpr (MayBeIntegers) {
                    if (order.keys)
                        compress_positions<true>(keep, block, order, factors != nullptr);
                    else
                        compress_positions<false>(keep, block, order, factors != nullptr);
                }
                return;
            }
        if (choice.by_bitmap)
            take_bits(choice.bits);
        else if (integers && order.arrangement == Arrangement::all && order.fragment)
            __syncthreads();
        else
            select(pattern, keep);
        if (!integers) return store(block, order, block_tokens * keep);
        if constexpr (MayBeIntegers) {
            hide_absent();
            const int scale_start = fixed_scale_start(order, keep);
            const bool largest_is_kept =
                order.arrangement == Arrangement::all ||
                (pattern == MUSTAFAR_PATTERN_UNSTRUCTURED && !choice.by_bitmap && !scores_ && factors == nullptr);
            const auto quantized = quantize(largest_is_kept ? ~typename Part::Mask{0} : own_bits(), factors != nullptr,
                                            order, scale_start, order.rotated);
            if constexpr (has_fragments && Layout::units_are_rows(true))
                if (order.fragment && order.arrangement == Arrangement::bitmap && order.keys) {
                    return store_unstructured(typename Layout::template UnitValues<true, uint8_t>(quantized.word),
                                              block, order, keep, scale_start);
                }
            share_integers(quantized);
            store_integers(block, order, keep, scale_start);
        }
    }

    // Writes what the bitmap has to a block with room for so many bytes behind it.
    template <bool MayBeIntegers>
    __device__ __forceinline__ void compress_selected(uint8_t* block, ValueOrder order, uint32_t bytes,
                                                      const float* factors) {
        if constexpr (!MayBeIntegers)
            return store(block, order, min(static_cast<uint32_t>(bytes / sizeof(T)), uint32_t{block_tokens * HeadDim}));
        const int largest = header_bytes(order) + block_tokens * HeadDim * order.integer_bits / 8;
        const int scale_start = min(header_bytes(order) + static_cast<int>(bytes) - 2 * block_tokens, largest);
        if (scale_start < header_bytes(order)) return;  // a table of offsets that has no room for this block
        if (factors != nullptr) memory_.factors.load(factors);
        __syncthreads();
        share_integers(quantize(own_bits(), factors != nullptr, order, scale_start, false));
        store_integers(block, order, 0, scale_start);
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
        hide_absent();
        const uint32_t count = pack(order);
#pragma unroll 1
        for (uint32_t i = count + threadIdx.x; i < capacity; i += block_threads) memory_.values[i] = T(0.0f);
        copy_image(block, order, header_bytes(order) + capacity * sizeof(T));
    }

    // Of a block that is put together value by value, with the bitmap in memory.layout and a barrier before it is stored:
    // begins it, ...
    __device__ __forceinline__ void clear() {
        for (int i = threadIdx.x; i < block_tokens * Memory::stride; i += block_threads) memory_.rows[i] = T(0.0f);
    }
    // ... takes a native value or an integer, ...
    __device__ __forceinline__ void put(int token, int channel, T value, int) {
        memory_.rows[token * Memory::stride + channel] = value;
    }
    __device__ __forceinline__ void put(int token, int channel, int value, int bits) {
        integers()[token * integer_stride + channel] = static_cast<uint8_t>(SignedByte{bits}.encode(value));
    }
    // ... hides the tokens from `end` on, and ends with a barrier.
    __device__ __forceinline__ void end_at(int end) {
        present_ = token_ < end;
        marks_absent_ = true;
        hide_absent();
    }

    // Writes integers that were put there. scale(token): f16.
    template <class Scale>
    __device__ __forceinline__ void store_integers(uint8_t* block, ValueOrder order, uint32_t keep, Scale&& scale) {
        const int scale_start = fixed_scale_start(order, keep);
        const SignedByte byte = byte_of(order, token_);
        for (int j = 0; j < Part::channels / 4; ++j) own_integers()[j] = byte.moved(own_integers()[j]);
        if (t_ == 0) put_scale(order, scale_start, present_ ? scale(token_) : uint16_t{0});
        __syncthreads();
        store_integers(block, order, keep, scale_start);
    }

private:
    static constexpr int integer_stride = HeadDim + 4;  // bytes

    static __device__ __forceinline__ int header_bytes(ValueOrder order) {
        return order.arrangement == Arrangement::all ? 0 : bitmap_bytes(HeadDim);
    }
    // Positions take as much room as a bitmap.
    static __device__ __forceinline__ int fixed_scale_start(ValueOrder order, uint32_t keep) {
        return header_bytes(order) + block_tokens * static_cast<int>(keep) * order.integer_bits / 8;
    }

    // Puts the values that the bitmap has in their order. Returns their number.
    __device__ __forceinline__ uint32_t pack(ValueOrder order) {
        if constexpr (has_fragments)
            if (order.fragment) return order.keys ? pack_fragments<true>() : pack_fragments<false>();
        return Layout::for_each_value(order, memory_.layout, [&](uint32_t index, int token, int channel) {
            memory_.values[index] = memory_.rows[token * Memory::stride + channel];
        });
    }

    template <bool Keys>
    __device__ __forceinline__ uint32_t pack_fragments() {
        const typename Layout::template UnitValues<Keys, uint16_t> values(
            reinterpret_cast<const uint16_t*>(memory_.rows), Memory::stride);
        const typename Layout::Unit unit(Keys, memory_.layout);
        values.pack(unit, reinterpret_cast<uint16_t*>(memory_.values));
        return unit.whole;
    }

    __device__ __forceinline__ typename Part::Mask by_magnitudes(uint32_t keep) const {
        if constexpr (Part::paired)
            return select_by_keys(part_.keys(largest_), keep, t_);
        else
            return by_halves(keep, [&](T value, int) { return Part::key(value); });
    }

    __device__ __forceinline__ typename Part::Mask by_scores(uint32_t keep) const {
        __syncthreads();
        const float* const importance = memory_.importance.from(t_ * Part::channels);
        return by_halves(keep, [&](T value, int c) { return score(as_float(value), importance[c]); });
    }

    // key(value, channel of this lane): 31 bits.
    template <class Key>
    __device__ __forceinline__ typename Part::Mask by_halves(uint32_t keep, Key&& key) const {
        const T* const own = memory_.rows + token_ * Memory::stride + t_ * Part::channels;
        return select_by_halves(upper_halves<HeadDim>([&](int c) { return key(part_.value(c), c); }), keep, t_,
                                [&](int c) { return key(own[c], c); });
    }

    // Whether units are ranked by themselves: not if an importance that is not finite would raise tokens that do not exist.
    __device__ __forceinline__ bool ranks_units() const {
        return !scores_ || __syncthreads_and(present_);
    }

    // The mask of what a unit keeps.
    __device__ __forceinline__ uint32_t choose(const BalancedUnit<HeadDim>& unit, const UnitElements& elements,
                                               int kept) const {
        return scores_ ? largest_scores(elements, unit, memory_.rows, Memory::stride, memory_.importance, kept)
                       : largest_elements<T>(elements, kept);
    }

    __device__ __forceinline__ void compress_balanced(int kept, uint8_t* block, ValueOrder order) {
        __syncthreads();
        store_balanced(block, order, kept,
                       [&](const auto& unit, const UnitElements& elements) { return choose(unit, elements, kept); });
    }

    template <bool Keys>
    __device__ __forceinline__ void compress_positions(uint32_t keep, uint8_t* block, ValueOrder order, bool scaled) {
        clear_bits();
        const OwnUnits<HeadDim, Keys> units(
            reinterpret_cast<const uint16_t*>(memory_.rows), Memory::stride, memory_.layout.bits,
            [&](const auto& unit, const UnitElements& elements) { return choose(unit, elements, most_balanced); });
        __syncthreads();
        const int scale_start = fixed_scale_start(order, keep);
        share_integers(quantize(own_bits(), scaled, order, scale_start, false));
        write_units(units, order);
        copy_image(block, order, scale_start + 2 * block_tokens);
    }

    template <class Units>
    __device__ __forceinline__ void write_units(const Units& units, ValueOrder order) {
        if (order.integer_bits == 4)
            units.template write<4>(values(), integers(), integer_stride);
        else
            units.template write<8>(values(), integers(), integer_stride);
    }

    // Integers are in their rows, their bitmap and scales where they belong; all visible.
    __device__ __forceinline__ void store_integers(uint8_t* block, ValueOrder order, uint32_t keep, int scale_start) {
        if (!order.fragment) {
            write_plain_integers<HeadDim>(values(), scale_start - header_bytes(order), order, memory_.layout,
                                          integers(), integer_stride);
        } else if constexpr (has_fragments) {
            const bool has_bitmap = order.arrangement == Arrangement::bitmap;
            if (has_bitmap && order.keys)
                return store_unstructured(shared_unit<true>(), block, order, keep, scale_start);
            if (has_bitmap) return store_unstructured(shared_unit<false>(), block, order, keep, scale_start);
            if (order.arrangement == Arrangement::balanced && order.keys)
                write_units(OwnUnits<HeadDim, true>(memory_.layout.bits), order);
            else if (order.arrangement == Arrangement::balanced)
                write_units(OwnUnits<HeadDim, false>(memory_.layout.bits), order);
            else if (order.integer_bits == 4)
                write_integers<HeadDim, 4>(values(), order.keys, integers(), integer_stride);
            else
                write_integers<HeadDim, 8>(values(), order.keys, integers(), integer_stride);
        }
        copy_image(block, order, scale_start + 2 * block_tokens);
    }

    template <bool Keys>
    __device__ __forceinline__ auto shared_unit() {
        return typename Layout::template UnitValues<Keys, uint8_t>(integers(), integer_stride);
    }

    template <bool Keys>
    __device__ __forceinline__ void store_unstructured(const typename Layout::template UnitValues<Keys, uint8_t>& own,
                                                       uint8_t* block, ValueOrder order, uint32_t keep,
                                                       int scale_start) {
        uint8_t* const second_values = values() + block_tokens * HeadDim;
        write_unstructured_integers<HeadDim, Keys>(values(), second_values, IntegerByte{order.integer_bits}, keep,
                                                   memory_.layout, own);
        const uint32_t first = bitmap_bytes(HeadDim) / 16, end = order.integer_bits == 4 ? scale_start / 16 : 0;
        copy_image(block, order, scale_start + 2 * block_tokens, [&](uint4& v, uint32_t i) {
            if (i < first || i >= end) return;
            const uint4 second = reinterpret_cast<const uint4*>(second_values)[i - first];
            v.x |= second.x, v.y |= second.y, v.z |= second.z, v.w |= second.w;
        });
    }

    // What an integer of a token is until its block is put together.
    static __device__ __forceinline__ SignedByte byte_of(ValueOrder order, int token) {
        if constexpr (has_fragments)
            if (order.fragment && order.arrangement == Arrangement::bitmap)
                return unstructured_integer<HeadDim>(IntegerByte{order.integer_bits}, order.keys, token);
        return SignedByte{order.integer_bits};
    }

    __device__ __forceinline__ void put_scale(ValueOrder order, int scale_start, uint16_t scale) {
        reinterpret_cast<uint16_t*>(image(order) + scale_start)[order.fragment ? scale_place(token_) : token_] = scale;
    }

    // Zeros of tokens that do not exist fill up the units of balanced patterns, but a bitmap does not show them.
    __device__ __forceinline__ void hide_absent() {
        if (!marks_absent_) return;
        if (!present_)
            for (int j = t_; j < words; j += 4) memory_.layout.bits[token_][j] = 0;
        __syncthreads();
    }

    // This lane's channels in the bitmap, whose further bits are of no interest.
    __device__ __forceinline__ typename Part::Mask own_bits() const {
        const int first = t_ * Part::channels, word = first / 32;
        const uint32_t* const row = memory_.layout.bits[token_];
        const uint64_t both = row[word] | (word + 1 < words ? uint64_t{row[word + 1]} << 32 : 0);
        return static_cast<typename Part::Mask>(both >> first % 32);
    }

    using Quantized = QuantizedPart<Part::channels, typename Part::Mask>;

    // Integers of this lane's channels, of which some are kept. scaled: by the factors in memory. Puts the scales into the image.
    __device__ __forceinline__ Quantized quantize(typename Part::Mask kept, bool scaled, ValueOrder order,
                                                  int scale_start, bool rotated) {
        float number[Part::channels];
#pragma unroll
        for (int c = 0; c < Part::channels; ++c) number[c] = as_float(reinterpret_cast<const T*>(part_.word)[c]);
        const Quantized part(number, largest_, kept, scaled, memory_.factors, t_, byte_of(order, token_), rotated);
        if (t_ == 0) put_scale(order, scale_start, part.scale);
        return part;
    }

    // Replaces the rows, which nobody reads any more, by integers. Ends with a barrier.
    __device__ __forceinline__ void share_integers(const Quantized& part) {
#pragma unroll
        for (int j = 0; j < Part::channels / 4; ++j) own_integers()[j] = part.word[j];
        __syncthreads();
    }

    // SignedBytes.
    __device__ __forceinline__ uint8_t* integers() {
        return reinterpret_cast<uint8_t*>(memory_.rows);
    }
    // This lane's, four in a word.
    __device__ __forceinline__ uint32_t* own_integers() {
        return reinterpret_cast<uint32_t*>(integers() + token_ * integer_stride + t_ * Part::channels);
    }
    __device__ __forceinline__ uint8_t* values() {
        return reinterpret_cast<uint8_t*>(memory_.values);
    }
    __device__ __forceinline__ uint8_t* image(ValueOrder order) {
        static_assert(offsetof(Memory, values) - offsetof(Memory, layout.bits) == bitmap_bytes(HeadDim));
        return order.arrangement == Arrangement::bitmap ? reinterpret_cast<uint8_t*>(memory_.layout.bits) : values();
    }

    // Between barriers. complete(v, i): adds to the 16 bytes with number i.
    template <class Complete>
    __device__ __forceinline__ void copy_image(uint8_t* block, ValueOrder order, uint32_t bytes, Complete&& complete) {
        __syncthreads();
        const auto* const source = reinterpret_cast<const uint4*>(image(order));
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < bytes / 16; i += block_threads) {
            uint4 v = source[i];
            complete(v, i);
            reinterpret_cast<uint4*>(block)[i] = v;
        }
        __syncthreads();
    }
    __device__ __forceinline__ void copy_image(uint8_t* block, ValueOrder order, uint32_t bytes) {
        copy_image(block, order, bytes, [](uint4&, uint32_t) {});
    }

    template <class Choose>
    __device__ __forceinline__ void store_balanced(uint8_t* block, ValueOrder order, int kept, Choose&& choose) {
        const auto* const rows = reinterpret_cast<const uint16_t*>(memory_.rows);
        if (order.keys)
            write_balanced<HeadDim, true>(values(), kept, rows, Memory::stride, choose);
        else
            write_balanced<HeadDim, false>(values(), kept, rows, Memory::stride, choose);
        copy_image(block, order, BalancedGeometry<HeadDim>::value_start(kept) + 4 * HeadDim * kept);
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
#pragma unroll 1
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
    float largest_ = 0.0f;  // magnitude of this lane's channels
    bool present_ = false, marks_absent_ = false, scores_ = false;
};

}  // namespace mustafar::cuda
