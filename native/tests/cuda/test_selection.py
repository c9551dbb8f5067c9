"""Choosing channels on a GPU apart from packing them: by an importance of each channel and by a caller's bitmap, in whole tensors and in
appends, against plain computations. Run as test_cuda.py, which it shares its command line with."""
import sys

import torch

import reference
import test_cuda
from abi import (BALANCED_KEYS, BALANCED_VALUES, BLOCK, FIXED, KEY_FRAGMENT, MASK, PLAIN, UNSTRUCTURED, VALUE_FRAGMENT, Append,
                 Format)
from native import DTYPES, Pages, dense
from test_cuda import BF16, F16, F32, check, rows

ROLES = (("keys", BALANCED_KEYS, KEY_FRAGMENT), ("values", BALANCED_VALUES, VALUE_FRAGMENT))


def any_importance(shape, generator):
    """Of several octaves; zeros, equal ones, negative ones and infinities among them."""
    importance = torch.rand(shape, generator=generator, device="cuda") * 8
    special = torch.tensor([0.0, 1.0, 1.0, 1e-30, 1e30, -2.0, float("inf"), 1.0], device="cuda")
    choice = torch.randint(0, 32, shape, generator=generator, device="cuda")
    return torch.where(choice < 8, special[choice.clamp(max=7)], importance)


def scores(x, importance):
    return x.float() * importance[:, :, None]


def mask_of(x, keep, pattern, role):
    return reference.keep_mask(x, keep) if pattern == UNSTRUCTURED else reference.balanced_mask(x, keep, role)


def cases():
    for kind in ("random", "ties", "special", "zeros", "same channels"):
        for dtype in (F16, BF16, F32):
            for head_dim, keep in ((128, 40), (64, 20), (80, 33), (96, 7), (256, 77)):
                yield kind, dtype, head_dim, keep, False
            for head_dim, kept in ((64, 5), (128, 8), (128, 6), (256, 7)):
                yield kind, dtype, head_dim, kept * head_dim // 16, True


def test_prune():
    for seed, (kind, dtype, head_dim, keep, balanced) in enumerate(cases()):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        shape = 2, 3, 96 if seed % 2 else 75
        x = rows(kind, (*shape, head_dim), dtype, generator)
        for role, pattern, _ in ROLES:
            pattern = pattern if balanced else UNSTRUCTURED
            for importance in (any_importance((2, 3, head_dim), generator), torch.full((2, 3, head_dim), 4.0, device="cuda")):
                bitmap = torch.full((*shape, (head_dim + 31) // 32), -1, dtype=torch.int32, device="cuda")
                test_cuda.library.call("prune", Format(head_dim, DTYPES[dtype], 0, pattern, FIXED, PLAIN, keep), *shape, dense(x), importance,
                                       bitmap)
                expected = reference.bitmap_words(mask_of(scores(x, importance), keep, pattern, role))
                check(torch.equal(bitmap, expected), f"{kind} {dtype} {role} head_dim {head_dim} keep {keep} seed {seed}: bitmap differs")


def test_compress():
    """What an importance chooses is stored as what a bitmap says, and a magnitude's choice comes back by its bitmap."""
    for seed, (kind, dtype, head_dim, keep, balanced) in enumerate(cases()):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        shape = 2, 2, 96 if balanced or seed % 2 else 75
        x, other = (rows(kind, (*shape, head_dim), dtype, generator) for _ in range(2))
        importance = any_importance((2, 2, head_dim), generator)
        for role, pattern, fragment in ROLES:
            pattern = pattern if balanced else UNSTRUCTURED
            for order in (PLAIN, fragment):
                for bits in (16, 8, 4):
                    case = f"{kind} {dtype} {role} head_dim {head_dim} keep {keep} order {order} bits {bits} seed {seed}"

                    def compressed(bitmap, own):
                        pages = Pages(2, 2, shape[2], head_dim, dtype, keep, order, 2, torch.Generator().manual_seed(seed), base=48, pattern=pattern,
                                      bits=bits)
                        test_cuda.library.call("compress", *shape, dense(x), bitmap, own, None, pages.blocks())
                        return pages

                    def same(a, b, what):
                        check(torch.equal(a.memory, b.memory), f"{case}: {what}, {int((a.memory != b.memory).sum())} bytes")

                    words = reference.bitmap_words
                    same(compressed(words(mask_of(x, keep, pattern, role)), None), compressed(None, None), "the pattern's own bitmap")
                    chosen = words(mask_of(scores(x, importance), keep, pattern, role))
                    same(compressed(chosen, None), compressed(None, importance), "by importance")
                    mask = mask_of(other, keep, pattern, role)
                    pages = compressed(words(mask), None)
                    out = torch.full_like(x, float("nan"))
                    test_cuda.library.call("decompress", 2, 2, 0, shape[2], pages.blocks(), None, dense(out))
                    expected = torch.where(mask, x, 0) if bits == 16 else reference.dequantized(x, bits, None, mask).to(dtype)
                    check(torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0)), f"{case}: decompressed")


def test_mask_pattern():
    """Any channels of a block: read back, and attended to by the kernel for everything."""
    for seed, (dtype, head_dim, keep) in enumerate(((F16, 128, 40), (BF16, 64, 64), (F32, 80, 7), (F16, 256, 128))):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        x = rows("random", (2, 2, 96, head_dim), dtype, generator)
        noise = torch.rand(x.shape, generator=generator, device="cuda").view(2, 2, 3, -1)
        kept = noise.topk(BLOCK * keep - seed, -1).indices
        mask = torch.zeros_like(noise, dtype=torch.bool).scatter_(-1, kept, True).view(x.shape)
        for bits in (16, 8, 4):
            pages = Pages(2, 2, 96, head_dim, dtype, keep, KEY_FRAGMENT, 1, pattern=MASK, bits=bits)
            test_cuda.library.call("compress", 2, 2, 96, dense(x), reference.bitmap_words(mask), None, None, pages.blocks())
            out = torch.full_like(x, float("nan"))
            test_cuda.library.call("decompress", 2, 2, 0, 96, pages.blocks(), None, dense(out))
            expected = torch.where(mask, x, 0) if bits == 16 else reference.dequantized(x, bits, None, mask).to(dtype)
            check(torch.equal(out, expected), f"mask {dtype} head_dim {head_dim} keep {keep} bits {bits}: decompressed")


def test_append():
    """Keys by a bitmap, values by an importance: the same blocks as of a whole tensor."""
    for seed, (dtype, head_dim, keep) in enumerate(((F16, 128, 40), (BF16, 64, 20), (F32, 80, 30), (F16, 256, 60))):
        generator = torch.Generator(device="cuda").manual_seed(seed)
        batch, heads, before, added, due, tail, slots = 2, 2, 40, 120, 128, 64, 3
        keys, values = (rows("random", (batch, heads, before + added, head_dim), dtype, generator) for _ in range(2))
        importance = any_importance((slots, heads, head_dim), generator)
        key_mask = reference.keep_mask(values[:, :, :due], keep)
        tails = [torch.full((slots, heads, tail, head_dim), float("nan"), dtype=dtype, device="cuda") for _ in range(2)]
        places = torch.tensor([2, 0], dtype=torch.int32, device="cuda")
        for target, source in zip(tails, (keys, values)):
            target[places.long(), :, :before] = source[:, :, :before]
        lengths, compressed = (torch.full((slots,), n, dtype=torch.int32, device="cuda") for n in (before, 0))
        pages = [Pages(slots, heads, before + added, head_dim, dtype, keep, order, 2) for order in (KEY_FRAGMENT, VALUE_FRAGMENT)]
        bitmap = reference.bitmap_words(key_mask)
        new = [x[:, :, before:] for x in (keys, values)]
        test_cuda.library.call("append_tokens", Append(
            batch, slots, heads, added, 0, BLOCK, 32, tail, before + added, places.data_ptr(), None, lengths.data_ptr(), compressed.data_ptr(), None,
            None, dense(new[0]), dense(new[1]), pages[0].blocks(), pages[1].blocks(), None, dense(tails[0]), dense(tails[1]), None,
            importance.data_ptr(), bitmap.data_ptr(), None, due))
        value_mask = reference.keep_mask(scores(values[:, :, :due], importance[places.long()]), keep)
        for page, full, mask, role in zip(pages, (keys, values), (key_mask, value_mask), ("keys", "values")):
            role = role if dtype != F32 and head_dim in (64, 128) else "plain"
            expected = reference.pack(full[:, :, :due], mask, role)
            got = page.memory[page.gathered(due // BLOCK)][places.long()]
            check(torch.equal(got, expected), f"append {dtype} head_dim {head_dim} {role}: {int((got != expected).sum())} bytes differ")


if __name__ == "__main__":
    sys.exit(test_cuda.main(globals()))
