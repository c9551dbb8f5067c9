// Sampling as the header defines it. Nothing is sorted: a filter finds the last token that it keeps, and the tokens stay in
// order of ids.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "core/sampling.h"
#include "cpu/parallel.h"
#include "cpu/step/step.h"
#include "cpu/step/values.h"

namespace mustafar {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// Larger for the token that comes first.
uint64_t rank_of(float score, int32_t token) {
    return uint64_t{sampling::order_key(score)} << 32 | ~static_cast<uint32_t>(token);
}

struct Candidate {
    uint64_t rank, weight;

    int32_t token() const { return static_cast<int32_t>(~static_cast<uint32_t>(rank)); }
};

// The options of a call for one sequence.
template <class T>
class Row {
public:
    Row(const mustafar_sampling& sampling, int32_t sequence)
        : options(sampling.options[sequence]), vocab_size(sampling.vocab_size),
          logits_(row_of<T>(sampling.logits, sequence)) {
        const int64_t words = divide_up(vocab_size, 32);
        if (sampling.allowed != nullptr) allowed_ = sampling.allowed + sequence * sampling.allowed_stride;
        if (sampling.prompt != nullptr) prompt_ = sampling.prompt + sequence * words;
        if (sampling.counts != nullptr) counts_ = sampling.counts + int64_t{sequence} * vocab_size;
    }

    // Calls with each token and its original logit, in order of ids.
    template <class Call>
    void each_logit(const Call& call) const {
        constexpr int32_t block = 256;  // widened at a time
        float values[block];
        for (int32_t first = 0; first < vocab_size; first += block) {
            const int32_t count = std::min(block, vocab_size - first);
            for (int32_t i = 0; i < count; ++i) values[i] = T::load(logits_[first + i]);
            for (int32_t i = 0; i < count; ++i) call(first + i, values[i]);
        }
    }

    // Calls with each token that is allowed and its logit after penalties, in order of ids.
    template <class Call>
    void each_score(const Call& call) const {
        if (allowed_ == nullptr && prompt_ == nullptr && counts_ == nullptr) return each_logit(call);
        each_logit([&](int32_t token, float logit) {
            if (allowed_ != nullptr && !sampling::has_bit(allowed_, token)) return;
            const bool in_prompt = prompt_ != nullptr && sampling::has_bit(prompt_, token);
            call(token, sampling::penalised(logit, counts_ != nullptr ? counts_[token] : 0, in_prompt, options));
        });
    }

    float logit(int32_t token) const { return T::load(logits_[token]); }

    const mustafar_sampling_options options;
    const int32_t vocab_size;

private:
    const typename T::Bits* logits_;
    const uint32_t *allowed_ = nullptr, *prompt_ = nullptr;
    const int32_t* counts_ = nullptr;
};

template <class T>
class Draw {
public:
    explicit Draw(const Row<T>& row) : row_(row) {
        bool nan = false;
        row_.each_score([&](int32_t token, float score) {
            if (score <= largest_) return;
            if (std::isnan(score)) {
                nan = true;
            } else {
                largest_ = score;
                likeliest_ = token;
            }
        });
        if (nan || !std::isfinite(largest_)) likeliest_ = -1;
    }

    int32_t token(int64_t step) {
        if (likeliest_ < 0 || sampling::is_greedy(row_.options)) return likeliest_;
        filter();
        uint64_t total = 0;
        for (const Candidate& candidate : candidates_) total += candidate.weight;
        uint64_t rest = sampling::below(sampling::random_bits(row_.options.seed, static_cast<uint64_t>(step)), total);
        for (const Candidate& candidate : candidates_) {
            if (rest < candidate.weight) return candidate.token();
            rest -= candidate.weight;
        }
        return likeliest_;  // not reached: rest is below the sum
    }

private:
    // Fills candidates_ with what the filters keep.
    void filter() {
        const mustafar_sampling_options& options = row_.options;
        const bool some = options.top_k > 0 && options.top_k < row_.vocab_size;
        const uint64_t cut = some ? last_of_likeliest(static_cast<size_t>(options.top_k)) : 0;
        row_.each_score([&](int32_t token, float score) {
            const uint64_t rank = rank_of(score, token);
            if (rank < cut) return;
            const uint64_t weight = sampling::weight(sampling::power_of_two(score, largest_, options.temperature));
            if (weight > 0) candidates_.push_back({rank, weight});
        });
        if (sampling::has_nucleus(options))
            std::erase_if(candidates_, [last = last_of_nucleus()](const Candidate& c) { return c.rank < last; });
        std::erase_if(candidates_,
                      [least = sampling::least_weight(options)](const Candidate& c) { return c.weight < least; });
    }

    // The rank of the last of the likeliest `count` tokens; 0 if there are not more.
    uint64_t last_of_likeliest(size_t count) const {
        std::vector<uint64_t> ranks;
        uint64_t last = 0;
        const auto keep_first = [&] {
            const auto end = ranks.begin() + static_cast<std::ptrdiff_t>(count);
            std::nth_element(ranks.begin(), end - 1, ranks.end(), std::greater<>{});
            ranks.erase(end, ranks.end());
            last = ranks.back();
        };
        row_.each_score([&](int32_t token, float score) {
            const uint64_t rank = rank_of(score, token);
            if (rank <= last) return;
            ranks.push_back(rank);
            if (ranks.size() == 2 * count) keep_first();
        });
        if (ranks.size() > count) keep_first();
        return last;
    }

    // The rank of the last token in the smallest set of likeliest candidates that reaches top_p.
    uint64_t last_of_nucleus() const {
        std::vector<Candidate> candidates = candidates_;
        uint64_t total = 0, before = 0;
        for (const Candidate& candidate : candidates) total += candidate.weight;
        const float top_p = row_.options.top_p;
        const uint64_t wanted = top_p > 0.0f ? sampling::part_of(top_p, total) : 0;
        // It is among first ... last, which is bisected; `before` is the weight of what comes before them.
        auto first = candidates.begin(), last = candidates.end();
        while (last - first > 1) {
            const auto middle = first + (last - first) / 2;
            std::nth_element(first, middle, last,
                             [](const Candidate& a, const Candidate& b) { return a.rank > b.rank; });
            uint64_t half = 0;
            for (auto candidate = first; candidate != middle; ++candidate) half += candidate->weight;
            if (before + half >= wanted) {
                last = middle;
            } else {
                before += half;
                first = middle;
            }
        }
        return first->rank;
    }

    const Row<T>& row_;
    std::vector<Candidate> candidates_;
    float largest_ = -infinity;
    int32_t likeliest_ = -1;
};

template <class T>
float log_probability(const Row<T>& row, int32_t token) {
    float largest = -infinity;
    row.each_logit([&](int32_t, float logit) { largest = logit > largest ? logit : largest; });
    double sum = 0.0;
    row.each_logit([&](int32_t, float logit) { sum += std::exp(double{logit} - double{largest}); });
    return static_cast<float>(double{row.logit(token)} - double{largest} - std::log(sum));
}

template <class T>
void sample_row(const mustafar_sampling& sampling, int32_t sequence) {
    const Row<T> row(sampling, sequence);
    const int32_t token = Draw<T>(row).token(sampling.steps[sequence]);
    sampling.tokens[sequence] = token;
    if (sampling.log_probabilities != nullptr)
        sampling.log_probabilities[sequence] =
            token < 0 ? std::numeric_limits<float>::quiet_NaN() : log_probability(row, token);
    if (token < 0) return;
    ++sampling.steps[sequence];
    if (sampling.counts != nullptr) ++sampling.counts[int64_t{sequence} * sampling.vocab_size + token];
}

}  // namespace

void sample(const mustafar_context& context, const mustafar_sampling& sampling) {
    with_dtype(sampling.dtype, [&](auto type) {
        parallel_for(thread_count(context.num_threads, sampling.batch), sampling.batch,
                     [&](int64_t b, int) { sample_row<decltype(type)>(sampling, static_cast<int32_t>(b)); });
    });
}

}  // namespace mustafar
