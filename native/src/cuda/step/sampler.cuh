// The steps of a draw:
//   1. the likeliest token, NaN
//   2. for each of top_k and top_p, the key at which it cuts: tokens by distance from the likeliest in linear bins (a key's
//      leading bits would put most of a vocabulary into few of them), then, within the bin in which it cuts, by those digits
//      of the key in which the bin's tokens differ. What is left are equal logits, of which the lower ids stay.
//   3. the sum of what is left by warp; the warp whose piece holds the drawn number looks for the token
// What a filter does not need is left out: weights are not computed for top_k.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/step/histogram.cuh"
#include "cuda/step/sample_row.cuh"

namespace mustafar::cuda {

// Tokens that are kept: those with a larger key, and of those that have this key the first `ties`.
struct Cut {
    uint32_t key;
    uint64_t ties, dropped;  // of those with this key
};
constexpr Cut no_cut{no_key, 0, 0};

// The largest key, of the lowest id, and the largest of the logits as they came.
struct Likeliest {
    uint32_t key;
    int32_t token;
    float logit;

    template <class Move>
    __device__ __forceinline__ Likeliest moved(Move&& move) const {
        return {move(key), move(token), move(logit)};
    }
};

// The bits that all keys have, and those that any has.
struct CommonBits {
    uint32_t all, any;

    template <class Move>
    __device__ __forceinline__ CommonBits moved(Move&& move) const {
        return {move(all), move(any)};
    }
};

template <class T, bool Cached>
class Sampler {
public:
    using Row = SampleRow<T, Cached>;

    __device__ __forceinline__ Sampler(const Row& row, Cluster& cluster, Histogram& histogram)
        : row_(row), cluster_(cluster), histogram_(histogram),
          bins_per_unit_(bin_count / 42.0f * 1.44269504f / fmaxf(row.options.temperature, 1e-30f)) {}

    // -1: none. First of all calls.
    __device__ __forceinline__ int likeliest() {
        const Likeliest none{no_key, INT32_MAX, -INFINITY};
        Likeliest best = none;
        row_.read([&](int token, const Piece<T>& piece, const auto& keys) {
#pragma unroll
            for (int i = 0; i < Row::count; ++i) {
                if (keys[i] > best.key) best = {keys[i], token + i, best.logit};
                if (row_.exists(token + i))
                    best.logit = fmaxf(best.logit, as_float(piece.values[i]));  // passes over NaN
            }
        });
        best = cluster_.all(best, none, [](const Likeliest& a, const Likeliest& b) {
            const bool second = b.key > a.key || (b.key == a.key && b.token < a.token);
            return Likeliest{second ? b.key : a.key, second ? b.token : a.token, fmaxf(a.logit, b.logit)};
        });
        largest_logit_ = best.logit;
        largest_ = sampling::logit_of(best.key);
        return is_finite_key(best.key) ? best.token : -1;
    }

    // Natural logarithm of the sum of exp(logit) over all tokens, as the logits came.
    __device__ __forceinline__ double log_sum_exp() {
        double sum = 0.0;
        row_.visit_logits([&](int token, const Piece<T>& piece, int) {
#pragma unroll
            for (int i = 0; i < Row::count; ++i)
                if (row_.exists(token + i)) sum += expf(as_float(piece.values[i]) - largest_logit_);
        });
        return static_cast<double>(largest_logit_) + log(cluster_.all(sum, 0.0, Plus()));
    }

    // What top_k and then top_p leave.
    __device__ __forceinline__ Cut filters() {
        Cut cut = no_cut;
#pragma unroll 1
        for (int filter = 0; filter < 2; ++filter) {
            const bool by_mass = filter != 0;
            if (by_mass ? sampling::has_nucleus(row_.options) : row_.options.top_k > 0) cut = cut_at(by_mass, cut);
        }
        return cut;
    }

    // The token for the one thread that finds it, -1 for all others.
    __device__ __forceinline__ int draw(const Cut& cut, int64_t step) {
        const uint64_t least = sampling::least_weight(row_.options), own_tie = weight_of(cut.key);
        const uint64_t tie = own_tie >= least ? own_tie : 0;
        const auto tally_of = [&](uint32_t key) {
            if (key == cut.key) return Tally{0, 1};
            const uint64_t weight = key > cut.key ? weight_of(key) : 0;
            return Tally{weight >= least ? weight : 0, 0};
        };
        // The weight that is kept of tokens, from the first one on.
        const auto kept = [&](const Tally& tally) { return tally.mass + min(tally.count, cut.ties) * tie; };

        Tally own{};
        row_.each([&](uint32_t key) { own = own + tally_of(key); });
        own = over_lanes(own, Plus());
        const Sums<Tally> sums = cluster_.sums(own);
        const uint64_t drawn =
            sampling::below(sampling::random_bits(row_.options.seed, static_cast<uint64_t>(step)), kept(sums.all));
        Tally before = sums.before;
        int found = -1;
        if (drawn < kept(before) || drawn >= kept(before + own)) return found;
        row_.visit([&](int token, const auto& keys) {
            Tally lane{};
#pragma unroll
            for (int i = 0; i < Row::visit_count; ++i) lane = lane + tally_of(keys[i]);
            const Tally running = running_sum(lane);
            Tally up_to = before + running - lane;
            before = before + from_lane(running, 31);
            if (drawn < kept(up_to) || drawn >= kept(up_to + lane)) return;
#pragma unroll
            for (int i = 0; i < Row::visit_count; ++i) {
                const bool passed = drawn >= kept(up_to);
                up_to = up_to + tally_of(keys[i]);
                if (passed && drawn < kept(up_to)) found = token + i;
            }
        });
        return found;
    }

private:
    __device__ __forceinline__ uint64_t weight_of(uint32_t key) const {
        return sampling::weight(sampling::power_of_two(sampling::logit_of(key), largest_, row_.options.temperature));
    }

    // Linear bin, the likeliest first; bin_count: the token weighs nothing. The bins reach down to 2^-42 of the largest weight,
    // and weights above 0 to 2^-40 of it.
    __device__ __forceinline__ int bin_of(uint32_t key) const {
        return static_cast<int>(fminf((largest_ - sampling::logit_of(key)) * bins_per_unit_, bin_count));
    }

    // Of the tokens in `cut` those that top_k or, by mass, top_p leaves: the fewest of the likeliest whose number, or weight,
    // is at least a target.
    __device__ __forceinline__ Cut cut_at(bool by_mass, const Cut& cut) {
        const uint32_t least_key = max(cut.key, no_key + 1);
        Found found = count_bins(
            by_mass, least_key, [&](uint32_t key) { return bin_of(key); },
            [&](const Tally& sum) {
                return by_mass ? nucleus(sum.mass - cut.dropped * weight_of(cut.key)) : top(sum.count);
            });
        const int bin = found.bin;
        if (bin < 0) return cut;
        const auto is_inside = [&](uint32_t key) { return key >= least_key && bin_of(key) == bin; };

        CommonBits bits{~0u, 0};
        row_.each([&](uint32_t key) {
            if (is_inside(key)) bits = {bits.all & key, bits.any | key};
        });
        bits = cluster_.all(bits, CommonBits{~0u, 0}, [](const CommonBits& a, const CommonBits& b) {
            return CommonBits{a.all & b.all, a.any | b.any};
        });
        uint32_t key = bits.all, open = bits.all ^ bits.any;  // bits not yet known are 0 in the key
        uint64_t missing = found.target - found.before.metric(by_mass);
        while (open != 0) {
            const int end = 32 - __clz(static_cast<int>(open));
            const int shift = max(__ffs(static_cast<int>(open)) - 1, end - bin_bits);
            const uint32_t most = (1u << (end - shift)) - 1, digit = most << shift, lower = (1u << shift) - 1;
            found = count_bins(
                by_mass, least_key,
                [&](uint32_t other) {
                    const bool same = ((other ^ key) & ~(digit | lower)) == 0 && is_inside(other);
                    return same ? static_cast<int>(most - (other >> shift & most)) : bin_count;
                },
                [&](const Tally&) { return missing; });
            key = (key & ~digit) | (most - static_cast<uint32_t>(found.bin)) << shift;
            open &= lower;
            missing -= found.before.metric(by_mass);
        }
        // What is left are equal logits, so their weights are equal.
        const uint64_t weight = by_mass ? weight_of(key) : 1, ties = (missing + weight - 1) / weight;
        return {key, ties, found.inside.count - ties};
    }

    // 0: all.
    __device__ __forceinline__ uint64_t top(uint64_t count) const {
        const uint64_t wanted = static_cast<uint32_t>(row_.options.top_k);
        return wanted < count ? wanted : 0;
    }
    __device__ __forceinline__ uint64_t nucleus(uint64_t mass) const {
        const float part = row_.options.top_p;
        return max(part > 0.0f ? sampling::part_of(part, mass) : 0, uint64_t{1});
    }

    // Searches the histogram of the tokens from least_key on by bin_of_key(key); those from bin_count on are left out.
    template <class Bin, class Target>
    __device__ __forceinline__ Found count_bins(bool by_mass, uint32_t least_key, Bin&& bin_of_key,
                                                Target&& target_of) {
        RunOfBin run(histogram_);
        row_.each([&](uint32_t key) {
            const int bin = key >= least_key ? bin_of_key(key) : bin_count;
            if (bin < bin_count) run.add(bin, by_mass ? weight_of(key) : 0);
        });
        run.flush();
        return histogram_.find(by_mass, target_of);
    }

    const Row& row_;
    Cluster& cluster_;
    Histogram& histogram_;
    const float bins_per_unit_;  // of logits; finite, so that equal logits are in bin 0 at any temperature
    float largest_ = 0.0f, largest_logit_ = 0.0f;
};

}  // namespace mustafar::cuda
