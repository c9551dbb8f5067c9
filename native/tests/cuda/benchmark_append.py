"""Prune + compress of whole tensors and appends of one token: graph replay, microseconds.

    python3 benchmark_append.py LIBRARY
"""
import sys

import torch

from benchmark import graph_time
from native import (BALANCED_KEYS, BALANCED_VALUES, KEY_FRAGMENT, UNSTRUCTURED, VALUE_FRAGMENT, Append, Library, Pages,
                    dense)


def main():
    library = Library(sys.argv[1])
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(8, 8, 8192, 128, device="cuda").to(dtype)
        sources = [x, torch.randn_like(x)]
        for name, patterns in (("unstructured", (UNSTRUCTURED, UNSTRUCTURED)), ("balanced", (BALANCED_KEYS, BALANCED_VALUES))):
            for keep in (40, 64):
                times = []
                for order, pattern in zip((KEY_FRAGMENT, VALUE_FRAGMENT), patterns):
                    pages = Pages(8, 8, 8192, 128, dtype, keep, order, 16, pattern=pattern)
                    calls = [lambda s=s: library.call("compress", 8, 8, 8192, dense(s), None, None, pages.blocks()) for s in sources]
                    times.append(graph_time(calls))
                print(f"compress 64x8192x128 {dtype} {name} keep {keep}: keys {times[0]:.1f} us, values {times[1]:.1f} us", flush=True)
    batch, heads = 64, 8
    pages = [Pages(batch, heads, 8192 + 64, 128, torch.float16, 40, order, 16) for order in (KEY_FRAGMENT, VALUE_FRAGMENT)]
    tails = [torch.randn(batch, heads, 96, 128, device="cuda").half() for _ in range(2)]
    new = [torch.randn(batch, heads, 1, 128, device="cuda").half() for _ in range(2)]
    for length, due in ((8100, False), (8128 + 95, True)):
        lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
        compressed = torch.full((batch,), 8128 if due else 8064, dtype=torch.int32, device="cuda")
        after = [torch.empty_like(lengths) for _ in range(2)]
        arguments = Append(batch, batch, heads, 1, 0, 64, 32, 96, 8256, None, None, lengths.data_ptr(), compressed.data_ptr(),
                           after[0].data_ptr(), after[1].data_ptr(), dense(new[0]), dense(new[1]), pages[0].blocks(),
                           pages[1].blocks(), None, dense(tails[0]), dense(tails[1]))
        time = graph_time([lambda: library.call("append", arguments)])
        print(f"append 1 token to {batch} sequences x {heads} heads, group due {due} "
              f"({int(after[1][0]) - int(compressed[0])} tokens compressed): {time:.1f} us", flush=True)


if __name__ == "__main__":
    main()
