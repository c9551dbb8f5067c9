"""Checks of what only the C API reaches on CUDA, against the oracles of reference.py: blocks byte by byte in the order of the kernels,
pages in any order in memory that is NaN otherwise, log-sum-exps, damaged tables. The rest is tested by the C# fixtures.

    MUSTAFAR_LIBRARY=.../libmustafar.so python3 test_cuda.py [--small] [NAME ...]

Every case draws fresh inputs from the seed that it prints. --small: the shapes for compute-sanitizer, of which
racecheck is told to leave torch's kernels alone:

    compute-sanitizer --tool memcheck|initcheck python3 test_cuda.py --small
    compute-sanitizer --tool racecheck --kernel-name kernel_substring=mustafar python3 test_cuda.py --small
"""
import argparse
import itertools
import math
import sys
import time
import traceback

import torch

import reference
from abi import (BALANCED_KEYS, BALANCED_VALUES, BLOCK, COUNTER_BYTES, KEY_FRAGMENT, PADDING, UNSTRUCTURED, VALUE_FRAGMENT, Append,
                 Product)
from cache import Cache, Call, compressed_tokens, last_tokens
from native import Library, Pages, dense

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SMALL = False
library = None


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def bits(x):
    return x.contiguous().view(torch.int32 if x.dtype == F32 else torch.int16)


def same_bits(name, got, expected):
    different = bits(got) != bits(expected)
    check(not different.any(), f"{name}: {int(different.sum())} of {different.numel()} differ, first at "
                               f"{torch.nonzero(different)[:1].tolist()}")


def rows(kind, shape, dtype, generator):
    x = torch.randn(shape, device="cuda", generator=generator)
    uniform = torch.rand(shape, device="cuda", generator=generator)
    if kind == "ties":
        x = (x * 2).round()
    elif kind == "special":
        x = torch.where(uniform < 0.05, float("nan"), x)
        x = torch.where(uniform > 0.95, float("inf"), x)
        x = torch.where((uniform > 0.4) & (uniform < 0.6), -0.0, x)
        x = torch.where((uniform > 0.3) & (uniform < 0.35), -float("inf"), x)
    elif kind == "tiny":
        x = x * (3e-7 if dtype == F16 else 1e-39)
    elif kind == "huge":
        x = x * (2e4 if dtype == F16 else 1e38)
    elif kind == "zeros":
        x = torch.where(uniform < 0.9, torch.copysign(torch.zeros_like(x), x), x)
    elif kind == "same channels":
        x = x + 100 * (torch.arange(shape[-1], device="cuda") % 8 == 3)
    return x.to(dtype)


def strided(x, generator_offset):
    """A copy of x whose rows lie at odd distances from an odd start."""
    batch, heads, tokens, head_dim = x.shape
    wide = torch.full((batch, heads, tokens + 1, head_dim + 3), float("nan"), dtype=x.dtype, device=x.device)
    view = wide.flatten()[generator_offset:]
    view = torch.as_strided(view, x.shape, wide.stride())
    view.copy_(x)
    return view


def compression_cases():
    """Kind of rows, dtype, head_dim, kept channels, balanced?"""
    for kind in ("random", "ties", "special", "tiny", "huge", "zeros", "same channels"):
        for dtype in (F16, BF16, F32):
            for head_dim, keep in ((128, 40), (64, 20), (80, 33), (96, 96), (256, 77)):
                yield kind, dtype, head_dim, keep, False
            for head_dim, of_sixteen in itertools.product((64, 128, 256), (5, 6, 7, 8)):
                yield kind, dtype, head_dim, of_sixteen * head_dim // 16, True
    for keep in (1, 7, 39, 64, 127, 128):
        yield "random", F16, 128, keep, False
        yield "same channels", BF16, 128, keep, False


def test_compress():
    """Blocks in the order of the kernels, in pages anywhere: byte by byte, with nothing written beside them, and any range read back."""
    for seed, (kind, dtype, head_dim, keep, balanced) in enumerate(compression_cases()):
        if SMALL and seed % 5:
            continue
        generator = torch.Generator(device="cuda").manual_seed(seed)
        batch, heads, tokens = 2, 3, (96, 75, 96, 33)[seed % 4]
        x = rows(kind, (batch, heads, tokens, head_dim), dtype, generator)
        source = strided(x, 1) if seed % 3 == 0 else x
        for order, role, balanced_pattern in ((KEY_FRAGMENT, "keys", BALANCED_KEYS), (VALUE_FRAGMENT, "values", BALANCED_VALUES)):
            case = f"{kind} {dtype} {role} head_dim {head_dim} keep {keep} balanced {balanced} seed {seed}"
            mask = reference.balanced_mask(x, keep, role) if balanced else reference.keep_mask(x, keep)
            pages = Pages(batch, heads, tokens, head_dim, dtype, keep, order, 2, base=48,
                          pattern=balanced_pattern if balanced else UNSTRUCTURED)
            before = pages.memory.clone()
            library.call("compress", batch, heads, tokens, dense(source), None, None, None, pages.blocks())
            places = pages.gathered(-(-tokens // BLOCK))
            if not balanced and tokens % BLOCK == 0:
                expected = reference.pack(x, mask, role if dtype != F32 and head_dim in (64, 128) else "plain")
                check(torch.equal(pages.memory[places], expected), f"{case}: blocks differ")
            outside = torch.ones_like(pages.memory, dtype=torch.bool)
            outside[places.flatten()] = False
            check(torch.equal(pages.memory[outside], before[outside]), f"{case}: bytes outside the blocks were written")
            for first, count in ((0, tokens), (tokens // 4, tokens // 2)):
                out = torch.full((batch, heads, count + 2, head_dim), float("nan"), dtype=dtype, device="cuda")
                library.call("decompress", batch, heads, first, count, pages.blocks(), None, dense(out[:, :, 1:]))
                expected = torch.where(mask, x, torch.zeros_like(x))[:, :, first:first + count]
                same_bits(f"{case} decompressed from {first}", out[:, :, 1:-1], expected)
                check(out[:, :, 0].isnan().all() and out[:, :, -1].isnan().all(), f"{case}: decompress wrote too much")


def test_products():
    for seed, (dtype, head_dim, keep, tokens) in enumerate(((F16, 128, 40, 128), (BF16, 64, 20, 96), (F32, 80, 30, 64),
                                                            (F16, 256, 100, 32))):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        batch, heads, kv_heads, queries = 2, 6, 2, 3
        keys, values = (rows("random", (batch, kv_heads, tokens, head_dim), dtype, generator) for _ in range(2))
        pages = [Pages(batch, kv_heads, tokens, head_dim, dtype, keep, order, 3) for order in (KEY_FRAGMENT, VALUE_FRAGMENT)]
        for page, tensor in zip(pages, (keys, values)):
            library.call("compress", batch, kv_heads, tokens, dense(tensor), None, None, None, page.blocks())
        keys, values = (torch.where(reference.keep_mask(x, keep), x, 0).double().repeat_interleave(heads // kv_heads, 1)
                        for x in (keys, values))
        query = rows("random", (batch, heads, queries, head_dim), dtype, generator)
        scores = torch.full((batch, heads, queries, tokens), float("nan"), device="cuda")
        library.call("key_scores", Product(batch, heads, kv_heads, queries, tokens, pages[0].blocks(), dense(query), dense(scores), 0.25))
        exact = query.double() @ keys.transpose(-1, -2) * 0.25
        check((scores.double() - exact).abs().max() <= 1e-4 * exact.abs().max() + 1e-6, f"seed {seed}: key scores")
        weights = torch.softmax(rows("random", scores.shape, F32, generator), -1)
        out = torch.full_like(query, float("nan"))
        library.call("value_sum", Product(batch, heads, kv_heads, queries, tokens, pages[1].blocks(), dense(out), dense(weights), 2.0))
        exact = weights.double() @ values * 2
        step = {F32: 1e-5, F16: 1e-3, BF16: 8e-3}[dtype]
        check((out.double() - exact).abs().max() <= step * exact.abs().max() + 1e-6, f"seed {seed}: value sum")


def attention_cases():
    # batch, heads, kv heads, head_dim, longest, keep of keys, of values, dtype, queries, fresh?, sliding window, balanced?
    for case in unstructured_cases():
        yield *case, False
    yield 2, 8, 8, 128, 1100, 40, 40, F16, 1, False, 0, True
    yield 3, 12, 4, 128, 700, 64, 40, BF16, 1, True, 0, True
    yield 2, 8, 2, 64, 900, 20, 24, F16, 1, False, 0, True
    yield 1, 32, 2, 128, 2100, 48, 56, F16, 1, True, 0, True
    yield 2, 6, 2, 128, 500, 56, 64, F16, 5, True, 0, True
    yield 2, 8, 2, 64, 700, 28, 32, BF16, 8, True, 0, True
    yield 2, 8, 4, 128, 1500, 40, 48, F16, 3, True, 200, True
    yield 1, 4, 4, 256, 300, 80, 96, F16, 1, False, 0, True
    yield 2, 4, 2, 128, 300, 40, 64, F32, 2, True, 0, True
    yield 5, 8, 1, 128, 3000, 40, 40, BF16, 1, False, 0, True
    yield 40, 8, 8, 64, 900, 20, 32, F16, 1, False, 0, True


def unstructured_cases():
    yield 2, 8, 8, 128, 1100, 40, 40, F16, 1, False, 0
    yield 3, 12, 4, 128, 700, 39, 64, BF16, 1, True, 0
    yield 2, 8, 2, 64, 900, 24, 20, F16, 1, False, 0
    yield 1, 32, 2, 128, 2100, 50, 40, F16, 1, True, 0
    yield 2, 6, 2, 128, 500, 33, 65, F16, 5, True, 0
    yield 2, 8, 2, 64, 700, 20, 20, BF16, 8, True, 0
    yield 2, 4, 2, 128, 800, 128, 128, F16, 1, False, 0
    yield 2, 8, 4, 128, 1500, 40, 40, F16, 3, True, 200
    yield 1, 4, 1, 128, 130, 1, 1, F16, 1, False, 0
    yield 2, 6, 2, 128, 400, 40, 40, F16, 40, True, 0
    yield 2, 3, 1, 80, 300, 30, 20, F16, 1, True, 0
    yield 2, 4, 2, 96, 300, 30, 40, BF16, 2, True, 100
    yield 1, 4, 4, 256, 300, 77, 60, F16, 1, False, 0
    yield 2, 4, 2, 128, 300, 40, 40, F32, 2, True, 0
    yield 2, 4, 2, 64, 40, 20, 20, F32, 1, False, 0
    yield 5, 8, 1, 128, 3000, 24, 40, BF16, 1, False, 0
    yield 40, 8, 8, 128, 900, 40, 40, F16, 1, False, 0


def test_attention():
    for seed, (batch, heads, kv_heads, head_dim, longest, kk, kv, dtype, queries, fresh, window,
               balanced) in enumerate(attention_cases()):
        if SMALL and batch * heads * longest > 20000:
            continue
        case = f"{(batch, heads, kv_heads, head_dim, longest, kk, kv, dtype, queries, fresh, window, balanced)} seed {seed}"
        generator = torch.Generator(device="cuda").manual_seed(seed)
        keys, values = (rows("same channels" if seed % 4 == 3 else "random", (batch, kv_heads, longest, head_dim), dtype,
                             generator) for _ in range(2))
        keys, values = keys / 4, values
        query = rows("random", (batch, heads, queries, head_dim), dtype, generator)
        lengths = [longest] + torch.randint(0, longest + 1, (batch - 1,), generator=torch.Generator().manual_seed(seed)).tolist()
        if batch > 2:
            lengths[1] = 0
        counts = [min(queries, n) for n in lengths]
        if queries > 2 and batch > 1:
            counts[-1] = min(2, lengths[-1])
        cache = Cache(keys, values, lengths, kk, kv, fragment=dtype != F32 and head_dim in (64, 128), fresh=counts if fresh else None,
                      page_blocks=1 + seed % 5, generator=torch.Generator().manual_seed(seed), base=16 * (seed % 3),
                      balanced=library if balanced else None)
        fresh_keys, fresh_values = (last_tokens(x, lengths, counts, queries) if fresh else None for x in (keys, values))
        scale = 1 / math.sqrt(head_dim)
        if seed % 3 == 1:
            query = strided(query, 1)
        call = Call(library, cache, query, counts=counts, fresh_keys=fresh_keys, fresh_values=fresh_values,
                    sliding_window=window, scale=scale)
        out = call().double()
        exact, lse = reference.attention(query, cache.keys, cache.values, lengths, counts, scale, window)
        check(not out.isnan().any(), f"{case}: {int(out.isnan().sum())} NaNs of {out.numel()}")
        # The same attention by torch in the same dtype, on the first sequence.
        n, c = lengths[0], counts[0]
        token, place = torch.arange(n, device="cuda")[None], torch.arange(n - c, n, device="cuda")[:, None]
        seen = (token <= place) & ((token > place - window) if window else True)
        by_torch = torch.nn.functional.scaled_dot_product_attention(
            query[:1, :, :c].contiguous(), cache.keys[:1, :, :n].repeat_interleave(heads // kv_heads, 1),
            cache.values[:1, :, :n].repeat_interleave(heads // kv_heads, 1), attn_mask=seen, scale=scale).double()
        torch_error = ((by_torch - exact[:1, :, :c]).norm() / exact[:1, :, :c].norm()).item()
        error = ((out - exact)[:1, :, :c].norm() / exact[:1, :, :c].norm()).item()
        check(error <= 2 * torch_error + 1e-6, f"{case}: error {error:.2e}, torch's {torch_error:.2e}")
        error = ((out - exact).norm() / exact.norm()).item()
        check(error <= {F32: 1e-5, F16: 6e-4, BF16: 4e-3}[dtype], f"{case}: error {error:.2e} over all sequences")
        worst = (out - exact).abs().max().item()
        limit = {F32: 1e-5, F16: 4e-3, BF16: 3e-2}[dtype] * exact.abs().max().item()
        check(worst <= limit, f"{case}: worst element off by {worst:.2e} (limit {limit:.2e})")
        finite = lse.isfinite()
        check(torch.equal(call.lse.isfinite(), finite), f"{case}: log-sum-exp is infinite in the wrong places")
        off = (call.lse.double() - lse)[finite].abs().max().item() if finite.any() else 0
        check(off <= {F32: 1e-4, F16: 5e-3, BF16: 5e-3}[dtype], f"{case}: log-sum-exp off by {off:.2e}")
        first = call.out.clone()
        call.out.fill_(float("nan"))
        call()
        same_bits(f"{case}: second run", call.out, first)


def test_special_log_sum_exp():
    """A key that is not finite, compressed or dense, has the log-sum-exp of its score: NaN, or of minus infinity that of the others."""
    for head_dim, dtype, keep, balanced in ((128, F16, 40, False), (64, BF16, 20, False), (128, BF16, 64, True), (64, F16, 20, True),
                                            (80, F16, 30, False), (64, F32, 20, False), (256, BF16, 80, True)):
        generator = torch.Generator(device="cuda").manual_seed(head_dim)
        for value, token in itertools.product((float("nan"), float("inf"), -float("inf")), (10, 298)):
            keys, values = (rows("random", (2, 2, 300, head_dim), dtype, generator) for _ in range(2))
            query = rows("random", (2, 6, 2, head_dim), dtype, generator).abs() + 0.125
            keys[1, 0, token, 7] = value
            cache = Cache(keys, values, [300, 300], keep, keep, fragment=dtype != F32 and head_dim in (64, 128),
                          balanced=library if balanced else None)
            call = Call(library, cache, query)
            call()
            exact = reference.attention(query, cache.keys, cache.values, [300, 300], [2, 2], head_dim ** -0.5)[1]
            exact = torch.where(exact == float("inf"), float("nan"), exact)
            case = f"head_dim {head_dim} {dtype} balanced {balanced}, key {token} {value}"
            check(torch.equal(call.lse.isnan(), exact.isnan()), f"{case}: NaN in the wrong places")
            check((call.lse.double() - exact).nan_to_num().abs().max() <= 5e-3, f"{case}: log-sum-exp")


def test_append():
    for seed, (dtype, head_dim, keep, window, group, queue) in enumerate((
            (F16, 128, 40, 32, 64, [1, 63, 1, 40, 1, 1, 200, 7]), (BF16, 64, 20, 0, 32, [31, 1, 1, 64, 33]),
            (F32, 80, 30, 40, 96, [500, 1, 1, 90]), (F16, 256, 60, 5, 32, [3, 64, 64, 1]))):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        host = torch.Generator().manual_seed(seed)
        batch, heads = 3, 2
        capacity = (window + BLOCK - 1) // BLOCK * BLOCK + group
        longest = sum(queue)
        keys, values = (rows("random", (batch, heads, longest, head_dim), dtype, generator) for _ in range(2))
        pages = [Pages(batch, heads, longest + BLOCK, head_dim, dtype, keep, order, 2, host) for order in
                 (KEY_FRAGMENT, VALUE_FRAGMENT)]
        tails = [torch.full((batch, heads, capacity, head_dim), float("nan"), dtype=dtype, device="cuda") for _ in range(2)]
        lengths, compressed = (torch.zeros(batch, dtype=torch.int32, device="cuda") for _ in range(2))
        expected_lengths, expected_compressed = [0] * batch, [0] * batch
        for step, most in enumerate(queue):
            counts = [most] + torch.randint(0, most + 1, (batch - 1,), generator=host).tolist()
            lookahead = step % 2
            new = [torch.full((batch, heads, most, head_dim), float("nan"), dtype=dtype, device="cuda") for _ in range(2)]
            for b, count in enumerate(counts):
                for target, source in zip(new, (keys, values)):
                    target[b, :, :count] = source[b, :, expected_lengths[b]:expected_lengths[b] + count]
            after = [torch.full_like(lengths, -1) for _ in range(2)]
            given = torch.tensor(counts, dtype=torch.int32, device="cuda")
            library.call("append_tokens", Append(
                batch, batch, heads, most, lookahead, group, window, capacity, longest, None, given.data_ptr(), lengths.data_ptr(),
                compressed.data_ptr(), after[0].data_ptr(), after[1].data_ptr(), dense(new[0]), dense(new[1]),
                pages[0].blocks(), pages[1].blocks(), None, dense(tails[0]), dense(tails[1])))
            lengths, compressed = after
            for b, count in enumerate(counts):
                expected_lengths[b] += count
                n = expected_lengths[b]
                expected_compressed[b] = max(expected_compressed[b],
                                             compressed_tokens(n, window, group, lookahead))
            check(lengths.tolist() == expected_lengths, f"append seed {seed} step {step}: lengths {lengths.tolist()}")
            check(compressed.tolist() == expected_compressed,
                  f"append seed {seed} step {step}: compressed {compressed.tolist()}, expected {expected_compressed}")
            for b in range(batch):
                n, c = expected_lengths[b], expected_compressed[b]
                slots = torch.arange(c, n, device="cuda") % capacity
                for page, tail, full, role in zip(pages, tails, (keys, values), ("keys", "values")):
                    same_bits(f"append seed {seed} step {step} ring", tail[b, :, slots], full[b, :, c:n])
                    if c:
                        part = full[b:b + 1, :, :c]
                        role = role if dtype != F32 and head_dim in (64, 128) else "plain"
                        packed = reference.pack(part, reference.keep_mask(part, keep), role)[0]
                        check(torch.equal(page.memory[page.gathered(c // BLOCK)[b]], packed),
                              f"append seed {seed} step {step}: blocks of sequence {b} differ")


def test_any_subset():
    """Rows of a call are any of the cache's sequences, in any order; the others are neither read nor changed. Calls of all
    shapes share one workspace, whose counters are zero after each."""
    workspace = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    for seed, (kv_heads, heads, head_dim, dtype, longest, balanced) in enumerate((
            (2, 8, 128, F16, 3000, False), (8, 8, 64, BF16, 700, True), (1, 16, 128, BF16, 9000, True), (2, 2, 80, F16, 300, False))):
        if SMALL and longest > 1000:
            continue
        generator = torch.Generator(device="cuda").manual_seed(seed)
        keys, values = (rows("random", (5, kv_heads, longest, head_dim), dtype, generator) for _ in range(2))
        lengths = [longest, 0, longest // 2, 33, longest // 3]
        cache = Cache(keys / 4, values, lengths, head_dim * 5 // 16, head_dim // 2, fragment=head_dim in (64, 128),
                      page_blocks=1 + seed, generator=torch.Generator().manual_seed(seed), balanced=library if balanced else None)
        query = rows("random", (5, heads, 1, head_dim), dtype, generator)
        exact, _ = reference.attention(query, cache.keys, cache.values, lengths, [min(1, n) for n in lengths], head_dim ** -0.5)
        for subset in ([4, 0, 2], [3], [2, 1, 0, 4, 3], [0, 0]):
            call = Call(library, cache, query[subset], rows=subset)
            call.arguments.workspace = workspace.data_ptr()
            case = f"seed {seed} sequences {subset}"
            out = call()
            check((out.double() - exact[subset]).abs().max() <= {F16: 4e-3, BF16: 3e-2}[dtype] * exact.abs().max(), f"{case}: output")
            check(not workspace[:COUNTER_BYTES].any(), f"{case}: counters are not zero")
            # What is no sequence is read as the last one; nothing outside the cache is.
            call.sequences[-1] = 1000 if len(subset) % 2 else -7
            strange = call().clone()
            call.sequences[-1] = 4
            same_bits(f"{case}: a slot that there is not", strange, call())


def test_tables_of_the_grid_before():
    """Attention reads its tables ahead of time, while the grid before it may still be writing them: here an append, which lets
    the next grid start early, writes the slots and the page numbers that attention then has to use."""
    generator, host = torch.Generator(device="cuda").manual_seed(1), torch.Generator().manual_seed(1)
    slots, heads, longest = 6, 2, 3000
    keys, values = (rows("random", (slots, heads, longest, 128), F16, generator) for _ in range(2))
    cache = Cache(keys, values, [longest - 50 * b for b in range(slots)], 40, 40, page_blocks=8, generator=host)
    # Page n moves to number 32n, the numbers of compressed tokens that groups of 32 can have.
    for pages in (cache.key_pages, cache.value_pages):
        numbers = torch.randperm(slots * pages.capacity, generator=host).view(slots, pages.capacity) * BLOCK
        memory = torch.full(((int(numbers.max()) + 1) * pages.page_bytes + PADDING,), 0xff, dtype=torch.uint8, device="cuda")
        before, places = pages.memory, pages.gathered(pages.capacity * pages.page_blocks)
        slab_pages = int(numbers.max()) + 1
        pages._place(memory, numbers, torch.zeros(1, dtype=torch.int64), slab_pages, 0, pages.head_stride, pages.page_bytes,
                     slab_pages * pages.page_bytes + PADDING)
        memory[pages.gathered(pages.capacity * pages.page_blocks)] = before[places]
    query = rows("random", (slots, 4, 1, 128), F16, generator)
    scratch = Pages(1, 1, 64, 128, F16, 40, KEY_FRAGMENT, 1)
    # No token is in it or comes to it: it may be smaller than it is said to be.
    ring = torch.zeros((slots * cache.key_pages.capacity, 1, 64, 128), dtype=F16, device="cuda")

    def writer(target, numbers):
        """An append without new tokens that writes numbers into target, as lengths or, multiples of 32, as compressed."""
        given = numbers.flatten().to(torch.int32).cuda()
        count, paged = given.numel(), target is not call.sequences
        arguments = Append(count, count, 1, 0, 0, BLOCK, 1 << 20, (1 << 20) + BLOCK, 2 ** 30, None, None, given.data_ptr(),
                           given.data_ptr() if paged else zeros.data_ptr(), unused.data_ptr() if paged else target.data_ptr(),
                           target.data_ptr() if paged else unused.data_ptr(), dense(None), dense(None), scratch.blocks(),
                           scratch.blocks(), None, dense(ring), dense(ring))
        return lambda: (library.call("append_tokens", arguments), given)[0]

    zeros, unused = (torch.zeros(slots * cache.key_pages.capacity, dtype=torch.int32, device="cuda") for _ in range(2))
    call = Call(library, cache, query, rows=list(range(slots)))
    expected = call().clone()
    for table in (call.sequences, cache.key_pages.table, cache.value_pages.table):
        right = table.clone().cpu()
        wrong = right.flatten()[torch.randperm(right.numel(), generator=host)].view(right.shape)
        spoil, mend = writer(table, wrong), writer(table, right)
        for repeat in range(20):
            spoil()
            call()
            mend()
            same_bits(f"tables of {tuple(table.shape)}, repeat {repeat}", call(), expected)


def test_damaged_page_table():
    """Page numbers that no slab has: any result, but nothing outside the slabs is touched."""
    generator = torch.Generator(device="cuda").manual_seed(1)
    keys, values = (rows("random", (2, 2, 1000, 128), F16, generator) for _ in range(2))
    cache = Cache(keys, values, [1000, 700], 40, 40, generator=torch.Generator().manual_seed(1))
    query = rows("random", (2, 4, 1, 128), F16, generator)
    for number in (10 ** 9, 2 ** 31 - 1, -1, -2 ** 31):
        for pages in (cache.key_pages, cache.value_pages):
            before = pages.table.clone()
            pages.table[0, 1] = number
            Call(library, cache, query)()
            torch.cuda.synchronize()
            pages.table.copy_(before)


def main(tests):
    """Runs the functions whose names start with test_, or those that the command line names."""
    global library, SMALL
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    SMALL = arguments.small
    library = Library()
    failed = 0
    for name, test in [(n[5:], f) for n, f in tests.items() if n.startswith("test_") and callable(f)]:
        if arguments.names and name not in arguments.names:
            continue
        start = time.time()
        try:
            test()
            torch.cuda.synchronize()
            print(f"passed {name} ({time.time() - start:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED {name}", flush=True)
            traceback.print_exc()
    return failed


if __name__ == "__main__":
    sys.exit(main(globals()))
