"""Attention over the compressed cache against torch's dense SDPA back ends, in one run.

    python3 benchmark.py LIBRARY [--keep 40,64] [--shapes 0,1,1x8x1x2048,...] [--dtype f16|bf16] [--csv FILE]

graph: replay of a CUDA graph whose calls rotate over copies of the cache larger than 250 MB in all, per call.
cold:  single launches with the L2 flushed before each, device events around. Medians, microseconds.
"""
import argparse
import copy
import csv
import math
import re
import sys
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cache import Cache, Call
from native import Library, place_in_slabs

SHAPES = [(8, 32, 8, 8192), (32, 32, 8, 4096), (8, 32, 32, 4096), (1, 32, 8, 32768), (1, 64, 8, 131072), (64, 32, 8, -2048),
          (64, 32, 8, 8192), (1, 8, 1, 1024)]
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
ROTATED = 250e6
warnings.filterwarnings("ignore", category=UserWarning)  # why SDPA does not choose a back end


def shape_of(text):
    """An index of SHAPES, or a shape of its own: 1x8x1x2048."""
    return tuple(map(int, text.split("x"))) if "x" in text else SHAPES[int(text)]


def form_of(text):
    """Bits, whether of the balanced pattern, and channels kept."""
    bits, pattern, number = re.fullmatch(r"(?:i(4|8))?([bu]?)(\d*)", text).groups()
    return int(bits or 16), pattern == "b", int(number) if number else 64 if pattern == "b" else 128


def events(run, repeats, before=None):
    times = []
    for _ in range(repeats):
        if before is not None:
            before()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def graph_time(calls):
    calls = calls * max(1, math.ceil(32 / len(calls)))  # so that starting the graph does not show
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    graph.replay()
    return events(graph.replay, 21) / len(calls)


def cold_time(call, flush):
    call()
    return events(call, 25, lambda: flush.zero_())


def top_mask(x, keep):
    index = x.float().abs().topk(keep, dim=-1).indices
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, index, True)


def copy_bandwidth():
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (events(lambda: target.copy_(source), 15) * 1e-6)


def dense_times(query, keys, values, flush):
    """Every back end, with the group's heads told by enable_gqa and folded into the query axis."""
    batch, heads, _, head_dim = query.shape
    kv_heads = keys.shape[1]
    copies = max(1, math.ceil(ROTATED / (4.0 * keys.numel())))
    pairs = [(keys, values)] + [(keys.clone(), values.clone()) for _ in range(copies - 1)]
    forms = {"": (query, heads != kv_heads)}
    if heads != kv_heads:
        forms[" folded"] = (query.view(batch, kv_heads, heads // kv_heads, head_dim), False)
    result = {}
    for name, backend in BACKENDS.items():
        for form, (q, gqa) in forms.items():
            with sdpa_kernel(backend):
                try:
                    calls = [lambda k=k, v=v: F.scaled_dot_product_attention(q, k, v, enable_gqa=gqa) for k, v in pairs]
                    result[name + form] = (graph_time(calls), cold_time(calls[0], flush))
                except RuntimeError:
                    print(f"  {name}{form}: not available for this shape", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--keep", default="40,64,b40,b64", help="channels kept, b: of the balanced pattern; in 4 or 8 bits i4 and i8: all, "
                        "i4u40: 40, i4b64: of the balanced pattern, i4b: the same; i8/i4u40: keys and values apart")
    parser.add_argument("--shapes", default=",".join(map(str, range(len(SHAPES)))))
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--csv")
    parser.add_argument("--no-dense", action="store_true")
    arguments = parser.parse_args()
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[arguments.dtype]
    libraries = [(path, Library(path)) for path in arguments.library.split(",")]
    bandwidth = copy_bandwidth()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e12:.2f} TB/s, {arguments.dtype}", flush=True)
    rows = []
    for shape in map(shape_of, arguments.shapes.split(",")):
        batch, heads, kv_heads, tokens = shape
        generator = torch.Generator(device="cuda").manual_seed(1)
        longest = abs(tokens)
        lengths = [longest] * batch if tokens > 0 else torch.randint(
            1, longest + 1, (batch,), generator=torch.Generator().manual_seed(2)).tolist()
        make = lambda *size: torch.randn(*size, device="cuda", generator=generator).to(dtype)
        query, keys, values = make(batch, heads, 1, 128), make(batch, kv_heads, longest, 128), make(batch, kv_heads, longest, 128)
        dense = {} if arguments.no_dense else dense_times(query, keys, values, flush)
        for name, (graph, cold) in dense.items():
            print(f"{shape} {name:16} graph {graph:7.1f} cold {cold:7.1f}", flush=True)
        best = [min((t[i] for t in dense.values()), default=float("nan")) for i in (0, 1)]
        for name in arguments.keep.split(","):
            forms = [form_of(part) for part in name.split("/")]
            (key_bits, balanced_keys, keep_keys), (value_bits, balanced_values, keep_values) = forms[0], forms[-1]
            library = libraries[0][1]
            cache = Cache(keys, values, lengths, keep_keys, keep_values, page_blocks=2, mask=top_mask,
                          balanced=tuple(library if balanced else None for balanced in (balanced_keys, balanced_values)),
                          integers=library if min(key_bits, value_bits) < 16 else None, bits=(key_bits, value_bits),
                          factors=key_bits < 16)
            place_in_slabs(cache.key_pages, cache.value_pages)
            expected = torch.cat([
                torch.softmax(query[b].float().view(kv_heads, -1, 128) @ cache.keys[b, :, :n].float().transpose(-1, -2) / math.sqrt(128), -1)
                @ cache.values[b, :, :n].float() for b, n in enumerate(lengths)]).view(query.shape)
            copies = max(1, math.ceil(ROTATED / cache.bytes()))
            caches = [cache]
            for _ in range(copies - 1):
                other = copy.copy(cache)
                memory = cache.key_pages.memory.clone()  # which keys and values share
                for part in ("key_pages", "value_pages"):
                    pages = copy.copy(getattr(cache, part))
                    pages.move(memory)
                    setattr(other, part, pages)
                other.value_pages.share_tables(other.key_pages)
                other.tail_keys, other.tail_values = cache.tail_keys.clone(), cache.tail_values.clone()
                caches.append(other)
            for path, library in libraries:
                calls = [Call(library, caches[0], query, lse=False)]
                # One workspace for all, as the layers of a model have.
                calls += [Call(library, c, query, lse=False, workspace=calls[0].workspace) for c in caches[1:]]
                error = ((calls[0]().float() - expected).norm() / expected.norm()).item()
                graph, cold = graph_time(calls), cold_time(calls[0], flush)
                size = cache.bytes()
                row = dict(shape="x".join(map(str, shape)), dtype=arguments.dtype, keep=name, library=path, error=f"{error:.1e}",
                           graph_us=f"{graph:.1f}", cold_us=f"{cold:.1f}", mb=f"{size / 1e6:.1f}", tbs=f"{size / graph / 1e6:.2f}",
                           roofline=f"{100 * size / bandwidth / (graph * 1e-6):.0f}", dense_graph_us=f"{best[0]:.1f}",
                           dense_cold_us=f"{best[1]:.1f}", ratio_graph=f"{best[0] / graph:.2f}", ratio_cold=f"{best[1] / cold:.2f}")
                rows.append(row)
                print("  " + " ".join(f"{k} {v}" for k, v in row.items() if k not in ("dtype", "mb", "dense_graph_us", "dense_cold_us")), flush=True)
            del caches, calls
            torch.cuda.empty_cache()
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
