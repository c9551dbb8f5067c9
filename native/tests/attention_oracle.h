// Attention written out in double precision.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

struct Attended {
    std::vector<double> output;  // [head_dim]
    double log_sum_exp;
};

// A query's attention, a row of head_dim numbers, to the tokens first ... end - 1 of keys and values, [tokens, head_dim].
inline Attended attended(const double* query, const double* keys, const double* values, int64_t first, int64_t end,
                         int head_dim, double scale) {
    const double infinite = std::numeric_limits<double>::infinity();
    Attended result{std::vector<double>(static_cast<size_t>(head_dim)), -infinite};
    if (end <= first) return result;
    std::vector<double> weights;
    double maximum = -infinite, sum = 0;
    for (int64_t t = first; t < end; ++t) {
        double score = 0;
        for (int channel = 0; channel < head_dim; ++channel) score += query[channel] * keys[t * head_dim + channel];
        weights.push_back(score * scale);
        if (std::isnan(score) || maximum < weights.back()) maximum = std::isnan(maximum) ? maximum : weights.back();
    }
    for (double& weight : weights) sum += weight = std::exp(weight - maximum);
    for (int64_t t = first; t < end; ++t)
        for (int channel = 0; channel < head_dim; ++channel)
            result.output[static_cast<size_t>(channel)] +=
                weights[static_cast<size_t>(t - first)] / sum * values[t * head_dim + channel];
    result.log_sum_exp = maximum == -infinite ? maximum : maximum + std::log(sum);
    return result;
}
