"""Attention and products whose operands hold NaNs and infinities give what the formula gives in float64 over the decompressed
tokens that each query sees: weights exp(s - max s) / sum. Run as test_cuda.py, which it shares its command line with."""
import random
import sys

import torch

import reference
import test_cuda
from abi import KEY_FRAGMENT, PLAIN, VALUE_FRAGMENT, Product
from cache import Cache, Call, last_tokens
from native import Pages, dense
from test_cuda import BF16, F16, F32, check

SPECIAL = (float("nan"), float("inf"), -float("inf"))
TOLERANCE = {F32: 1e-4, F16: 4e-3, BF16: 3e-2}


def number(shape, dtype):
    return (torch.rand(shape, device="cuda") * 2 - 1).to(dtype)


def plant(x, rng):
    """One number, a row, or all rows of a head of one sequence."""
    if x.shape[2] == 0:
        return
    rows, extent, value = x[rng.randrange(x.shape[0]), rng.randrange(x.shape[1])], rng.randrange(8), rng.choice(SPECIAL)
    if extent == 0:
        rows.fill_(value)
    else:
        row = rows[rng.randrange(rows.shape[0])]
        row[slice(None) if extent < 4 else rng.randrange(len(row))] = value


def product(a, b):
    """a @ b, term by term."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def formula(query, keys, values, scale, window):
    """One sequence: [heads, n, d] and [heads, length, d] in float64. Returns output, log-sum-exp; zeros and -inf for what sees
    no token."""
    n, length = query.shape[1], keys.shape[1]
    output = torch.zeros_like(query)
    lse = torch.full(query.shape[:2], -float("inf"), dtype=query.dtype, device=query.device)
    for i in range(n):
        end = length - n + i + 1
        first = max(0, end - window) if window else 0
        if end <= 0:
            continue
        scores = (query[:, i:i + 1] * keys[:, first:end]).sum(-1) * scale
        highest = scores.amax(-1, keepdim=True)
        weights = (scores - highest).exp()
        total = weights.sum(-1, keepdim=True)
        output[:, i] = ((weights / total).unsqueeze(-1) * values[:, first:end]).sum(-2)
        lse[:, i] = torch.where(highest == -float("inf"), highest, highest + total.log())[:, 0]
    return output, lse


def agree(name, got, exact, tolerance):
    off = (got.double() - exact).abs() > tolerance  # false for NaN and for equal infinities
    off |= (got.isnan() != exact.isnan()) | ((got.isinf() | exact.isinf()) & (got != exact))
    if off.any():
        check(False, f"{name}: {int(off.sum())} of {off.numel()} differ, first at {torch.nonzero(off)[0].tolist()}: "
                     f"{got[off][0].item()} instead of {exact[off][0].item()}")


# head_dim, dtype, keep of keys and values, balanced?
FORMS = [(128, F16, 40, 64, False), (64, BF16, 20, 24, False), (128, BF16, 128, 128, False), (128, F16, 40, 64, True),
         (128, BF16, 64, 48, True), (64, F16, 20, 32, True), (80, F16, 30, 20, False), (64, F32, 20, 40, False),
         (256, BF16, 80, 128, True)]


def test_attention():
    for seed in range(36 if test_cuda.SMALL else 270):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        head_dim, dtype, keep_keys, keep_values, balanced = FORMS[seed % len(FORMS)]
        kv_heads, group = rng.choice((1, 2, 3)), rng.choice((1, 3, 4, 8))
        queries = rng.choice((1, 1, 2, 5, 8))
        longest = rng.choice((3, 40, 130, 700, 700, 700 if test_cuda.SMALL else 3000))
        window = rng.choice((0, 0, 50, 200))
        fragment = dtype != F32 and head_dim in (64, 128)
        batch = 3
        lengths = [longest, rng.randrange(longest + 1), rng.choice((0, 1, longest // 2))]
        counts = [min(queries, n) for n in lengths]
        case = f"seed {seed} {FORMS[seed % len(FORMS)]} heads {kv_heads} x {group} queries {queries} lengths {lengths} window {window}"
        query = number((batch, kv_heads * group, queries, head_dim), dtype)
        keys, values = (number((batch, kv_heads, longest, head_dim), dtype) for _ in range(2))
        # In fragment order a value that one row sees reaches the others of its block.
        all_see = not fragment or (queries == 1 and window == 0)
        for x in [query, keys] + [values] * all_see:
            if rng.randrange(2):
                plant(x, rng)
        fresh = rng.randrange(2) == 1
        cache = Cache(keys, values, lengths, keep_keys, keep_values, fragment=fragment, fresh=counts if fresh else None,
                      balanced=test_cuda.library if balanced else None)
        fresh_keys, fresh_values = (last_tokens(x, lengths, counts, queries) if fresh else None for x in (keys, values))
        scale = head_dim ** -0.5
        call = Call(test_cuda.library, cache, query, counts=counts, fresh_keys=fresh_keys, fresh_values=fresh_values,
                    sliding_window=window, scale=scale)
        call()
        for b, (n, c) in enumerate(zip(lengths, counts)):
            own = [x[b, :, :n].double().repeat_interleave(group, 0) for x in (cache.keys, cache.values)]
            exact, lse = formula(query[b, :, :c].double(), *own, scale, window)
            agree(f"{case} sequence {b}", call.out[b, :, :c], exact, TOLERANCE[dtype])
            check(not call.out[b, :, c:].any(), f"{case} sequence {b}: rows without a query are not zero")
            # Of scores that are -infinity for a query's own sake the log-sum-exp is NaN or -infinity.
            known = query[b, :, :c].isfinite().all(-1)
            agree(f"{case} sequence {b} log-sum-exp", call.lse[b, :, :c][known], lse[known], 5e-3)


def test_products():
    for seed in range(18 if test_cuda.SMALL else 90):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        head_dim, dtype, keep, _, balanced = FORMS[seed % len(FORMS)]
        if balanced:
            continue
        tokens, queries = rng.randrange(1, 4) * 32, rng.randrange(1, 9)
        fragment = dtype != F32 and head_dim in (64, 128)
        query = number((2, 4, queries, head_dim), dtype)
        stored, weights = number((2, 2, tokens, head_dim), dtype), torch.rand((2, 4, queries, tokens), device="cuda")
        for x in (query, stored, weights):
            if rng.randrange(2):
                plant(x, rng)
        pruned = torch.where(reference.keep_mask(stored, keep), stored, torch.zeros_like(stored))
        whole = pruned.double().repeat_interleave(2, 1)
        for role, order in (("keys", KEY_FRAGMENT), ("values", VALUE_FRAGMENT)):
            pages = Pages(2, 2, tokens, head_dim, dtype, keep, order if fragment else PLAIN, 2)
            test_cuda.library.call("compress", 2, 2, tokens, dense(stored), None, None, None, pages.blocks())
            out = torch.empty_like(weights if role == "keys" else query)
            arguments = (dense(query), dense(out)) if role == "keys" else (dense(out), dense(weights))
            test_cuda.library.call("key_scores" if role == "keys" else "value_sum",
                                   Product(2, 4, 2, queries, tokens, pages.blocks(), *arguments, 0.25))
            exact = product(query.double(), whole.transpose(-1, -2)) if role == "keys" else product(weights.double(), whole)
            agree(f"seed {seed} {FORMS[seed % len(FORMS)]} {role}", out, 0.25 * exact, 4 * TOLERANCE[dtype])


if __name__ == "__main__":
    sys.exit(test_cuda.main(globals()))
