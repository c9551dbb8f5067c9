"""Prune + compress of whole tensors and appends of one token: graph replay, microseconds.

    python3 benchmark_append.py LIBRARY
"""
import sys

import torch

from abi import ALL, BALANCED_KEYS, BALANCED_VALUES, KEY_FRAGMENT, UNSTRUCTURED, VALUE_FRAGMENT, Append
from benchmark import graph_time
from native import Library, Pages, dense

ORDERS = (KEY_FRAGMENT, VALUE_FRAGMENT)
PATTERNS = {"unstructured": (UNSTRUCTURED, UNSTRUCTURED), "balanced": (BALANCED_KEYS, BALANCED_VALUES), "all": (ALL, ALL)}
# pattern, channels kept of 128, bits
FORMATS = [("unstructured", 40, 16), ("unstructured", 64, 16), ("balanced", 40, 16), ("balanced", 64, 16), ("all", 128, 8), ("all", 128, 4),
           ("balanced", 64, 4), ("unstructured", 64, 8), ("unstructured", 64, 4)]


def make_pages(batch, heads, tokens, dtype, pattern, keep, bits):
    return [Pages(batch, heads, tokens, 128, dtype, keep, order, 16, pattern=p, bits=bits) for order, p in zip(ORDERS, PATTERNS[pattern])]


def compress(library, dtype):
    x = torch.randn(8, 8, 8192, 128, device="cuda").to(dtype)
    sources = [x, torch.randn_like(x)]
    for pattern, keep, bits in FORMATS:
        factors = torch.ones(8, 8, 128, device="cuda") if bits < 16 else None
        times = []
        for pages, own in zip(make_pages(8, 8, 8192, dtype, pattern, keep, bits), (factors, None)):
            calls = [lambda s=s: library.call("compress", 8, 8, 8192, dense(s), None, None, own, pages.blocks()) for s in sources]
            times.append(graph_time(calls))
        print(f"compress 64x8192x128 {dtype} {pattern} keep {keep} bits {bits}: keys {times[0]:.1f} us, values {times[1]:.1f} us", flush=True)
        if keep < 128:
            chosen(library, dtype, pattern, keep, bits, sources, factors)


def chosen(library, dtype, pattern, keep, bits, sources, factors):
    """The same by an importance of each channel, and from bitmaps."""
    importance = torch.rand(8, 8, 128, device="cuda") + 0.5
    bitmap = torch.empty(8, 8, 8192, 4, dtype=torch.int32, device="cuda")
    for name, by in (("an importance", (None, importance)), ("a bitmap", (bitmap, None))):
        times = []
        for pages, own in zip(make_pages(8, 8, 8192, dtype, pattern, keep, bits), (factors, None)):
            blocks = pages.blocks()
            library.call("prune", blocks.format, 8, 8, 8192, dense(sources[0]), None, bitmap)
            times.append(graph_time([lambda: library.call("compress", 8, 8, 8192, dense(sources[0]), *by, own, blocks)]))
        print(f"  by {name}: keys {times[0]:.1f} us, values {times[1]:.1f} us", flush=True)


def append(library, pattern, keep, bits):
    batch, heads = 64, 8
    pages = make_pages(batch, heads, 8192 + 64, torch.float16, pattern, keep, bits)
    factors = torch.ones(batch, heads, 128, device="cuda") if bits < 16 else None
    tails = [torch.randn(batch, heads, 96, 128, device="cuda").half() for _ in range(2)]
    new = [torch.randn(batch, heads, 1, 128, device="cuda").half() for _ in range(2)]
    for length, due in ((8100, False), (8128 + 95, True)):
        lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
        compressed = torch.full((batch,), 8128 if due else 8064, dtype=torch.int32, device="cuda")
        after = [torch.empty_like(lengths) for _ in range(2)]
        arguments = Append(batch, batch, heads, 1, 0, 64, 32, 96, 8256, None, None, lengths.data_ptr(), compressed.data_ptr(),
                           after[0].data_ptr(), after[1].data_ptr(), dense(new[0]), dense(new[1]), pages[0].blocks(),
                           pages[1].blocks(), None if factors is None else factors.data_ptr(), dense(tails[0]), dense(tails[1]))
        time = graph_time([lambda: library.call("append_tokens", arguments)])
        print(f"append 1 token to {batch} sequences x {heads} heads, {pattern} keep {keep} bits {bits}, group due {due} "
              f"({int(after[1][0]) - int(compressed[0])} tokens compressed): {time:.1f} us", flush=True)


def main():
    library = Library(sys.argv[1])
    for dtype in (torch.float16, torch.bfloat16):
        compress(library, dtype)
    for pattern, keep, bits in FORMATS:
        append(library, pattern, keep, bits)


if __name__ == "__main__":
    main()
