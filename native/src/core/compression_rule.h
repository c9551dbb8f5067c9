// When tokens of a cache are compressed. The public header states the rule. Usable in device code.
#pragma once

namespace mustafar {

// How many of a sequence's first tokens are compressed. No argument is negative, group_size >= 1.
template <class Count>
constexpr Count compressed_tokens(Count length, Count lookahead, Count local_window, Count group_size) {
    const Count dense = lookahead < local_window ? local_window - lookahead : 0;
    return length <= dense ? 0 : (length - dense) / group_size * group_size;
}

}  // namespace mustafar
