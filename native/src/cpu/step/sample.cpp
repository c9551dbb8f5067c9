// Sampling as the header defines it, step by step.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/sampling.h"
#include "cpu/parallel.h"
#include "cpu/step/step.h"
#include "cpu/step/values.h"

namespace mustafar {
namespace {

struct Candidate {
    uint32_t key;
    int32_t token;
    uint64_t weight;
};

bool comes_first(const Candidate& a, const Candidate& b) {
    return a.key != b.key ? a.key > b.key : a.token < b.token;
}

class Draw {
public:
    Draw(const mustafar_sampling& sampling, int32_t sequence)
        : options_(sampling.options[sequence]), vocab_size_(sampling.vocab_size),
          logits_(static_cast<size_t>(sampling.vocab_size)), scores_(logits_.size()) {
        const int64_t words = divide_up(vocab_size_, 32);
        const uint32_t* allowed = sampling.allowed ? sampling.allowed + sequence * sampling.allowed_stride : nullptr;
        const uint32_t* prompt = sampling.prompt ? sampling.prompt + sequence * words : nullptr;
        const int32_t* counts = sampling.counts ? sampling.counts + int64_t{sequence} * vocab_size_ : nullptr;
        with_dtype(sampling.dtype, [&](auto type) {
            using T = decltype(type);
            const auto* row = row_of<T>(sampling.logits, sequence);
            for (int32_t t = 0; t < vocab_size_; ++t) logits_[static_cast<size_t>(t)] = T::load(row[t]);
        });
        for (int32_t t = 0; t < vocab_size_; ++t) {
            const size_t i = static_cast<size_t>(t);
            if (allowed != nullptr && !sampling::has_bit(allowed, t)) {
                scores_[i] = -std::numeric_limits<float>::infinity();
                continue;
            }
            scores_[i] = sampling::penalised(logits_[i], counts ? counts[t] : 0, prompt && sampling::has_bit(prompt, t),
                                             options_);
            if (std::isnan(scores_[i])) return;
            if (likeliest_ < 0 || scores_[i] > scores_[static_cast<size_t>(likeliest_)]) likeliest_ = t;
        }
        valid_ = likeliest_ >= 0 && std::isfinite(scores_[static_cast<size_t>(likeliest_)]);
    }

    int32_t token(int64_t step) {
        if (!valid_) return -1;
        if (sampling::is_greedy(options_)) return likeliest_;
        keep_likeliest();
        uint64_t total = 0;
        for (const Candidate& candidate : candidates_) total += candidate.weight;
        uint64_t rest = sampling::below(sampling::random_bits(options_.seed, static_cast<uint64_t>(step)), total);
        for (const Candidate& candidate : candidates_) {
            if (rest < candidate.weight) return candidate.token;
            rest -= candidate.weight;
        }
        return likeliest_;  // not reached: rest is below the sum
    }

    float log_probability(int32_t token) const {
        if (token < 0) return std::numeric_limits<float>::quiet_NaN();
        const float largest = *std::max_element(logits_.begin(), logits_.end());
        double sum = 0.0;
        for (const float logit : logits_) sum += std::exp(double{logit} - double{largest});
        return static_cast<float>(double{logits_[static_cast<size_t>(token)]} - double{largest} - std::log(sum));
    }

private:
    // Fills candidates_ with what the filters leave, in order of ids.
    void keep_likeliest() {
        const float largest = scores_[static_cast<size_t>(likeliest_)];
        const uint64_t least = sampling::least_weight(options_);
        for (int32_t t = 0; t < vocab_size_; ++t) {
            const float score = scores_[static_cast<size_t>(t)];
            const uint64_t weight = sampling::weight(sampling::power_of_two(score, largest, options_.temperature));
            if (weight > 0) candidates_.push_back({sampling::order_key(score), t, weight});
        }
        const size_t top_k = options_.top_k > 0 ? static_cast<size_t>(options_.top_k) : candidates_.size();
        const bool some = top_k < candidates_.size();
        if (some || sampling::has_nucleus(options_)) {
            if (some) {
                std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(top_k),
                                 candidates_.end(), comes_first);
                candidates_.resize(top_k);
            }
            if (sampling::has_nucleus(options_)) keep_nucleus();
            std::sort(candidates_.begin(), candidates_.end(),
                      [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
        }
        std::erase_if(candidates_, [=](const Candidate& candidate) { return candidate.weight < least; });
    }

    void keep_nucleus() {
        std::sort(candidates_.begin(), candidates_.end(), comes_first);
        uint64_t total = 0;
        for (const Candidate& candidate : candidates_) total += candidate.weight;
        const uint64_t wanted = options_.top_p > 0.0f ? sampling::part_of(options_.top_p, total) : 0;
        size_t count = 0;
        for (uint64_t sum = 0; count == 0 || sum < wanted; ++count) sum += candidates_[count].weight;
        candidates_.resize(count);
    }

    mustafar_sampling_options options_;
    int32_t vocab_size_;
    std::vector<float> logits_, scores_;
    std::vector<Candidate> candidates_;
    int32_t likeliest_ = -1;
    bool valid_ = false;
};

}  // namespace

void sample(const mustafar_context& context, const mustafar_sampling& sampling) {
    parallel_for(thread_count(context.num_threads, sampling.batch), sampling.batch, [&](int64_t b, int) {
        Draw draw(sampling, static_cast<int32_t>(b));
        const int32_t token = draw.token(sampling.steps[b]);
        sampling.tokens[b] = token;
        if (sampling.log_probabilities != nullptr) sampling.log_probabilities[b] = draw.log_probability(token);
        if (token < 0) return;
        ++sampling.steps[b];
        if (sampling.counts != nullptr) ++sampling.counts[b * sampling.vocab_size + token];
    });
}

}  // namespace mustafar
