"""The dense decode step of a Llama model in PyTorch, for comparison with `benchmarks decode`: static cache, grouped heads without
repeating keys and values (enable_gqa), greedy sampling, and the whole step in a CUDA graph, with eager operators and with torch.compile.

    python3 pytorch_decode.py [--batch 1 8 32 64] [--context 2048 8192 32768] [--layers 32 --hidden 4096 --intermediate 14336
        --heads 32 --kv-heads 8 --vocab 128256] [--backends cudnn flash] [--modes eager compiled] [--csv FILE]

Times are milliseconds per step, medians of 30, measured as in `benchmarks decode`: the replay by device events around it, and by the
wall clock from its launch until the tokens are on the host. Weights are random. The cache is full, as in the last step of a generation
into a cache of that size: every step attends to all `context` places.
"""
import argparse
import csv
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


class Layer:
    def __init__(self, a, device, dtype):
        make = lambda o, i: torch.randn(o, i, device=device, dtype=dtype).mul_(0.02)
        head_dim = a.head_dim
        self.qkv = make((a.heads + 2 * a.kv_heads) * head_dim, a.hidden)
        self.o = make(a.hidden, a.heads * head_dim)
        self.gate_up = make(2 * a.intermediate, a.hidden)
        self.down = make(a.hidden, a.intermediate)
        self.norms = [torch.rand(a.hidden, device=device, dtype=dtype) + 0.5 for _ in range(2)]


def step(a, layers, embedding, head, norm, keys, values, cos, sin, tokens, position):
    batch, half = tokens.shape[0], a.head_dim // 2
    x = embedding[tokens]
    c, s = cos[position], sin[position]

    def turn(t):
        low, high = t[..., :half], t[..., half:]
        return torch.cat([low * c - high * s, high * c + low * s], -1)
    for layer, k, v in zip(layers, keys, values):
        qkv = F.linear(F.rms_norm(x, (a.hidden,), layer.norms[0], 1e-5), layer.qkv).view(batch, 1, -1, a.head_dim).transpose(1, 2)
        q, new_k, new_v = qkv.split([a.heads, a.kv_heads, a.kv_heads], 1)
        k.index_copy_(2, position, turn(new_k))
        v.index_copy_(2, position, new_v)
        o = F.scaled_dot_product_attention(turn(q), k, v, enable_gqa=True)
        x = x + F.linear(o.transpose(1, 2).reshape(batch, -1), layer.o)
        gate, up = F.linear(F.rms_norm(x, (a.hidden,), layer.norms[1], 1e-5), layer.gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, layer.down)
    tokens.copy_(F.linear(F.rms_norm(x, (a.hidden,), norm, 1e-5), head).argmax(-1))


def replayed(run, tokens):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
    times, walls = [], []
    for i in range(35):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        graph.replay()
        tokens.cpu()
        walls.append((time.perf_counter() - begun) * 1e3)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times[5:])[15], sorted(walls[5:])[15]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--context", type=int, nargs="+", default=[2048, 8192, 32768])
    for name, default in (("layers", 32), ("hidden", 4096), ("intermediate", 14336), ("heads", 32), ("kv-heads", 8), ("vocab", 128256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--backends", nargs="+", default=["cudnn"])
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--csv")
    a = parser.parse_args()
    a.head_dim = a.hidden // a.heads
    device, dtype = "cuda", torch.bfloat16
    torch.manual_seed(0)
    layers = [Layer(a, device, dtype) for _ in range(a.layers)]
    embedding = torch.randn(a.vocab, a.hidden, device=device, dtype=dtype).mul_(0.02)
    head = torch.randn(a.vocab, a.hidden, device=device, dtype=dtype).mul_(0.02)
    norm = torch.ones(a.hidden, device=device, dtype=dtype)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    rows = []
    with torch.inference_mode():
        for context in a.context:
            angles = torch.arange(context, device=device).float()[:, None] * 500000.0 ** (
                -torch.arange(a.head_dim // 2, device=device).float() * 2 / a.head_dim)
            cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
            for batch in a.batch:
                if 4 * batch * context * a.kv_heads * a.head_dim * a.layers > 100e9:
                    continue
                keys = [torch.randn(batch, a.kv_heads, context, a.head_dim, device=device, dtype=dtype) for _ in layers]
                values = [torch.randn(batch, a.kv_heads, context, a.head_dim, device=device, dtype=dtype) for _ in layers]
                tokens = torch.zeros(batch, device=device, dtype=torch.long)
                position = torch.tensor([context - 1], device=device)
                for backend in a.backends:
                    for mode in a.modes:
                        run = torch.compile(step, dynamic=False) if mode == "compiled" else step
                        with sdpa_kernel(BACKENDS[backend]):
                            ms, wall = replayed(
                                lambda: run(a, layers, embedding, head, norm, keys, values, cos, sin, tokens, position), tokens)
                        torch._dynamo.reset()
                        print(f"{batch} x {context} {backend} {mode}: {ms:.3f} ms, {wall:.3f} by the wall clock", flush=True)
                        rows.append(dict(batch=batch, context=context, backend=backend, mode=mode, ms=f"{ms:.3f}", wall_ms=f"{wall:.3f}"))
                del keys, values
                torch.cuda.empty_cache()
    if a.csv:
        with open(a.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
