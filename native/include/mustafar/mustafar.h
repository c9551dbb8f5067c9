/*
 * mustafar.h - decode attention on a pruned, bitmap-compressed KV cache
 *
 * The method is Mustafar (Joo et al., NeurIPS 2025, arXiv 2505.22913): each token's key and value vector keeps only its
 * channels of largest magnitude, stored as a bitmap plus the packed non-zeros, and attention is computed directly on
 * that form. Kept values are stored unquantised or as 8- or 4-bit integers. All channels can be kept, too.
 *
 * The library is a plain C ABI over raw pointers. It allocates no memory that a caller sees: the caller provides every
 * output, and a query returns its size. No result depends on earlier calls. For the life of the process the library
 * keeps: the text of each thread's last error; idle worker threads of the CPU back end; libmustafar_cuda, once a call
 * has named a CUDA device; and on CUDA each device's properties, which kernels are prepared for it, and each thread's
 * last plan of an attention call.
 *
 * From simple to advanced:
 *   1 library     version, errors, what this processor supports
 *   2 format      the layout of compressed tokens in memory
 *   3 tensors     prune, compress, decompress
 *   4 products    key scores (K q) and value sums (p V)
 *   5 attention   fused decode attention over compressed blocks and a dense tail
 *   6 cache       append tokens, compressing those that leave the recent window
 *   7 step        the rest of a decode step: norms, rotation, projections, sampling (in step.h)
 *   8 graphs      CUDA: a whole step as one launch (in step.h)
 *
 * Conventions
 *   - Tensors are [batch, heads, tokens, head_dim]; head_dim is contiguous, the other strides are free and are counted
 *     in elements. num_heads is a multiple of num_kv_heads (MHA, GQA, MQA): query head h reads KV head
 *     h / (num_heads / num_kv_heads).
 *   - All pointers of one call point to memory of the context's device, except the argument structs themselves.
 *     On CUDA the call queues its work on the context's stream and returns at once.
 *   - No tensor and no table spans more than 2^56 bytes, and no call has 2^31 or more query rows.
 *   - Every function returns a status. After anything but MUSTAFAR_STATUS_OK, mustafar_last_error has a text. Unless it
 *     says otherwise, outputs may then be partly written and must not be used. Inputs are never changed.
 *   - Functions may be called from any thread. Calls that write the same memory must not overlap in time.
 */
#ifndef MUSTAFAR_H
#define MUSTAFAR_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(MUSTAFAR_BUILD)
#define MUSTAFAR_API __declspec(dllexport)
#else
#define MUSTAFAR_API __declspec(dllimport)
#endif
#else
#define MUSTAFAR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------- 1 library -- */

/* The ABI version that this header describes. Do not use it with a library that reports another version. */
typedef enum mustafar_abi { MUSTAFAR_ABI_VERSION = 7 } mustafar_abi;

typedef enum mustafar_status {
    MUSTAFAR_STATUS_OK = 0,
    /* An argument is out of its documented range, or two arguments contradict each other. */
    MUSTAFAR_STATUS_INVALID_ARGUMENT = 1,
    /* The arguments are valid but this build, device or processor does not support them. */
    MUSTAFAR_STATUS_UNSUPPORTED = 2,
    /* Compressed data is inconsistent: a bitmap with more set bits than its block holds values, or a page number or
       offset outside the slabs. Nothing outside the data's own bounds was read. */
    MUSTAFAR_STATUS_CORRUPT_DATA = 3,
    /* A buffer is smaller than the matching size query reports. */
    MUSTAFAR_STATUS_BUFFER_TOO_SMALL = 4,
    MUSTAFAR_STATUS_OUT_OF_MEMORY = 5,
    /* The device refused a launch or lost its context; the text includes the driver's message. */
    MUSTAFAR_STATUS_DEVICE_ERROR = 6,
    MUSTAFAR_STATUS_INTERNAL_ERROR = 7
} mustafar_status;

typedef enum mustafar_device { MUSTAFAR_DEVICE_CPU = 0, MUSTAFAR_DEVICE_CUDA = 1 } mustafar_device;

/* Instruction set variants of the CPU back end. */
typedef enum mustafar_cpu_variant {
    /* The fastest one on this processor, or the one that the environment variable MUSTAFAR_CPU_VARIANT names (scalar,
       avx2, avx512core, avx512, avx512bf16, neon); calls are UNSUPPORTED if the processor does not support that one. */
    MUSTAFAR_CPU_VARIANT_AUTO = 0,
    MUSTAFAR_CPU_VARIANT_SCALAR = 1,
    /* AVX2, FMA, F16C, BMI2 */
    MUSTAFAR_CPU_VARIANT_AVX2 = 2,
    /* AVX-512 F, BW, DQ, VL, VBMI2, VPOPCNTDQ, VNNI */
    MUSTAFAR_CPU_VARIANT_AVX512 = 3,
    /* The above and AVX512_BF16 */
    MUSTAFAR_CPU_VARIANT_AVX512_BF16 = 4,
    /* Advanced SIMD of 64-bit ARM */
    MUSTAFAR_CPU_VARIANT_NEON = 5,
    /* AVX-512 F, BW, DQ, VL, and VNNI for integers if available: Skylake-X, Cascade Lake, Cooper Lake */
    MUSTAFAR_CPU_VARIANT_AVX512_CORE = 6
} mustafar_cpu_variant;

/* Where and how a call runs. */
typedef struct mustafar_context {
    int32_t device;       /* mustafar_device */
    int32_t device_index; /* CUDA ordinal; 0 on the CPU */
    int32_t num_threads;  /* CPU: maximum number of threads, >= 1; 0: one per processor */
    int32_t cpu_variant;  /* mustafar_cpu_variant */
    void* stream;         /* CUDA: a cudaStream_t, null for the default stream; CPU: null */
} mustafar_context;

/* ABI version the library was built with (mustafar_abi). */
MUSTAFAR_API int32_t mustafar_abi_version(void);

typedef enum mustafar_abi_kind {
    MUSTAFAR_ABI_KIND_STRUCT = 0,
    MUSTAFAR_ABI_KIND_FIELD = 1,
    MUSTAFAR_ABI_KIND_ENUMERATOR = 2
} mustafar_abi_kind;

/* How the compiler that built the library laid out one declaration of this header. */
typedef struct mustafar_abi_entry {
    int32_t kind;      /* mustafar_abi_kind */
    int32_t size;      /* bytes */
    int32_t alignment; /* bytes */
    int32_t value;     /* field: its offset in bytes; enumerator: its value; struct: 0 */
    const char* type;  /* the struct or enum; null for an enumerator of an enum without a name */
    const char* name;  /* the field or enumerator; null for a struct */
} mustafar_abi_entry;

/* Every struct, field and enumerator of this header, so that bindings in other languages can check themselves. *count
   receives the number of entries. The result is a static table, or null if count is null. */
MUSTAFAR_API const mustafar_abi_entry* mustafar_abi_table(int32_t* count);

/* Semantic version of the library, for example "0.1.0"; a static string. */
MUSTAFAR_API const char* mustafar_version(void);

/* Details of this thread's last call that did not return OK: the argument, what was expected, what came. Never null;
   valid until the thread's next call. */
MUSTAFAR_API const char* mustafar_last_error(void);

/* Variants that this processor supports: bit v is set for mustafar_cpu_variant v (bit 0, AUTO, always). */
MUSTAFAR_API uint32_t mustafar_cpu_variants(void);

/* The variant that AUTO stands for in this process. AUTO itself if the environment variable MUSTAFAR_CPU_VARIANT names
   no variant that the processor supports; mustafar_last_error then has the details. */
MUSTAFAR_API int32_t mustafar_default_cpu_variant(void);

/* The limits of the functions below. */
typedef struct mustafar_limits {
    int32_t block_tokens;     /* MUSTAFAR_BLOCK_TOKENS */
    int32_t balanced_unit;    /* elements of a unit of the balanced patterns: 16 */
    int32_t fewest_balanced;  /* elements that they keep of a unit, at least ... */
    int32_t most_balanced;    /* ... and at most */
    int32_t max_group_size;   /* tokens */
    int32_t max_local_window; /* tokens */
    int32_t max_lookahead;    /* tokens */
    int32_t num_head_dims;
    const int32_t* head_dims; /* [num_head_dims] ascending; a static table */
} mustafar_limits;

MUSTAFAR_API int32_t mustafar_get_limits(mustafar_limits* limits);

/* ----------------------------------------------------------------------------------------------------- 2 format -- */

typedef enum mustafar_dtype { MUSTAFAR_DTYPE_F32 = 0, MUSTAFAR_DTYPE_F16 = 1, MUSTAFAR_DTYPE_BF16 = 2 } mustafar_dtype;

/*
 * How kept values are stored. The integer formats have one f16 scale per token; an integer q stands for q * scale,
 * which is exact in f32. With Q = 127 or 7, a token's row x is quantised as follows, in f32, rounding to nearest, ties
 * to even:
 *   scale = f16(max |x[c]| / Q) over the kept channels; 65504 where that would be infinite
 *   q[c]  = x[c] / scale rounded to an integer, at least -Q and at most Q; 0 where scale is 0
 * A row in which any channel, kept or pruned, is infinite or NaN gets the scale NaN (0x7e00) and q = 0, so its kept
 * channels read as NaN. Tokens of a block past the last one have scale 0. All devices write the same bits.
 */
typedef enum mustafar_value_format {
    MUSTAFAR_VALUE_FORMAT_NATIVE = 0, /* in the tensor's dtype */
    MUSTAFAR_VALUE_FORMAT_INT8 = 1,   /* two's complement, -127 ... 127 */
    MUSTAFAR_VALUE_FORMAT_INT4 =
        2 /* sign and magnitude: bit 3 is the sign of bits 0 ... 2; -7 ... 7, no negative zero */
} mustafar_value_format;

/* Which channels of a token are kept. */
typedef enum mustafar_pattern {
    /* The `keep` channels of largest magnitude, exactly `keep` in every token; among equal magnitudes the lower
       channel. NaNs are equal to each other and larger than any number, infinity is larger than any finite one. +0 and
       -0 are equal, and are kept if a token has fewer than `keep` non-zero channels. (Mustafar, section 3.) */
    MUSTAFAR_PATTERN_UNSTRUCTURED = 0,
    /*
     * Balanced patterns keep exactly n of every unit of 16 and at most 2 of every group of 4, which the sparse tensor
     * cores of GPUs read almost as stored. A unit is four groups of four. In each group only the two largest compete;
     * of those eight, the n largest are kept. Magnitudes are ordered as above; among equal ones in a unit the lower
     * token wins, then the lower channel. n = 16 * keep / head_dim is 5, 6, 7 or 8 (8 is the 2:4 pattern); head_dim is
     * 64, 128 or 256; FIXED only.
     *
     * Keys: a unit is 16 channels of one token, so every token keeps exactly `keep`. Group i of unit 4p + j has the
     * channels 16p + j + 4i + m * head_dim / 4, m = 0 ... 3: neighbouring channels, which tend to be large together,
     * are in different groups.
     */
    MUSTAFAR_PATTERN_BALANCED_KEYS = 1,
    /* Values: a unit is 4 neighbouring channels (starting at a multiple of 4) of 4 consecutive tokens (likewise); a
       group is one of its channels. A block of 32 tokens has 32 * keep values, a token any number. Tokens past the last
       one count as zeros and are never marked in a bitmap. */
    MUSTAFAR_PATTERN_BALANCED_VALUES = 2,
    /* Every channel is kept: keep is head_dim, and there is no bitmap. FIXED only. */
    MUSTAFAR_PATTERN_ALL = 3,
    /* Any channels, at most 32 * keep in the 32 tokens of a block together; tokens may keep different numbers. No rule
       selects the channels, so compressing takes a bitmap. FIXED only, and always in plain order. */
    MUSTAFAR_PATTERN_MASK = 4,
    /* Like ALL, for integer keys with head_dim 64, 128 or 256. The stored key is the key divided by its channel scales
       and then multiplied by the Hadamard matrix H, where H[i][j] is (-1)^popcount(i & j) / sqrt(head_dim). Queries are
       multiplied by H as well before they meet it, so scores do not change; H is its own inverse. Sums are made in f32,
       from neighbouring channels up to halves of the row. A row whose rotated numbers are not finite counts as not
       finite. */
    MUSTAFAR_PATTERN_ALL_ROTATED = 5
} mustafar_pattern;

/*
 * Selection is separate from packing. A pattern ranks channels by magnitude or, with an importance, by the score
 * |value * importance|: the product of the value and the channel's f32 importance, rounded to f32. Scores are ordered
 * like magnitudes, so equal importances select the same channels as none, and a channel of importance 0 is kept only if
 * nothing better is left. A caller that selects by itself passes a bitmap instead, laid out as by mustafar_prune. It
 * has exactly as many bits as the pattern keeps: `keep` in each token (UNSTRUCTURED); n in each unit and at most 2 in
 * each group (balanced; a unit of values with tokens past the last one: at most n); at most 32 * keep in each block
 * (MASK). The CPU refuses any other with INVALID_ARGUMENT. CUDA can't inspect it before the work runs: there another
 * bitmap produces meaningless blocks, but nothing outside of them is touched. On CUDA a bitmap of a balanced pattern
 * must cover whole blocks of 32 tokens. Either way, values are stored unchanged.
 */

/* How blocks are placed one after another. */
typedef enum mustafar_layout {
    /* Every block has room for 32 * keep values, so block i starts at i * mustafar_block_bytes. */
    MUSTAFAR_LAYOUT_FIXED = 0,
    /* Any number of values per token: block i starts at 16 * offsets[i] bytes. */
    MUSTAFAR_LAYOUT_OFFSETS = 1
} mustafar_layout;

/* Order of the values inside a block. */
typedef enum mustafar_order {
    /* By token, then by channel. The order on disk. */
    MUSTAFAR_ORDER_PLAIN = 0,
    /* The orders in which a warp's lanes consume keys and values; see docs/format.md. CUDA only, for 16-bit dtypes and
       head_dim 64 and 128: pruned native values, and integers. Other FIXED formats, and OFFSETS, are plain whatever
       this says. In these orders balanced patterns have the operands of sparse matrix products instead of a bitmap;
       integers with n < 8 are stored like unstructured ones. */
    MUSTAFAR_ORDER_KEY_FRAGMENT = 1,
    MUSTAFAR_ORDER_VALUE_FRAGMENT = 2,
    /* The quad orders, in which the vector instructions of CPUs consume keys and values; see docs/format.md. CPU only,
       for integers of MUSTAFAR_PATTERN_ALL; other formats are plain whatever this says. */
    MUSTAFAR_ORDER_KEY_QUADS = 3,
    MUSTAFAR_ORDER_VALUE_QUADS = 4
} mustafar_order;

enum {
    MUSTAFAR_BLOCK_TOKENS = 32,   /* tokens in a block */
    MUSTAFAR_PAGE_PADDING = 64,   /* readable padding bytes at the end of a slab; their content does not matter */
    MUSTAFAR_PAGE_ALIGNMENT = 64, /* alignment of a slab; pages that start at such a multiple are read fastest */
    /* Size of the counters at the start of attention's workspace. */
    MUSTAFAR_WORKSPACE_COUNTER_BYTES = 16384
};

/*
 * One block holds 32 consecutive tokens of one (sequence, KV head), separately for keys and values, in sections:
 *   - bitmap: 32 rows of w = ceil(head_dim / 32) little-endian u32; channel c of token t is bit c % 32 of word
 *     t * w + c / 32. Bits past head_dim, and rows past the last token, are zero. MUSTAFAR_PATTERN_ALL has none.
 *   - values: the kept channels, packed in `order`. There are no gaps between 4-bit values: value i is nibble i % 2 of
 *     byte i / 2, low nibble first. Rounded up to 16 bytes.
 *   - scales: 32 f16, one per token; only with integer values. They are a block's last 64 bytes.
 * The values of FIXED blocks take 4 * keep * b bytes at b bits each (native values of balanced patterns in fragment
 * order with n < 8 have 1.5 * head_dim bytes more before them). For head_dim 128 a FIXED block of 16-bit values is
 * 512 + 64 * keep bytes: 56.3 % of dense at keep 64 and 37.5 % at 40. With all channels kept it is 4160 bytes (50.8 %)
 * for 8-bit and 2112 (25.8 %) for 4-bit values.
 */
typedef struct mustafar_format {
    int32_t head_dim;     /* 64, 80, 96, 128 or 256; balanced patterns 64, 128 or 256 */
    int32_t dtype;        /* mustafar_dtype of the dense tokens, and of native values */
    int32_t value_format; /* mustafar_value_format */
    int32_t pattern;      /* mustafar_pattern */
    int32_t layout;       /* mustafar_layout */
    int32_t order;        /* mustafar_order */
    int32_t keep;         /* FIXED: channels kept per token, 1 ... head_dim; OFFSETS: 0 */
} mustafar_format;

/* Bytes of one block of a FIXED format. */
MUSTAFAR_API int32_t mustafar_block_bytes(const mustafar_format* format, int64_t* bytes);

/* A dense tensor [batch, heads, tokens, head_dim]; strides in elements, head_dim contiguous. Within 2^56 bytes, and so
   is each stride. */
typedef struct mustafar_dense {
    void* data; /* aligned to its element; only read if the call takes it as input */
    int64_t batch_stride;
    int64_t head_stride;
    int64_t token_stride;
} mustafar_dense;

/*
 * Compressed tokens [slots, num_kv_heads, tokens, head_dim], in pages. A slot is the place of a sequence in the page
 * table and in the other arrays of a cache; if a call takes none, row b of the batch is slot b. Page p of a slot holds
 * its blocks p * page_blocks ... (p + 1) * page_blocks - 1 of every KV head. Pages are numbered consecutively across
 * slabs: page number n is page n % slab_pages of slab n / slab_pages.
 * With n = pages[slot * page_capacity + i / page_blocks], block i of head h is at
 *   slabs[n / slab_pages] + base + (n % slab_pages) * page_bytes + h * head_stride + (i % page_blocks) * block bytes
 * The same table can serve keys and values, and all layers of a model, each with its own base. Sequences may share
 * pages. A contiguous tensor is one slab whose pages are the sequences.
 * With OFFSETS there is one page per slot and block i of head h of slot s is at
 *   slabs[n / slab_pages] + base + (n % slab_pages) * page_bytes
 *     + 16 * offsets[(s * num_kv_heads + h) * page_blocks + i]
 * the next entry being its end; the table has slots * num_kv_heads * page_blocks + 1 ascending entries, counted from the
 * first slot (so slots that share one buffer have the same page number).
 * Entries of the page table past a slot's tokens may be read but are not followed. If a page number that is followed is
 * not in 0 ... slab_count * slab_pages - 1, the call is CORRUPT_DATA on the CPU; CUDA reads the last page instead, so
 * that nothing outside the slabs is touched.
 */
typedef struct mustafar_blocks {
    mustafar_format format;
    int32_t page_blocks;     /* blocks of one KV head in a page, >= 1 */
    int32_t slab_pages;      /* pages of a slab, >= 1 */
    int32_t slab_count;      /* slab_count * slab_pages < 2^31; 0 while there are no pages */
    int64_t page_capacity;   /* entries of the page table per slot */
    int64_t page_bytes;      /* from one page of a slab to the next, a multiple of 16; on CUDA below 2^32 */
    int64_t base;            /* byte of a slab at which page 0 of this tensor starts, a multiple of 16 */
    int64_t head_stride;     /* bytes from one KV head to the next, a multiple of 16; OFFSETS: not used */
    int64_t slab_bytes;      /* size of a slab, including MUSTAFAR_PAGE_PADDING */
    void* const* slabs;      /* [slab_count] addresses, multiples of 16 */
    const int32_t* pages;    /* [slots, page_capacity] page numbers */
    const uint32_t* offsets; /* OFFSETS: the table; FIXED: null */
} mustafar_blocks;

/* ---------------------------------------------------------------------------------------------------- 3 tensors -- */

/* Selects the channels to keep. source: [batch, heads, tokens, head_dim] of format's dtype. importance: [batch, heads,
   head_dim] contiguous; null: channels are ranked by magnitude. bitmap: [batch, heads, tokens, ceil(head_dim / 32)]
   contiguous u32, channel c in bit c % 32 of word c / 32. The format must be FIXED, its pattern not MASK. */
MUSTAFAR_API int32_t mustafar_prune(const mustafar_context* context, const mustafar_format* format, int32_t batch,
                                    int32_t heads, int64_t tokens, const mustafar_dense* source,
                                    const float* importance, uint32_t* bitmap);

/* Writes the offset table of an OFFSETS tensor for any bitmap (laid out as by mustafar_prune):
   batch * heads * ceil(tokens / 32) + 1 entries, in 16-byte units over all sequences and heads. *page_bytes receives
   the size of a slab whose single page holds them all, including padding. On CUDA it points to device memory. */
MUSTAFAR_API int32_t mustafar_offsets(const mustafar_context* context, const mustafar_format* format, int32_t batch,
                                      int32_t heads, int64_t tokens, const uint32_t* bitmap, uint32_t* offsets,
                                      int64_t* page_bytes);

/*
 * Keys have channels that are large in all tokens; channel scales let few bits suffice for them. A key k is stored as
 * k[c] / factor[c], and the query is multiplied by factor[c] before its product with the block (both in f32), so that
 * scores are those of the keys. Channels are selected by |k|. Factors are f32, one per channel of a (sequence, KV
 * head), and such as mustafar_key_factors makes: f16 numbers from 2^-10 to 2^10. With others a quotient may be rounded
 * otherwise than to nearest, and be different on the CPU and on CUDA. If a call takes factors, null stands for ones; only
 * integer values may have factors.
 */

/* Computes factors from the first tokens of each (sequence, head); they hold as long as the blocks live. source:
   [batch, heads, tokens, head_dim] of dtype (mustafar_dtype). factors: [batch, heads, head_dim] contiguous. With m[c] =
   max |k[t][c]| over the tokens, factor[c] is m[c] / mean(m), where the mean is over the channels whose m is finite and
   not 0. It is computed in f64 (summing by ascending channel), clamped to 2^-10 ... 2^10, rounded to f32 and then to
   the nearest f16 number. It is 1 if m[c] is 0, infinite or NaN. */
MUSTAFAR_API int32_t mustafar_key_factors(const mustafar_context* context, int32_t dtype, int32_t head_dim,
                                          int32_t batch, int32_t heads, int64_t tokens, const mustafar_dense* source,
                                          float* factors);

/* Compresses source into the blocks 0 ... ceil(tokens / 32) - 1 of destination. bitmap: the channels to keep, [batch,
   heads, tokens, ceil(head_dim / 32)]; null: the pattern selects, by importance ([batch, heads, head_dim]) or, if that
   is null too, by magnitude. With a bitmap, importance is null. MASK and OFFSETS need a bitmap; destination->offsets
   comes from mustafar_offsets. ALL takes neither. key_factors: [batch, heads, head_dim] or null. */
MUSTAFAR_API int32_t mustafar_compress(const mustafar_context* context, int32_t batch, int32_t heads, int64_t tokens,
                                       const mustafar_dense* source, const uint32_t* bitmap, const float* importance,
                                       const float* key_factors, const mustafar_blocks* destination);

/* Writes tokens first ... first + tokens - 1 as dense rows, pruned channels as +0. destination's token 0 is token first.
   key_factors: those of the blocks, [batch, heads, head_dim] or null; q * scale * factor is computed in f32 from the left,
   then rounded to the dtype. */
MUSTAFAR_API int32_t mustafar_decompress(const mustafar_context* context, int32_t batch, int32_t heads, int64_t first,
                                         int64_t tokens, const mustafar_blocks* source, const float* key_factors,
                                         const mustafar_dense* destination);

/* Copies the blocks of the first `tokens` tokens from one order to another, value for value: they read the same
   afterwards, bit for bit. Both formats are FIXED and differ only in their order. The two must not overlap. */
MUSTAFAR_API int32_t mustafar_convert(const mustafar_context* context, int32_t batch, int32_t heads, int64_t tokens,
                                      const mustafar_blocks* source, const mustafar_blocks* destination);

/* --------------------------------------------------------------------------------------------------- 4 products -- */

/* The two sparse products of the paper (section 4), separately. Query or probability row r of a KV head is query head
   h * group + r / num_queries, query r % num_queries. */
typedef struct mustafar_product {
    int32_t batch;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t num_queries;
    int64_t tokens;
    mustafar_blocks blocks;   /* the keys or the values */
    mustafar_dense dense;     /* key scores: query in; value sum: output. [batch, num_heads, num_queries, head_dim], the
                               blocks' dtype */
    mustafar_dense weights;   /* f32 [batch, num_heads, num_queries, tokens], tokens contiguous. key scores: output;
                               value sum: probabilities in */
    float scale;              /* multiplies the result */
    const float* key_factors; /* [batch, num_kv_heads, head_dim] of the keys; value sum: null */
} mustafar_product;

/* weights = scale * query . keys. Pruned channels are zeros: times infinity or NaN they give NaN. With integer values,
   a query with an infinite or NaN channel gives NaN. */
MUSTAFAR_API int32_t mustafar_key_scores(const mustafar_context* context, const mustafar_product* product);

/* dense = scale * weights . values, likewise. */
MUSTAFAR_API int32_t mustafar_value_sum(const mustafar_context* context, const mustafar_product* product);

/* -------------------------------------------------------------------------------------------------- 5 attention -- */

/*
 * out = softmax(scale * q . K) . V over the tokens of each sequence, in one pass with an online softmax and f32
 * accumulation. A sequence's tokens are, in order:
 *   0 ... compressed - 1              in blocks
 *   compressed ... length - fresh - 1 in the dense tail (the recent window), a ring: token t in slot t % tail_capacity
 *   the last fresh ones               in the caller's own tensors, not yet appended
 * Causality: query i of a sequence is at position length - queries + i and sees the tokens up to and including its
 * own. A query that sees no token (an empty sequence) gives zeros and a log-sum-exp of -infinity.
 *
 * NaN and infinity propagate as in the formula over the decompressed tokens that a query sees, with weights
 * exp(s - max s) / sum. A NaN or +infinity among its scores s makes the row and its log-sum-exp NaN. If all scores are
 * -infinity, the row is NaN and its log-sum-exp -infinity. A non-finite value turns a weight of zero into NaN. A pruned
 * channel is a zero, so an infinity or a NaN anywhere in a query makes its row NaN; with integer keys in blocks it does
 * so whichever channels are kept. Tokens that a query does not see do not affect its row, whatever they hold. The same
 * holds on CUDA, with one exception: a non-finite value can make NaN in rows that do not see it and, among unstructured
 * integers, in channels that its token does not keep.
 *
 * Row b of the batch is the sequence in slot sequences[b]. Arrays of [num_slots] belong to the cache and stay in place
 * while sequences join, leave and are stepped in any subset; arrays of [batch] belong to the call. On CUDA everything
 * that may change from step to step (slots, lengths, counts, page numbers) is read from device memory when the work
 * runs, so a captured call serves any step within its bounds batch, num_queries and max_tokens.
 */
typedef struct mustafar_attention {
    int32_t batch;
    int32_t num_slots; /* >= batch if sequences is null */
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t num_queries;         /* 1 ... */
    int32_t num_fresh;           /* fresh tokens: 0 or num_queries */
    int32_t tail_capacity;       /* slots of the ring; 0 if there is no tail */
    int32_t max_tokens;          /* no length is larger */
    int32_t sliding_window;      /* a query sees only this many latest tokens, including itself; 0: all */
    float scale;                 /* > 0 */
    const int32_t* sequences;    /* [batch] slots, 0 ... num_slots - 1; on CUDA others are read as the last slot. null:
                                    0 ... batch - 1 */
    const int32_t* lengths;      /* [num_slots] tokens in all */
    const int32_t* compressed;   /* [num_slots] how many of them are in blocks */
    const int32_t* query_counts; /* [batch] queries (and fresh tokens) of each sequence; rows past it give zeros.
                                    null: num_queries each */
    mustafar_dense query;        /* [batch, num_heads, num_queries, head_dim] */
    mustafar_dense output;       /* as query */
    /* Of one dtype and head_dim; everything else may differ. But either both are in fragment order or neither. */
    mustafar_blocks keys;
    mustafar_blocks values;
    const float* key_factors; /* [num_slots, num_kv_heads, head_dim]; only for keys in blocks. null: none */
    mustafar_dense tail_keys; /* [num_slots, num_kv_heads, tail_capacity, head_dim] */
    mustafar_dense tail_values;
    mustafar_dense fresh_keys; /* [batch, num_kv_heads, num_fresh, head_dim] */
    mustafar_dense fresh_values;
    float* log_sum_exp; /* [batch, num_heads, num_queries] natural logarithm; null: not written */
    /* Aligned to 64 bytes. On CUDA the first MUSTAFAR_WORKSPACE_COUNTER_BYTES of it (all of it, if it is smaller) must
       be zero before its first use. They are zero again after each call, so later calls of any shape may reuse it.
       Calls that may run at the same time need separate workspaces. */
    void* workspace;
    int64_t workspace_bytes;
} mustafar_attention;

/* Bytes of workspace that mustafar_attention_forward needs for these arguments. It depends on the counts, max_tokens,
   the formats, the page_blocks and whether there is a sliding window, not on any pointer. */
MUSTAFAR_API int32_t mustafar_attention_workspace(const mustafar_context* context, const mustafar_attention* attention,
                                                  int64_t* bytes);

MUSTAFAR_API int32_t mustafar_attention_forward(const mustafar_context* context, const mustafar_attention* attention);

/* ------------------------------------------------------------------------------------------------------ 6 cache -- */

/* How many of a sequence's first tokens are compressed once it holds `length` and expects `lookahead` more: the whole
   groups among those present that leave local_window dense tokens, counting the expected ones:
   floor((length - max(0, local_window - lookahead)) / group_size) * group_size, at least 0. 0 for a negative argument
   or a group_size < 1. */
MUSTAFAR_API int64_t mustafar_compressed_tokens(int64_t length, int32_t lookahead, int32_t local_window,
                                                int32_t group_size);

/*
 * Appends count tokens to each sequence of the call. It compresses into the pages whatever
 * mustafar_compressed_tokens(length + count, lookahead, ...) adds to the compressed tokens, taking tokens from the ring
 * and from the new ones, and then writes the new tokens that stay dense into the ring. Pages for them must be in the
 * table. Tokens that are already compressed are not read. With no new tokens and lookahead 1 it compresses what the
 * next token will find compressed, without adding to the cache; tokens that are not there yet are never compressed. Row
 * b of the batch is the sequence in slot sequences[b]; other slots are neither read nor written. As with attention, a
 * call captured on CUDA serves any step within its bounds batch, num_tokens and max_tokens.
 */
typedef struct mustafar_append {
    int32_t batch;
    int32_t num_slots; /* >= batch if sequences is null */
    int32_t num_kv_heads;
    int32_t num_tokens;       /* tokens in new_keys and new_values; may be 0 */
    int32_t lookahead;        /* tokens that count for the rule but are not appended, >= 0 */
    int32_t group_size;       /* a multiple of 32 */
    int32_t local_window;     /* >= 0 */
    int32_t tail_capacity;    /* >= the dense tokens of each sequence, before and after: local_window + group_size - 1
                                 always suffice. On CUDA a multiple of 32; in too small a ring tokens are lost */
    int32_t max_tokens;       /* no length is larger afterwards */
    const int32_t* sequences; /* [batch] slots, all different, 0 ... num_slots - 1; on CUDA rows of others are left out.
                                  null: 0 ... batch - 1 */
    const int32_t* counts;    /* [batch] new tokens of each sequence, 0 ... num_tokens; null: num_tokens each */
    const int32_t* lengths;   /* [num_slots] before */
    const int32_t* compressed; /* [num_slots] before */
    int32_t* new_lengths;      /* [num_slots] after, for the call's slots; must not overlap lengths. null: not wanted */
    int32_t*
        new_compressed; /* [num_slots] after, for the call's slots; must not overlap compressed. null: not wanted */
    mustafar_dense new_keys; /* [batch, num_kv_heads, num_tokens, head_dim] */
    mustafar_dense new_values;
    mustafar_blocks keys; /* FIXED */
    mustafar_blocks values;
    float* key_factors;       /* [num_slots, num_kv_heads, head_dim]: a slot's are computed from its first compressed
                                 tokens, and read from then on. null: none */
    mustafar_dense tail_keys; /* [num_slots, num_kv_heads, tail_capacity, head_dim] */
    mustafar_dense tail_values;
    /* How the channels of the tokens that the call compresses are selected, as in mustafar_compress. */
    const float* key_importance;   /* [num_slots, num_kv_heads, head_dim]; null: ranked by magnitude */
    const float* value_importance; /* likewise */
    const uint32_t* key_bitmap;    /* [batch, num_kv_heads, bitmap_tokens, ceil(head_dim / 32)]: row i of a sequence is
                                      its token compressed + i. null: the pattern selects; MASK needs a bitmap if tokens
                                      fall due, which on CUDA is not checked: they are then ranked by magnitude */
    const uint32_t* value_bitmap;  /* likewise */
    int32_t bitmap_tokens;         /* with bitmaps: at least the tokens of any sequence that the call compresses; on
                                      CUDA tokens past it use its last row */
} mustafar_append;

MUSTAFAR_API int32_t mustafar_append_tokens(const mustafar_context* context, const mustafar_append* append);

#ifdef __cplusplus
}
#endif

#include "step.h" /* 7 step, 8 graphs */

#endif
