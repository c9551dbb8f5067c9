"""8- and 4-bit integers, with all channels kept, unstructured and balanced, and keys and values of different kinds, against plain
oracles. Run as test_cuda.py, which it shares its command line with."""
import random
import sys
from typing import NamedTuple

import torch

import reference
import test_cuda
from abi import (ALL, ALL_ROTATED, BALANCED_KEYS, BALANCED_VALUES, BLOCK, KEY_FRAGMENT, PLAIN, UNSTRUCTURED, VALUE_FRAGMENT, Append,
                 Product)
from cache import Cache, Call, compressed_tokens
from native import DTYPES, Pages, dense
from test_cuda import BF16, F16, F32, check

ORDER = {"keys": KEY_FRAGMENT, "values": VALUE_FRAGMENT}
BALANCED = {"keys": BALANCED_KEYS, "values": BALANCED_VALUES}


class Form(NamedTuple):
    head_dim: int
    dtype: torch.dtype
    bits: int
    keep: int
    balanced: bool = False
    plain: bool = False
    rotated: bool = False  # as keys

    def mask(self, x, role):
        """Of what is kept; None: everything."""
        if self.balanced:
            return reference.balanced_mask(x, self.keep, role)
        return None if self.keep == self.head_dim else reference.keep_mask(x, self.keep)

    def pack(self, x, role, factors=None):
        mask = self.mask(x, role)
        numbers = reference.quantized(x, self.bits, factors, mask, self.rotates(role))
        if self.plain:
            return reference.pack_plain_integers(*numbers, self.bits, mask)
        pack = reference.pack_integers if mask is None or self.has_positions() else reference.pack_unstructured_integers
        return pack(*numbers, self.bits, role, mask)

    def dequantized(self, x, role, factors=None):
        return reference.dequantized(x, self.bits, factors, self.mask(x, role), self.rotates(role))

    def rotates(self, role):
        return self.rotated and role == "keys"

    def has_positions(self):
        return self.balanced and 2 * self.keep == self.head_dim and not self.plain

    def pages(self, batch, heads, tokens, role, page_blocks=2):
        pattern = ALL_ROTATED if self.rotates(role) else BALANCED[role] if self.balanced else ALL if self.keep == self.head_dim else UNSTRUCTURED
        order = PLAIN if self.plain else ORDER[role]
        return Pages(batch, heads, tokens, self.head_dim, self.dtype, self.keep, order, page_blocks, pattern=pattern, bits=self.bits)

    def cache(self, keys, values, lengths, of_values=None, **options):
        """of_values: the form of the values, if it is another. factors: of keys of integers."""
        forms = self, of_values or self
        options["factors"] = options.get("factors", False) and self.bits < 16
        return Cache(keys, values, lengths, *(form.keep for form in forms), integers=test_cuda.library,
                     balanced=tuple(test_cuda.library if form.balanced else None for form in forms),
                     bits=tuple(form.bits for form in forms), fragment=not self.plain, rotated=self.rotated, **options)


# Those of one row are read by the same kernels as keys and values.
ROWS = [row for head_dim in (128, 64) for dtype in (F16, BF16)
        for row in ([Form(head_dim, dtype, bits, keep, keep < head_dim) for bits in (4, 8) for keep in (head_dim, head_dim // 2)] +
                    [Form(head_dim, dtype, bits, head_dim, rotated=True) for bits in (4, 8)],
                    [Form(head_dim, dtype, 4, head_dim * 5 // 16), Form(head_dim, dtype, 8, head_dim // 2),
                     Form(head_dim, dtype, 4, head_dim * 5 // 16, True), Form(head_dim, dtype, 8, head_dim * 7 // 16, True)])]
ROWS += [[Form(head_dim, dtype, bits, keep, balanced, True)
          for bits, keep in ((4, head_dim), (8, head_dim), (4, head_dim // 2), (8, head_dim * 3 // 8))
          for balanced in ((False, True) if head_dim % 64 == 0 and keep == head_dim // 2 else (False,))]
         for head_dim, dtype in ((80, F16), (96, BF16), (256, F16), (64, F32), (128, F32), (256, F32), (128, F16))]
for row in ROWS:
    row += [form._replace(rotated=True) for form in row if form.plain and form.keep == form.head_dim and form.head_dim % 64 == 0]
FORMS = [form for row in ROWS for form in row]


def different_kinds():
    """Pairs of keys and values that are read by kernels of their own: every kind of key with every other of value."""
    pairs = []
    for head_dim in (128, 64):
        for dtype in (F16, BF16):
            integers = [row for row in ROWS if row[0].head_dim == head_dim and row[0].dtype == dtype and not row[0].plain]
            native = [[Form(head_dim, dtype, 16, keep) for keep in (head_dim * 5 // 16, head_dim)],
                      [Form(head_dim, dtype, 16, head_dim * kept // 16, True) for kept in (5, 6, 7, 8)]]
            kinds = integers + native
            pairs += [(keys, values) for own in kinds for keys in own for other in kinds if other is not own for values in other
                      if not values.rotated]
    return pairs


def number(shape, dtype, scale=1.0):
    x = torch.randn(shape, device="cuda") * scale
    x[..., :: 17] *= 20  # a few channels that are large in all tokens
    return x.to(dtype)


def test_blocks():
    for seed, form in enumerate(FORMS * (1 if test_cuda.SMALL else 3)):
        head_dim, dtype = form[:2]
        torch.manual_seed(seed)
        batch, heads, tokens = 2, 3, 32 * (1 + seed % 5)
        x = number((batch, heads, tokens, head_dim), dtype, 10.0 ** (seed % 7 - 4))
        x[0, 0, 3] = 0
        x[1, 1, 5, 7] = float("nan")
        x[1, 2, 6, 8] = -float("inf")
        x[0, 2, 7, 9] = 65504.0 if dtype == F16 else 3e38
        x[0, 1, 8] = 1e-8
        for role in ("keys", "values"):
            for with_factors in (False, True) if role == "keys" else (False,):
                name = f"{form} {role} factors {with_factors}"
                factors = None
                if with_factors:
                    factors = torch.full((batch, heads, head_dim), float("nan"), device="cuda")
                    test_cuda.library.call("key_factors", DTYPES[dtype], head_dim, batch, heads, tokens, dense(x), factors)
                    check(torch.equal(factors, reference.key_factors(x)), f"{name}: factors")
                pages = form.pages(batch, heads, tokens, role)
                test_cuda.library.call("compress", batch, heads, tokens, dense(x), None, None, factors, pages.blocks())
                expected = form.pack(x, role, factors)
                got = pages.memory[pages.gathered(tokens // BLOCK)]
                check(torch.equal(got, expected), f"{name}: {int((got != expected).sum())} bytes of {got.numel()} differ")
                out = torch.full_like(x, float("nan"))
                test_cuda.library.call("decompress", batch, heads, 0, tokens, pages.blocks(), factors, dense(out))
                exact = form.dequantized(x, role, factors).to(dtype)
                check(torch.equal(out.nan_to_num(7.0), exact.nan_to_num(7.0)), f"{name}: decompressed")


def test_products():
    for seed, form in enumerate(FORMS):
        head_dim, dtype = form[:2]
        torch.manual_seed(seed)
        tokens, queries = 96, 1 + seed % 5
        query, stored = torch.randn(2, 4, queries, head_dim, device="cuda").to(dtype), number((2, 2, tokens, head_dim), dtype)
        query[1, 3, 0, seed % head_dim] = (float("inf"), float("nan"))[seed % 2]
        weights = torch.rand(2, 4, queries, tokens, device="cuda")
        for role in ("keys", "values"):
            factors = reference.key_factors(stored) if role == "keys" and seed % 2 else None
            pages = form.pages(2, 2, tokens, role)
            test_cuda.library.call("compress", 2, 2, tokens, dense(stored), None, None, factors, pages.blocks())
            out = torch.empty_like(weights if role == "keys" else query)
            arguments = (dense(query), dense(out)) if role == "keys" else (dense(out), dense(weights))
            test_cuda.library.call("key_scores" if role == "keys" else "value_sum",
                                   Product(2, 4, 2, queries, tokens, pages.blocks(), *arguments, 0.25,
                                           None if factors is None else factors.data_ptr()))
            whole = form.dequantized(stored, role, factors).double().repeat_interleave(2, 1)
            if role == "keys":
                check(bool(out[1, 3, 0].isnan().all()), f"{form}: a query that is not finite makes its scores NaN")
            exact = 0.25 * (query.double() @ whole.transpose(-1, -2) if role == "keys" else weights.double() @ whole)
            known = query.isfinite().all(-1, keepdim=True).expand_as(exact) if role == "keys" else torch.ones_like(exact, dtype=torch.bool)
            error = float((out.double() - exact)[known].norm() / exact[known].norm())
            check(error < (1e-6 if role == "keys" else {F16: 1e-3, BF16: 4e-3, F32: 1e-5}[dtype]), f"{form} {role}: error {error:.2e}")


def check_attention(forms):
    """forms: of the keys and of the values, for each seed."""
    worst = {}
    for seed, (form, of_values) in enumerate(forms):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        head_dim, dtype = form[:2]
        kv_heads, group = rng.choice((1, 2, 3, 8)), rng.choice((1, 3, 4, 8, 9))
        queries = rng.choice((1, 1, 1, 2, 5, 8))
        longest = rng.choice((3, 40, 130, 700, 700 if test_cuda.SMALL else 3000, 700 if test_cuda.SMALL else 9000))
        window = rng.choice((0, 0, 0, 50, 200))
        lengths = [longest, rng.randrange(longest + 1), rng.choice((0, 1, longest // 2))]
        counts = [min(queries, n) for n in lengths]
        factors, large = rng.randrange(3) > 0, rng.choice((1.0, 1.0, 5.0, 30.0))
        value_scale = rng.choice((1.0, 0.03, 300.0, 1e-4 if dtype == BF16 else 0.1))  # of outputs that f16 has digits for
        case = (f"seed {seed} keys {form} values {of_values} heads {kv_heads} x {group} queries {queries} lengths {lengths} window {window} "
                f"factors {factors} query x {large} values x {value_scale}")
        query = (torch.randn(3, kv_heads * group, queries, head_dim, device="cuda") * large).to(dtype)
        keys, values = number((3, kv_heads, longest, head_dim), dtype, 0.25), number((3, kv_heads, longest, head_dim), dtype, value_scale / 20)
        if rng.randrange(4) == 0:
            values[:, :, :: 64] *= 100 if value_scale < 100 else 1
            values[:, :, 1:: 3] = 0
        fresh = rng.randrange(2) == 1
        cache = form.cache(keys, values, lengths, of_values, fresh=counts if fresh else None, factors=factors,
                           page_blocks=rng.choice((1, 2, 4)))
        fresh_keys = fresh_values = None
        if fresh:
            fresh_keys, fresh_values = (torch.full((3, kv_heads, queries, head_dim), float("nan"), dtype=dtype, device="cuda")
                                        for _ in range(2))
            for b, (n, c) in enumerate(zip(lengths, counts)):
                fresh_keys[b, :, :c], fresh_values[b, :, :c] = keys[b, :, n - c:n], values[b, :, n - c:n]
        call = Call(test_cuda.library, cache, query, counts=counts, fresh_keys=fresh_keys, fresh_values=fresh_values, sliding_window=window)
        call()
        exact, lse = reference.attention(query, cache.keys, cache.values, lengths, counts, head_dim ** -0.5, window)
        for b, c in enumerate(counts):
            check(not call.out[b, :, c:].any(), f"{case}: rows without a query are not zero")
        got = torch.stack([torch.where(torch.arange(queries, device="cuda")[None, :, None] < c, call.out[b].double(), 0)
                           for b, c in enumerate(counts)])
        error = float((got - exact).norm() / exact.norm().clamp(min=1e-30))
        check(error < {F16: 1e-3, BF16: 6e-3, F32: 1e-4}[dtype] * (1 if large < 5 else 2 if large < 30 else 8), f"{case}: error {error:.2e}")
        known = lse.isfinite()
        check(bool(((call.lse[known] - lse[known]).abs() < 3e-2 * max(1.0, large / 5)).all()), f"{case}: log-sum-exp")
        key = (*form, *of_values[2:5], large)
        worst[key] = max(worst.get(key, 0.0), error)
    for key, error in sorted(worst.items(), key=str):
        print(f"  {key}: largest error {error:.2e}", flush=True)


def test_attention():
    rng = random.Random(1)
    forms = [FORMS[i % len(FORMS)] for i in range(48 if test_cuda.SMALL else 320)]
    check_attention([(form, rng.choice(next(row for row in ROWS if form in row)) if rng.randrange(2) else form) for form in forms])


def test_attention_of_different_kinds():
    pairs = different_kinds()
    random.Random(1).shuffle(pairs)
    check_attention(pairs[:48] if test_cuda.SMALL else pairs)


def test_special():
    """What is not finite makes its rows NaN, of pruned values the channels that a token keeps, of native ones its own, and nothing else."""
    for form, of_values in [(form, form) for form in FORMS] + different_kinds():
        head_dim, dtype = form[:2]
        torch.manual_seed(form.bits)
        keys, values = number((2, 2, 300, head_dim), dtype), number((2, 2, 300, head_dim), dtype)
        query = torch.randn(2, 8, 1, head_dim, device="cuda").to(dtype)
        query[0, 0, 0, 5] = float("inf")
        keys[1, 0, 10, 3] = float("nan")
        values[1, 1, 20, 4] = float("nan")
        cache = form.cache(keys, values, [300, 300], of_values, factors=True)
        call = Call(test_cuda.library, cache, query)
        call()
        nan = torch.zeros(2, 8, 1, head_dim, dtype=torch.bool, device="cuda")
        nan[0, 0], nan[1, :4] = True, True
        # A dense product multiplies the zeros of what is pruned as well.
        mask = of_values.mask(values, "values")
        if of_values.bits == 16:
            nan[1, 4:, :, 4] = True
        else:
            nan[1, 4:] = mask[1, 1, 20] if mask is not None and (of_values.plain or of_values.has_positions()) else True
        check(torch.equal(call.out.isnan(), nan), f"keys {form} values {of_values}: {call.out.isnan().any(-1)[..., 0].tolist()}")


def test_append():
    window, group = 32, 64
    for seed, form in enumerate(FORMS):
        head_dim, dtype = form[:2]
        torch.manual_seed(seed)
        heads, capacity = 2, window + group
        steps = [(200, 1, 1, 1, 70), (1,) * 170, (90, 50, 3, 1)][(seed + seed // 3) % 3]
        total = sum(steps)
        keys, values = number((1, heads, total, head_dim), dtype), number((1, heads, total, head_dim), dtype)
        pages = [form.pages(1, heads, total, role) for role in ("keys", "values")]
        factors = torch.full((1, heads, head_dim), float("nan"), device="cuda")
        tails = [torch.full((1, heads, capacity, head_dim), float("nan"), dtype=dtype, device="cuda") for _ in range(2)]
        length, first = 0, None
        for n in steps:
            before = torch.tensor([length], dtype=torch.int32, device="cuda")
            done = torch.tensor([compressed_tokens(length, window, group)], dtype=torch.int32, device="cuda")
            new = [x[:, :, length:length + n].contiguous() for x in (keys, values)]
            test_cuda.library.call("append_tokens", Append(
                1, 1, heads, n, 0, group, window, capacity, total, None, None, before.data_ptr(), done.data_ptr(), None, None,
                dense(new[0]), dense(new[1]), pages[0].blocks(), pages[1].blocks(), factors.data_ptr(), dense(tails[0]), dense(tails[1])))
            length += n
            due = compressed_tokens(length, window, group)
            if first is None and due:
                first = reference.key_factors(keys[:, :, :due])
        due = compressed_tokens(length, window, group)
        check(torch.equal(factors, first), f"{form}: factors")
        for pages_, x, role in zip(pages, (keys, values), ("keys", "values")):
            expected = form.pack(x[:, :, :due], role, first if role == "keys" else None)
            check(torch.equal(pages_.memory[pages_.gathered(due // BLOCK)], expected), f"{form} {role}: blocks")


if __name__ == "__main__":
    sys.exit(test_cuda.main(globals()))
