// The rotation of keys whose integers are those of a rotated row (MUSTAFAR_PATTERN_ALL_ROTATED).
#pragma once

namespace mustafar {

// 1 / sqrt(head_dim) for the head_dims that can be rotated; 0 for others.
constexpr float hadamard_factor(int head_dim) {
    return head_dim == 64 ? 0.125f : head_dim == 128 ? 0.0883883461f : head_dim == 256 ? 0.0625f : 0.0f;
}

// row becomes H row, where H[i][j] is (-1)^popcount(i & j) / sqrt(head_dim); H is its own inverse. Back ends sum in the
// same order, from neighbours up to halves, so that they make the same integers.
inline void hadamard(float* row, int head_dim) {
    for (int distance = 1; distance < head_dim; distance *= 2)
        for (int first = 0; first < head_dim; first += 2 * distance)
            for (int i = first; i < first + distance; ++i) {
                const float a = row[i], b = row[i + distance];
                row[i] = a + b;
                row[i + distance] = a - b;
            }
    for (int c = 0; c < head_dim; ++c) row[c] *= hadamard_factor(head_dim);
}

}  // namespace mustafar
