// Sampling. Grid: one thread block a sequence. A warp has one piece of the vocabulary, in order of ids.
//
// The row of logits is read a few times, from the second-level cache:
//   1. the likeliest token, NaN
//   2. counts and weights by distance from the likeliest (linear bins: a key's leading bits would put most of a vocabulary
//      into few of them)
//   3. for each of top_k and top_p: the bin in which it cuts, then by the digits of the order key within that bin, until all
//      that is left are equal logits, of which the lower ids stay
//   4. the sum of what is left by warp; the warp whose piece holds the drawn number reads it again
// What a filter does not need is left out.
#include "core/sampling.h"
#include "cuda/common/dispatch.h"
#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/step/histogram.cuh"
#include "cuda/step/step.h"
#include "cuda/step/values.cuh"

namespace mustafar::cuda {
namespace {

constexpr int threads = 1024, warps = threads / 32;

struct SampleParams {
    Rows logits;                               // [batch, vocab_size]
    const mustafar_sampling_options* options;  // [batch]
    int64_t* steps;                            // [batch]
    int32_t* counts;                           // [batch, vocab_size]
    const uint32_t* prompt;                    // [batch, words]
    const uint32_t* allowed;                   // [words], every allowed_stride
    int64_t allowed_stride, words;
    int64_t* tokens;           // [batch]
    float* log_probabilities;  // [batch]
    int32_t vocab_size;
    bool aligned;
};

using LinearBins = Histogram<threads, threads>;
using DigitBins = Histogram<2 * threads, threads>;

struct Shared {
    LinearBins linear;
    DigitBins digits;
    uint64_t partial[warps];
    float largest[warps];
    double sums[warps];
    int token;
};

// Tokens that are kept: those with a larger key, and of those that have this key the first `ties`.
struct Cut {
    uint32_t key = 0;  // smaller than any logit's
    uint32_t ties = 0;
    uint64_t mass = 0;
    bool splits_ties = false;
};

// A token that may be drawn.
struct Candidate {
    float power;
    uint32_t key;
    uint64_t weight;

    // Linear bin, the likeliest first. Where the weight is above 0 the power is above -41.
    __device__ __forceinline__ int bin() const {
        return min(threads - 1, static_cast<int>(power * (threads / -42.0f)));
    }
};

template <class T>
class Row {
public:
    static constexpr int count = Piece<T>::count, tile = 32 * count;

    mustafar_sampling_options options;

    __device__ __forceinline__ Row(const SampleParams& p, int sequence)
        : options(p.options[sequence]), logits_(p.logits.row<const T>(sequence)),
          allowed_(p.allowed != nullptr ? p.allowed + sequence * p.allowed_stride : nullptr),
          prompt_(p.prompt != nullptr ? p.prompt + sequence * p.words : nullptr),
          counts_(p.counts != nullptr ? p.counts + int64_t{sequence} * p.vocab_size : nullptr),
          vocab_size_(p.vocab_size), aligned_(p.aligned) {}

    // Calls with the first token of this lane and its logits, for each tile of this warp's part; lanes stay together.
    template <class Call>
    __device__ __forceinline__ void visit(int warp, Call&& call) const {
        const int tiles = (vocab_size_ + tile - 1) / tile, share = (tiles + warps - 1) / warps;
        const int first = warp * share, last = min(tiles, first + share);
        int token = (first * 32 + static_cast<int>(threadIdx.x) % 32) * count;
        Piece<T> next = load(token);
        for (int i = first; i < last; ++i, token += tile) {
            const Piece<T> piece = next;
            if (i + 1 < last) next = load(token + tile);
            call(token, piece);
        }
    }

    __device__ __forceinline__ bool exists(int token) const { return token < vocab_size_; }
    __device__ __forceinline__ bool is_allowed(int token) const {
        return allowed_ == nullptr || sampling::has_bit(allowed_, token);
    }
    __device__ __forceinline__ float score(int token, T logit) const {
        return sampling::penalised(as_float(logit), counts_ != nullptr ? counts_[token] : 0,
                                   prompt_ != nullptr && sampling::has_bit(prompt_, token), options);
    }
    __device__ __forceinline__ T logit(int token) const { return logits_[token]; }

    // Weight 0: the token can't be drawn.
    __device__ __forceinline__ Candidate candidate(int token, T logit, float largest) const {
        if (!exists(token) || !is_allowed(token)) return {};
        const float score = this->score(token, logit);
        const float power = sampling::power_of_two(score, largest, options.temperature);
        return {power, sampling::order_key(score), sampling::weight(power)};
    }

private:
    __device__ __forceinline__ Piece<T> load(int token) const {
        return load_piece(logits_ + token, vocab_size_ - token, aligned_);
    }

    const T* logits_;
    const uint32_t *allowed_, *prompt_;
    const int32_t* counts_;
    int32_t vocab_size_;
    bool aligned_;
};

__device__ __forceinline__ uint64_t warp_total(uint64_t value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(all_lanes, value, offset);
    return value;
}

// Inclusive, over lanes.
template <class V>
__device__ __forceinline__ V running_total(V value) {
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const V lower = __shfl_up_sync(all_lanes, value, offset);
        if (static_cast<int>(threadIdx.x) % 32 >= offset) value += lower;
    }
    return value;
}

template <class T>
class Sampler {
public:
    __device__ __forceinline__ Sampler(const Row<T>& row, Shared& shared) : row_(row), shared_(shared) {}

    // -1: none. For all threads.
    __device__ __forceinline__ int token(int64_t step) {
        const int likeliest = find_likeliest();
        if (likeliest < 0 || sampling::is_greedy(row_.options)) return likeliest;
        Cut cut;
        if (row_.options.top_k > 0 || sampling::has_nucleus(row_.options)) cut = filters();
        return draw(cut, step);
    }

    __device__ __forceinline__ float log_probability(int token) {
        float largest = -INFINITY;
        each([&](int t, T logit) {
            if (row_.exists(t)) largest = fmaxf(largest, as_float(logit));  // passes over NaN, which the sum finds
        });
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            largest = fmaxf(largest, __shfl_xor_sync(all_lanes, largest, offset));
        if (lane_ == 0) shared_.largest[warp_] = largest;
        __syncthreads();
        for (int w = 0; w < warps; ++w) largest = fmaxf(largest, shared_.largest[w]);
        double sum = 0.0;
        each([&](int t, T logit) {
            if (row_.exists(t)) sum += expf(as_float(logit) - largest);
        });
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(all_lanes, sum, offset);
        if (lane_ == 0) shared_.sums[warp_] = sum;
        __syncthreads();
        sum = 0.0;
        for (int w = 0; w < warps; ++w) sum += shared_.sums[w];
        return static_cast<float>(static_cast<double>(as_float(row_.logit(token))) - static_cast<double>(largest) -
                                  log(sum));
    }

private:
    template <class Call>
    __device__ __forceinline__ void each(Call&& call) const {
        row_.visit(warp_, [&](int token, const Piece<T>& piece) {
#pragma unroll
            for (int i = 0; i < Row<T>::count; ++i) call(token + i, piece.values[i]);
        });
    }

    __device__ __forceinline__ int find_likeliest() {
        uint64_t best = 0;  // key, then the lower id
        bool nan = false;
        each([&](int token, T logit) {
            if (!row_.exists(token) || !row_.is_allowed(token)) return;
            const float score = row_.score(token, logit);
            nan |= isnan(score);
            best = max(best, uint64_t{sampling::order_key(score)} << 32 | ~static_cast<uint32_t>(token));
        });
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) best = max(best, __shfl_xor_sync(all_lanes, best, offset));
        if (lane_ == 0) shared_.partial[warp_] = best;
        if (__syncthreads_or(nan)) return -1;
        for (int w = 0; w < warps; ++w) best = max(best, shared_.partial[w]);
        if (best == 0) return -1;
        const int token = static_cast<int>(~static_cast<uint32_t>(best));
        largest_ = row_.score(token, row_.logit(token));
        return isfinite(largest_) ? token : -1;
    }

    // What top_k and then top_p leave.
    __device__ __forceinline__ Cut filters() {
        shared_.linear.clear();
        RunOfBin<LinearBins> run(shared_.linear);
        each([&](int token, T logit) {
            const Candidate candidate = row_.candidate(token, logit, largest_);
            if (candidate.weight == 0) return;
            run.add(candidate.bin(), candidate.weight);
        });
        run.flush();
        __syncthreads();
        const Tally total = shared_.linear.total();
        Cut cut;
        cut.mass = total.mass;
        const mustafar_sampling_options& options = row_.options;
        if (options.top_k > 0 && static_cast<uint32_t>(options.top_k) < total.count) cut = cut_at(false, options.top_k);
        if (sampling::has_nucleus(options)) {
            const uint64_t wanted = options.top_p > 0.0f ? sampling::part_of(options.top_p, cut.mass) : 0;
            cut = cut_at(true, max(wanted, uint64_t{1}));
        }
        return cut;
    }

    // The fewest of the likeliest tokens whose number, or weight, is at least the target.
    __device__ __forceinline__ Cut cut_at(bool by_mass, uint64_t target) {
        Found found = shared_.linear.find(by_mass, target);
        const int bin = found.bin;
        Tally before = found.before;
        uint32_t prefix = 0;
        for (int shift = 32; shift > 0;) {
            const int known = shift, bits = shift == 32 ? 10 : 11;
            const uint32_t most = (1u << bits) - 1;
            shift -= bits;
            shared_.digits.clear();
            RunOfBin<DigitBins> run(shared_.digits);
            each([&](int token, T logit) {
                const Candidate candidate = row_.candidate(token, logit, largest_);
                if (candidate.weight == 0 || candidate.bin() != bin) return;
                if (known < 32 && candidate.key >> known != prefix) return;
                run.add(static_cast<int>(most - (candidate.key >> shift & most)), candidate.weight);
            });
            run.flush();
            __syncthreads();
            found = shared_.digits.find(by_mass, target - before.metric(by_mass));
            prefix = prefix << bits | (most - static_cast<uint32_t>(found.bin));
            before = before + found.before;
        }
        // What is left are equal logits, so their weights are equal.
        const uint64_t weight = found.inside.mass / found.inside.count, missing = target - before.metric(by_mass);
        const uint64_t ties = by_mass ? (missing + weight - 1) / weight : missing;
        return {prefix, static_cast<uint32_t>(ties), before.mass + ties * weight, ties < found.inside.count};
    }

    // A lane's tokens that are kept, and the sum of their weights. `ties` counts the warp's tokens of the cut's key so far.
    __device__ __forceinline__ uint64_t kept(const Cut& cut, int token, const Piece<T>& piece, uint32_t& ties,
                                             uint64_t (&weights)[Row<T>::count]) const {
        constexpr int count = Row<T>::count;
        const uint64_t least = sampling::least_weight(row_.options);
        uint32_t rank = 0;
        if (cut.splits_ties) {
            for (int i = 0; i < count; ++i) rank += is_tie(cut, token + i, piece.values[i]);
            const uint32_t running = running_total(rank);
            rank = ties + running - rank;
            ties += __shfl_sync(all_lanes, running, 31);
        }
        uint64_t sum = 0;
#pragma unroll
        for (int i = 0; i < count; ++i) {
            const Candidate candidate = row_.candidate(token + i, piece.values[i], largest_);
            bool keep = candidate.weight >= least && candidate.key >= cut.key;
            if (cut.splits_ties && candidate.key == cut.key) keep &= rank++ < cut.ties;
            weights[i] = keep ? candidate.weight : 0;
            sum += weights[i];
        }
        return sum;
    }

    // Of the cut's key; all such tokens have the same weight, which is above 0.
    __device__ __forceinline__ bool is_tie(const Cut& cut, int token, T logit) const {
        return row_.exists(token) && row_.is_allowed(token) && sampling::order_key(row_.score(token, logit)) == cut.key;
    }

    __device__ __forceinline__ int draw(const Cut& cut, int64_t step) {
        uint32_t ties_before = 0;
        if (cut.splits_ties) {
            uint64_t ties = 0, all;
            each([&](int token, T logit) { ties += is_tie(cut, token, logit); });
            ties_before = static_cast<uint32_t>(sum_before(warp_total(ties), all));
        }
        uint64_t weights[Row<T>::count], own = 0, total;
        uint32_t ties = ties_before;
        row_.visit(warp_, [&](int token, const Piece<T>& piece) { own += kept(cut, token, piece, ties, weights); });
        own = warp_total(own);
        const uint64_t before = sum_before(own, total);
        const uint64_t drawn =
            sampling::below(sampling::random_bits(row_.options.seed, static_cast<uint64_t>(step)), total);
        if (drawn >= before && drawn - before < own) find_drawn(cut, drawn - before, ties_before);
        __syncthreads();
        return shared_.token;
    }

    // Leaves the token of this warp's part at which the weights before and its own reach beyond `rest`.
    __device__ __forceinline__ void find_drawn(const Cut& cut, uint64_t rest, uint32_t ties) {
        bool found = false;
        row_.visit(warp_, [&](int token, const Piece<T>& piece) {
            if (found) return;
            uint64_t weights[Row<T>::count];
            const uint64_t own = kept(cut, token, piece, ties, weights), running = running_total(own);
            const uint64_t tile = __shfl_sync(all_lanes, running, 31);
            if (rest >= tile) {
                rest -= tile;
                return;
            }
            found = true;
            uint64_t up_to = running - own;
#pragma unroll
            for (int i = 0; i < Row<T>::count; ++i) {
                if (rest >= up_to && rest - up_to < weights[i]) shared_.token = token + i;
                up_to += weights[i];
            }
        });
    }

    // Of the warps before this one; `total` of all. `own` is the warp's.
    __device__ __forceinline__ uint64_t sum_before(uint64_t own, uint64_t& total) {
        __syncthreads();  // the last sums have been read
        if (lane_ == 0) shared_.partial[warp_] = own;
        __syncthreads();
        uint64_t before = 0;
        total = 0;
        for (int w = 0; w < warps; ++w) {
            if (w == warp_) before = total;
            total += shared_.partial[w];
        }
        return before;
    }

    const Row<T>& row_;
    Shared& shared_;
    const int lane_ = threadIdx.x % 32, warp_ = threadIdx.x / 32;
    float largest_ = 0.0f;
};

template <class T>
__global__ void __launch_bounds__(threads) sample_row(const __grid_constant__ SampleParams p) {
    __shared__ Shared shared;
    let_next_grid_start();
    wait_for_previous_grid();
    const int sequence = static_cast<int>(blockIdx.x);
    const Row<T> row(p, sequence);
    Sampler<T> sampler(row, shared);
    const int64_t step = p.steps[sequence];
    const int token = sampler.token(step);
    float log_probability = __int_as_float(0x7fc00000);
    if (p.log_probabilities != nullptr && token >= 0) log_probability = sampler.log_probability(token);
    __syncthreads();  // the step and the counts have been read
    if (threadIdx.x != 0) return;
    p.tokens[sequence] = token;
    if (p.log_probabilities != nullptr) p.log_probabilities[sequence] = log_probability;
    if (token < 0) return;
    p.steps[sequence] = step + 1;
    if (p.counts != nullptr) ++p.counts[int64_t{sequence} * p.vocab_size + token];
}

}  // namespace

void sample(const mustafar_context& context, const mustafar_sampling& sampling) {
    if (sampling.batch == 0) return;
    const DeviceScope scope(context);
    const SampleParams p{sampling.logits,         sampling.options,
                         sampling.steps,          sampling.counts,
                         sampling.prompt,         sampling.allowed,
                         sampling.allowed_stride, divide_up(sampling.vocab_size, 32),
                         sampling.tokens,         sampling.log_probabilities,
                         sampling.vocab_size,     has_pieces(sampling.logits, sampling.vocab_size, sampling.dtype)};
    dispatch_dtype("sampling", sampling.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        launch(scope, "sampling", sample_row<T>, LaunchShape{sampling.batch, threads, 0, true}, p);
    });
}

}  // namespace mustafar::cuda
