/*
 * step.h - the rest of a decode step (sections 7 and 8); mustafar.h, which includes it, has the conventions.
 */
#ifndef MUSTAFAR_STEP_H
#define MUSTAFAR_STEP_H

#include "mustafar.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --------------------------------------------------------------------------------------------------------- 7 step -- */

/*
 * What a decode step of a Llama-like model needs between its attention calls. All tensors have one dtype, sums are f32
 * and results are rounded once. On CUDA nothing is allocated and nothing waits, so the calls can be captured into a
 * graph; everything that changes from step to step (positions, sampling options, counters) is read from device memory.
 */

/* Rows of a dense matrix; elements of a row are contiguous. */
typedef struct mustafar_rows {
    void* data;         /* aligned to its element */
    int64_t row_stride; /* elements */
} mustafar_rows;

/* RMSNorm (arXiv 1910.07467), optionally of the sum with a residual. */
typedef struct mustafar_norm {
    int32_t dtype;       /* mustafar_dtype */
    int32_t hidden_size; /* 1 ... 2^20 */
    int64_t rows;
    float eps;              /* >= 0 */
    mustafar_rows input;    /* [rows, hidden_size] */
    mustafar_rows residual; /* [rows, hidden_size] in and out: becomes residual + input, rounded, which is then
                               normalised. data null: the input itself is normalised */
    const void* weight;     /* [hidden_size] */
    mustafar_rows output;   /* [rows, hidden_size]; may be the input */
} mustafar_norm;

/* output = x / sqrt(mean(x^2) + eps) * weight, x = input or residual + input */
MUSTAFAR_API int32_t mustafar_rms_norm(const mustafar_context* context, const mustafar_norm* norm);

/*
 * Rotary position embedding (RoFormer, arXiv 2104.09864) of queries and keys, in the half-split convention of Hugging
 * Face checkpoints: with i < rotary_dim / 2, channels i and i + rotary_dim / 2 are rotated by position * inv_freq[i];
 * channels from rotary_dim on are unchanged. If query_norm or key_norm is given, each head is normalised first (RMSNorm
 * over head_dim, as in Qwen3). Heads are read where a projection of q, k and v left them: any strides. An output may be
 * its own input.
 */
typedef struct mustafar_rope {
    int32_t dtype; /* mustafar_dtype */
    int32_t batch;
    int32_t num_tokens; /* of each sequence */
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;     /* 2 ... 512 */
    int32_t rotary_dim;   /* even, 2 ... head_dim */
    float eps;            /* of the norms, >= 0 */
    mustafar_dense query; /* [batch, num_heads, num_tokens, head_dim] */
    mustafar_dense key;   /* [batch, num_kv_heads, num_tokens, head_dim] */
    mustafar_dense value; /* as key; copied. data null: nothing is copied */
    mustafar_dense query_output;
    mustafar_dense key_output;
    mustafar_dense value_output;
    const void* query_norm;   /* [head_dim] of dtype; null: none */
    const void* key_norm;     /* [head_dim] of dtype; null: none */
    const int32_t* positions; /* [batch, num_tokens] contiguous, >= 0 */
    const double* inv_freq;   /* [rotary_dim / 2] radians per position; angles are computed in f64. null: tables */
    const float* cosines;     /* [table_positions, rotary_dim / 2]; null with inv_freq */
    const float* sines;       /* as cosines */
    int64_t table_positions;  /* A position outside the table, or below 0: INVALID_ARGUMENT on the CPU, NaN on CUDA. */
    float attention_scaling;  /* multiplies all cosines and sines (YaRN); 1 for none */
} mustafar_rope;

MUSTAFAR_API int32_t mustafar_rotate(const mustafar_context* context, const mustafar_rope* rope);

/* mustafar_rotate, then mustafar_append_tokens of the rotated keys, which new_keys must describe as key_output does; value
   must be null, since values are appended from new_values. Sizes and dtype of both must agree. On CUDA it is one launch if
   num_tokens is 1 and the append has neither importances nor bitmaps. What key_output holds afterwards is unspecified. */
MUSTAFAR_API int32_t mustafar_rotate_append(const mustafar_context* context, const mustafar_rope* rope,
                                            const mustafar_append* append);

/* output[r][i] = silu(input[r][i]) * input[r][width + i], silu(x) = x / (1 + exp(-x)): the gated activation of Llama's
   MLP on one product [rows, 2 * width] of the gate and up projections. output: [rows, width], not the input's memory. */
MUSTAFAR_API int32_t mustafar_silu_mul(const mustafar_context* context, int32_t dtype, int64_t rows, int32_t width,
                                       const mustafar_rows* input, const mustafar_rows* output);

enum { MUSTAFAR_LINEAR_MAX_ROWS = 32 };

typedef enum mustafar_activation {
    MUSTAFAR_ACTIVATION_NONE = 0,
    /* The weight has 2 * out_features rows, gate before up; output = silu(gate) * up. */
    MUSTAFAR_ACTIVATION_SILU_MUL = 1
} mustafar_activation;

/*
 * A linear layer for few rows: output = activation(norm(input) weight^T + bias) + residual. On CUDA a call may start to
 * read `weight` before the work queued ahead of it has finished, so that work must not write it; and unless tensor cores
 * serve several rows (below), a row of the input must fit into a thread block's shared memory together with some weights:
 * in_features <= 16384 for f32, 32768 for 16-bit types; more is UNSUPPORTED.
 */
typedef struct mustafar_linear {
    int32_t dtype;          /* mustafar_dtype */
    int32_t rows;           /* 0 ... MUSTAFAR_LINEAR_MAX_ROWS */
    int32_t in_features;    /* >= 1 */
    int32_t out_features;   /* >= 1 */
    int32_t activation;     /* mustafar_activation */
    float eps;              /* of the norm, >= 0 */
    mustafar_rows input;    /* [rows, in_features] */
    const void* norm;       /* [in_features] weight of an RMSNorm of the input, rounded to dtype; null: none */
    mustafar_rows weight;   /* [out_features or 2 * out_features, in_features] */
    const void* bias;       /* one per row of the weight; null: none */
    mustafar_rows residual; /* [rows, out_features], added; may be the output. data null: none */
    mustafar_rows output;   /* [rows, out_features], separate from the input */
} mustafar_linear;

MUSTAFAR_API int32_t mustafar_linear_forward(const mustafar_context* context, const mustafar_linear* linear);

/* Whether mustafar_linear_forward takes as long as reading the weight once (result: 1), whatever the number of rows. On CUDA it does
   for one row, and for more by tensor cores on Hopper, with 16-bit types, no norm, and input and weight whose rows begin at multiples
   of 16 bytes. Else it reads the weight several times, for at most four rows at once. On the CPU it does, or nearly so, for one row,
   and with AVX2 or AVX-512 for up to 16; in bf16 with AVX-512 BF16 for up to 8. Where it does not, a library's product is faster. */
MUSTAFAR_API int32_t mustafar_linear_reads_once(const mustafar_context* context, const mustafar_linear* linear,
                                                int32_t* result);

/* How one sequence's next token is chosen. Read where the call runs, so a number out of its range has the meaning given
   here instead of being an error. */
typedef struct mustafar_sampling_options {
    float temperature;        /* divides the logits; not above 0: greedy */
    int32_t top_k;            /* only this many of the likeliest tokens; below 1: all */
    float top_p;              /* only the smallest set of likeliest tokens with at least this share of the probability
                                 that top_k left, at least one token; 1 or more: all */
    float min_p;              /* only tokens with at least this share of the likeliest one's probability; 0: all */
    float repetition_penalty; /* logits of tokens in the prompt or chosen before: divided by it if above 0, else
                                 multiplied (CTRL, arXiv 1909.05858); 1: none */
    float frequency_penalty;  /* subtracted from a logit for each time that its token was chosen; 0: none */
    float presence_penalty;   /* subtracted from a logit if its token was chosen; 0: none */
    int32_t reserved;         /* 0 */
    uint64_t seed;
} mustafar_sampling_options;

/*
 * Draws one token per sequence. It is defined exactly, so that every device and any number of threads draw the same:
 *   1. Logits are widened to f32. Tokens that `allowed` excludes are ignored.
 *   2. Penalties in the order repetition, frequency and presence; the latter two, summed in f64, are rounded to f32.
 *   3. Order: larger logit first, then the lower id.
 *   4. Weights: 2^40 * exp((logit - largest) / temperature) as an integer, by a fixed f32 computation (core/sampling.h)
 *      with a relative error below 2^-19. Anything below 2^-40 of the largest has weight 0 and is never drawn.
 *   5. top_k, then top_p, then min_p, on those integers.
 *   6. 64 random bits r: words 0 (low) and 1 (high) of Philox4x32-10 (Salmon et al., SC 2011) with the seed as key and
 *      counter (step, step >> 32, 0, 0). With s the sum of the remaining weights, token floor(r * s / 2^64) is drawn,
 *      counting each token as often as its weight, in order of ids.
 * A sequence whose allowed logits include a NaN, or have no finite maximum, gets token -1, and neither its step nor its
 * counts change.
 */
typedef struct mustafar_sampling {
    int32_t dtype; /* mustafar_dtype of the logits */
    int32_t batch;
    int32_t vocab_size;                       /* 1 ... 2^22 */
    int64_t allowed_stride;                   /* words from one sequence's row of allowed to the next; 0: one for all */
    mustafar_rows logits;                     /* [batch, vocab_size] */
    const mustafar_sampling_options* options; /* [batch] */
    int64_t* steps;                           /* [batch] number of the draw; counted up by the call */
    int32_t* counts;          /* [batch, vocab_size] how often each token was chosen; counted up by the call.
                                                 null: none was */
    const uint32_t* prompt;   /* [batch, ceil(vocab_size / 32)] bit t % 32 of word t / 32: token t is in the
                                                 prompt; null: none is */
    const uint32_t* allowed;  /* [ceil(vocab_size / 32)] rows of bits likewise; null: all are */
    int64_t* tokens;          /* [batch] the result */
    float* log_probabilities; /* [batch] of the token among all logits as they came, natural logarithm; NaN
                                 for token -1. null: not written */
} mustafar_sampling;

MUSTAFAR_API int32_t mustafar_sample(const mustafar_context* context, const mustafar_sampling* sampling);

/* ------------------------------------------------------------------------------------------------------- 8 graphs -- */

/*
 * CUDA only; UNSUPPORTED elsewhere. Work that is queued on a stream during a capture does not run but becomes a graph,
 * of calls of this library and of others alike. The graph can then be launched as a whole, repeatedly, on any stream of
 * the device. A graph reads and writes the addresses of its capture, which it does not own: they must stay valid as
 * long as it is launched. Capture on a stream of mustafar_stream_create that nothing else uses.
 */

/* *stream receives a new cudaStream_t that does not wait for the default stream. The context's stream is not used. */
MUSTAFAR_API int32_t mustafar_stream_create(const mustafar_context* context, void** stream);

/* Destroys the context's stream once its work is done. */
MUSTAFAR_API int32_t mustafar_stream_destroy(const mustafar_context* context);

/* Begins to capture what is queued on the context's stream, in relaxed mode: other work of the process is free. */
MUSTAFAR_API int32_t mustafar_capture_begin(const mustafar_context* context);

/* Ends the capture on the context's stream. *graph receives the launchable graph, or null on failure; either way the
   stream is usable again. graph null: the capture is discarded. */
MUSTAFAR_API int32_t mustafar_capture_end(const mustafar_context* context, void** graph);

/* Queues the graph on the context's stream. Launches of one graph follow one another. */
MUSTAFAR_API int32_t mustafar_graph_launch(const mustafar_context* context, void* graph);

/* Destroys a graph once its queued launches are done. */
MUSTAFAR_API int32_t mustafar_graph_destroy(const mustafar_context* context, void* graph);

#ifdef __cplusplus
}
#endif

#endif
