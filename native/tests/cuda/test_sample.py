"""Sampling on CUDA where thread blocks share a row, against sampling_reference.py. Run as test_cuda.py, which it shares its command
line with."""
import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import sampling_reference as reference
import test_cuda
from abi import Sampling, SamplingOptions
from native import DTYPES, address, on_device, rows
from test_cuda import BF16, F16, F32, check


def generator(seed):
    return torch.Generator(device="cuda").manual_seed(seed)


def matrix(shape, dtype, g, gap=0):
    """Random rows that lie `gap` elements apart, and start as far from an aligned address."""
    wide = torch.full((shape[0], shape[1] + gap), float("nan"), dtype=dtype, device="cuda")
    view = wide[:, gap:] if gap else wide
    return view.copy_(torch.randn(shape, device="cuda", generator=g).to(dtype))


pool = ThreadPoolExecutor(16)  # numpy sorts beside itself


def options(**given):
    return {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": 1} | given


def packed(bits):
    """Rows of bool as 32-bit words."""
    padded = np.zeros((bits.shape[0], -(-bits.shape[1] // 32) * 32), dtype=np.uint8)
    padded[:, :bits.shape[1]] = bits
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int32)).cuda()


def draw(name, logits, chosen, draws=3, counts=None, prompt=None, allowed=None):
    """Draws for each row of logits, with its options, and compares with the oracle."""
    batch, vocab = logits.shape
    parameters = on_device(SamplingOptions(**o) for o in chosen)
    steps = torch.arange(batch, dtype=torch.int64, device="cuda") << 31
    tokens, logs = torch.empty(batch, dtype=torch.int64, device="cuda"), torch.empty(batch, device="cuda")
    device_counts = None if counts is None else torch.from_numpy(counts.astype(np.int32)).cuda()
    bits = [None if b is None else packed(b) for b in (prompt, allowed)]
    stride = 0 if allowed is None or allowed.shape[0] == 1 else bits[1].shape[1]
    arguments = Sampling(DTYPES[logits.dtype], batch, vocab, stride, rows(logits), address(parameters), address(steps), address(device_counts),
                         *map(address, bits), address(tokens), address(logs))
    host = logits.float().cpu().numpy()
    exact = torch.log_softmax(logits.double(), -1)
    seen = np.zeros((batch, vocab), dtype=np.int64) if counts is None else counts.astype(np.int64).copy()
    at = steps.tolist()
    for i in range(draws):
        test_cuda.library.call("sample", arguments)
        got = tokens.tolist()
        for row, expected in enumerate(pool.map(
                lambda row: reference.sample(host[row], chosen[row], at[row], seen[row], None if prompt is None else prompt[row],
                                             None if allowed is None else allowed[row % allowed.shape[0]]), range(batch))):
            check(got[row] == expected, f"{name}: draw {i} of row {row} with {chosen[row]}: {got[row]}, expected {expected}")
            if expected < 0:
                check(math.isnan(logs[row].item()), f"{name}: row {row}: log-probability {logs[row].item()} of no token")
                continue
            at[row] += 1
            if counts is not None:
                seen[row, expected] += 1
            want = exact[row, expected].item()
            check(logs[row].item() == want or abs(logs[row].item() - want) < 1e-5 * (1 + abs(want)) or math.isnan(want),
                  f"{name}: row {row}: log-probability {logs[row].item()}, expected {want}")
    check(steps.tolist() == at, f"{name}: steps")
    if counts is not None:
        check((device_counts.cpu().numpy() == seen).all(), f"{name}: counts")


VARIED = [options(seed=3), options(temperature=0.0), options(temperature=0.7, top_k=50), options(top_p=0.9, seed=1 << 63), options(top_p=0.5, top_k=1000),
          options(min_p=0.05), options(top_k=1), options(top_p=0.0), options(top_k=10 ** 9, top_p=1.0), options(temperature=1e-30, top_p=0.999),
          options(temperature=30.0, top_k=7, top_p=0.99, min_p=0.5), options(temperature=float("inf"), top_p=0.3), options(temperature=float("nan")),
          options(top_p=float("nan"), min_p=float("nan"), top_k=-5), options(min_p=2.0), options(min_p=float("inf"), top_p=1e-20), options(top_p=0.99999)]


def test_clusters():
    """A row is shared by 8, 4, 2 or 1 thread blocks, by how many rows and tokens there are, whose borders must not show."""
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    vocabularies = (8193, 33000) if test_cuda.SMALL else (5, 8193, 16400, 33000, 50257, 128256, 151937)
    batches = (1, 2, 3, multiprocessors // 8, multiprocessors // 4, multiprocessors // 2, multiprocessors // 2 + 1)
    for number, (vocab, batch) in enumerate(itertools.product(vocabularies, batches)):
        host = np.random.default_rng(number)
        dtype, gap = (F32, F16, BF16)[host.integers(3)], int(host.integers(2)) * 3
        logits = matrix((batch, vocab), F32, generator(number))
        for row in range(batch):
            kind, place = (row + number) % 8, int(host.integers(vocab))
            if kind in (1, 2):
                logits[row] = (2 * logits[row]).round()
            elif kind == 3:
                logits[row] = 1.5  # what is cut off is all among equals
            else:
                logits[row] *= 3
            if kind == 2 and batch > 1:
                logits[row] = -float("inf")
                logits[row, place] = -7
            elif kind == 5:
                logits[row, place] = float("nan")
            elif kind == 6:
                logits[row, place] = -float("inf")
            elif kind == 7 and batch > 1:
                logits[row, place] = float("inf")
        wide = matrix((batch, vocab), dtype, generator(number), gap)
        logits = wide.copy_(logits)
        varied = VARIED + [options(top_k=vocab * 3 // 4 + 1), options(top_p=0.7), options(top_k=vocab // 2 + 1, top_p=0.6), options(top_p=0.7, min_p=0.999)]
        chosen = [varied[i] | {"seed": i} for i in host.integers(len(varied), size=batch)]
        penalised = [o | {"repetition_penalty": 0.0 if row == 3 else 1.2, "frequency_penalty": 0.1, "presence_penalty": 0.2}
                     for row, o in enumerate(chosen)]
        name = f"{dtype} {batch} x {vocab} gap {gap}"
        draw(name, logits, chosen, draws=2)
        draw(f"{name} allowed", logits, chosen, draws=1, allowed=host.random((batch, vocab)) < 0.5)
        draw(f"{name} penalised", logits, penalised, draws=2, counts=host.integers(0, 3, (batch, vocab)), prompt=host.random((batch, vocab)) < 0.2,
             allowed=host.random((1, vocab)) < 0.9)
    if not test_cuda.SMALL:
        filters = [options(seed=4), options(top_k=50), options(top_k=3 << 20, top_p=0.9), options(temperature=0.0)]
        draw("largest vocabulary", (8 * matrix((4, 1 << 22), F32, generator(9))).round() / 4, filters, draws=1)
        draw("largest vocabulary, bf16", 3 * matrix((1, 1 << 22), BF16, generator(10)), filters[2:3], draws=1)


if __name__ == "__main__":
    sys.exit(test_cuda.main(globals()))
