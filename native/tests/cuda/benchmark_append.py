"""Prune + compress of whole tensors and appends of one token: graph replay, microseconds.

    python3 benchmark_append.py LIBRARY
"""
import sys

import torch

from benchmark import graph_time
from native import KEY_FRAGMENT, VALUE_FRAGMENT, Append, Library, Pages, dense


def main():
    library = Library(sys.argv[1])
    for dtype in (torch.float16, torch.bfloat16):
        for keep in (40, 64):
            x = torch.randn(8, 8, 8192, 128, device="cuda").to(dtype)
            sources = [x, torch.randn_like(x)]
            for order in (KEY_FRAGMENT, VALUE_FRAGMENT):
                pages = Pages(8, 8, 8192, 128, dtype, keep, order, 16)
                calls = [lambda s=s: library.call("compress", 8, 8, 8192, dense(s), None, pages.blocks()) for s in sources]
                print(f"compress 64x8192x128 {dtype} keep {keep} order {order}: {graph_time(calls):.1f} us", flush=True)
    batch, heads = 64, 8
    pages = [Pages(batch, heads, 8192 + 64, 128, torch.float16, 40, order, 16) for order in (KEY_FRAGMENT, VALUE_FRAGMENT)]
    tails = [torch.randn(batch, heads, 96, 128, device="cuda").half() for _ in range(2)]
    new = [torch.randn(batch, heads, 1, 128, device="cuda").half() for _ in range(2)]
    for length, due in ((8100, False), (8128 + 95, True)):
        lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
        compressed = torch.full((batch,), 8128 if due else 8064, dtype=torch.int32, device="cuda")
        after = [torch.empty_like(lengths) for _ in range(2)]
        arguments = Append(batch, heads, 1, 0, 64, 32, 96, 8256, None, lengths.data_ptr(), compressed.data_ptr(),
                           after[0].data_ptr(), after[1].data_ptr(), dense(new[0]), dense(new[1]), pages[0].blocks(),
                           pages[1].blocks(), dense(tails[0]), dense(tails[1]))
        time = graph_time([lambda: library.call("append", arguments)])
        print(f"append 1 token to {batch} sequences x {heads} heads, group due {due} "
              f"({int(after[1][0]) - int(compressed[0])} tokens compressed): {time:.1f} us", flush=True)


if __name__ == "__main__":
    main()
