"""The operations of a decode step at the shapes of Llama-3-8B, bf16, against torch's: graph replay, microseconds.

    python3 benchmark_step.py LIBRARY

Weights of linear layers rotate over as many copies as a model has layers, so that none is in the second-level cache.
"""
import sys

import torch
import torch.nn.functional as F

from abi import Linear, Norm, Rope, Sampling, SamplingOptions
from benchmark import graph_time
from native import Library, address, dense, on_device, rows

BF16 = torch.bfloat16
HIDDEN, WIDTH, VOCAB, LAYERS = 4096, 14336, 128256, 32


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=BF16)


def report(name, ours, torchs, size=None):
    rate = "" if size is None else f"  {size / ours / 1e6:5.2f} and {size / torchs / 1e6:5.2f} TB/s"
    print(f"{name:40} {ours:8.1f}  torch {torchs:8.1f}  ratio {torchs / ours:5.2f}{rate}", flush=True)


def linears(library):
    norm = random(HIDDEN)
    total = {}
    for name, inputs, outputs, gated, before, after in (
            ("qkv", HIDDEN, 6144, False, True, False), ("o", HIDDEN, HIDDEN, False, False, True),
            ("gate, up", HIDDEN, WIDTH, True, True, False), ("down", WIDTH, HIDDEN, False, False, True),
            ("head", HIDDEN, VOCAB, False, True, False)):
        copies = 4 if name == "head" else LAYERS
        weights = [random((2 if gated else 1) * outputs, inputs) * inputs ** -0.5 for _ in range(copies)]
        size = weights[0].numel() * 2
        for count in (1, 2, 4, 8, 16, 32):
            x, out, residual = random(count, inputs), random(count, outputs), random(count, outputs)
            product = random(count, weights[0].shape[0])
            arguments = [Linear(2, count, inputs, outputs, gated, 1e-5, rows(x), address(norm) if before and count == 1 else None, rows(w), None,
                                rows(residual if after else None), rows(out)) for w in weights]
            ours = graph_time([lambda a=a: library.call("linear_forward", a) for a in arguments])
            # The product alone, without the norm before it (which ours includes for one row) and what comes after it.
            torchs = graph_time([lambda w=w: torch.mm(x, w.T, out=product) for w in weights])
            report(f"{name}, {count} rows", ours, torchs, size)
            times = total.setdefault(count, [0, 0])
            for i, time in enumerate((ours, torchs)):
                times[i] += time * (1 if name == "head" else LAYERS) / 1e3
        del weights
    for count, (ours, torchs) in total.items():
        print(f"all products of a step, {count} rows: {ours:.2f} ms, torch {torchs:.2f} ms")


def small(library):
    for count in (1, 64):
        x, residual, weight, out = random(count, HIDDEN), random(count, HIDDEN), random(HIDDEN), random(count, HIDDEN)
        norm = Norm(2, HIDDEN, count, 1e-5, rows(x), rows(residual), address(weight), rows(out))

        def add_norm():
            residual.add_(x)
            F.rms_norm(residual, (HIDDEN,), weight, 1e-5)
        report(f"residual and RMSNorm, {count} rows", graph_time([lambda: library.call("rms_norm", norm)]), graph_time([add_norm]))
        gate_up, product = random(count, 2 * WIDTH), random(count, WIDTH)

        def silu_mul():
            torch.mul(F.silu(gate_up[:, :WIDTH]), gate_up[:, WIDTH:], out=product)
        report(f"SiLU and product, {count} rows",
               graph_time([lambda: library.call("silu_mul", 2, count, WIDTH, rows(gate_up), rows(product))]), graph_time([silu_mul]))
        qkv = random(count, 1, 48, 128).transpose(1, 2)
        q, k = qkv[:, :32], qkv[:, 32:40]
        positions = torch.full((count, 1), 8000, dtype=torch.int32, device="cuda")
        inv_freq = 500000.0 ** (-torch.arange(64, device="cuda", dtype=torch.float64) / 64)
        cos, sin = random(count, 1, 1, 128), random(count, 1, 1, 128)
        rope = Rope(2, count, 1, 32, 8, 128, 128, 0, dense(q), dense(k), dense(None), dense(q), dense(k), dense(None), None, None,
                    address(positions), address(inv_freq), None, None, 0, 1)
        heads = qkv[:, :40]

        def turn():
            heads.copy_(heads * cos + heads.roll(64, -1) * sin)
        report(f"RoPE of q and k, {count} rows", graph_time([lambda: library.call("rotate", rope)]), graph_time([turn]))


def sampling(library):
    for batch in (1, 8, 64, 512):
        logits = 3 * random(batch, VOCAB)
        steps, counts = torch.zeros(batch, dtype=torch.int64, device="cuda"), torch.zeros(batch, VOCAB, dtype=torch.int32, device="cuda")
        tokens, logs = torch.empty(batch, dtype=torch.int64, device="cuda"), torch.empty(batch, device="cuda")

        def ours(temperature, top_k, top_p, penalty=0.0, with_logs=False):
            parameters = on_device([SamplingOptions(temperature, top_k, top_p, 0, 1, penalty, 0, 0, 7)] * batch)
            arguments = Sampling(2, batch, VOCAB, 0, rows(logits), address(parameters), address(steps), address(counts) if penalty else None, None,
                                 None, address(tokens), address(logs) if with_logs else None)
            return graph_time([lambda: library.call("sample", arguments)])

        def exponential():
            # A draw from softmax without multinomial, which waits for the device.
            p = logits.float().softmax(-1)
            (p / torch.empty_like(p).exponential_()).argmax(-1)

        def top_k():
            values, ids = logits.float().topk(50)
            p = values.softmax(-1)
            ids.gather(-1, (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True))

        def top_p():
            values, ids = logits.float().sort(descending=True)
            p = values.softmax(-1)
            p = torch.where(p.cumsum(-1) - p > 0.9, 0.0, p)
            ids.gather(-1, (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True))

        report(f"greedy, {batch} rows", ours(0, 0, 1), graph_time([lambda: logits.argmax(-1)]))
        report(f"temperature, {batch} rows", ours(1, 0, 1), graph_time([exponential]))
        report(f"top-k 50, {batch} rows", ours(1, 50, 1), graph_time([top_k]))
        report(f"top-p 0.9, {batch} rows", ours(1, 0, 0.9), graph_time([top_p]))
        print(f"top-k 50, top-p 0.9, penalty, log-probability, {batch} rows: {ours(1, 50, 0.9, 0.1, True):.1f}", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        linears(Library(sys.argv[1]))
        small(Library(sys.argv[1]))
        sampling(Library(sys.argv[1]))
