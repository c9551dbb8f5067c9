"""Blocks of channels that an importance or a caller's bitmap chooses, byte by byte. Run as test_cuda.py, which it shares its command line
with."""
import sys

import torch

import reference
import test_cuda
from abi import BALANCED_KEYS, BALANCED_VALUES, KEY_FRAGMENT, PLAIN, UNSTRUCTURED, VALUE_FRAGMENT
from native import Pages, dense
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


if __name__ == "__main__":
    sys.exit(test_cuda.main(globals()))
