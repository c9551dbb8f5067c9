"""Checks of the operations of a decode step on CUDA against step_reference.py. Run as test_cuda.py, which it shares its
command line with."""
import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F

import step_reference as reference
import test_cuda
from abi import Linear, Norm, Rope, Sampling, SamplingOptions
from native import DTYPES, NativeError, address, dense, on_device, rows
from test_cuda import BF16, F16, F32, check

ROUNDING = {F32: 1e-6, F16: 2.0 ** -11, BF16: 2.0 ** -8}  # of the largest value, where torch happens to be exact


def call(name, *arguments):
    test_cuda.library.call(name, *arguments)


def close(name, got, exact, torch_result):
    """At most twice the error of torch in the same dtype."""
    check(got.isfinite().all(), f"{name}: not finite")
    scale = exact.abs().max().item()
    error, allowed = (got.double() - exact).abs().max().item(), (torch_result.double() - exact).abs().max().item()
    check(error <= 2 * allowed + ROUNDING[got.dtype] * scale, f"{name}: error {error:.3g}, torch's {allowed:.3g}, values up to {scale:.3g}")


def generator(seed):
    return torch.Generator(device="cuda").manual_seed(seed)


def matrix(shape, dtype, g, gap=0):
    """Random rows that lie `gap` elements apart, and start as far from an aligned address."""
    wide = torch.full((shape[0], shape[1] + gap), float("nan"), dtype=dtype, device="cuda")
    view = wide[:, gap:] if gap else wide
    return view.copy_(torch.randn(shape, device="cuda", generator=g).to(dtype))


def test_rms_norm():
    sizes = (1, 7, 64, 333, 4096) if test_cuda.SMALL else (1, 7, 64, 333, 1000, 4096, 8200, 14336, 40001)
    for dtype, hidden, (count, gap) in itertools.product((F32, F16, BF16), sizes, ((1, 0), (3, 5), (70, 8))):
        g = generator(hidden)
        x, residual = matrix((count, hidden), dtype, g, gap), matrix((count, hidden), dtype, g, gap)
        weight = torch.randn(hidden, device="cuda", generator=g).to(dtype)
        out = matrix((count, hidden), dtype, g, gap)
        name = f"{dtype} {count} x {hidden}, gap {gap}"
        call("rms_norm", Norm(DTYPES[dtype], hidden, count, 1e-5, rows(x), rows(None), address(weight), rows(out)))
        close(name, out, reference.rms_norm(x, weight, 1e-5), F.rms_norm(x, (hidden,), weight, 1e-5))
        total = residual + x
        call("rms_norm", Norm(DTYPES[dtype], hidden, count, 1e-5, rows(x), rows(residual), address(weight), rows(x)))
        check(torch.equal(residual, total), f"{name}: the residual")
        close(f"{name}, added, in place", x, reference.rms_norm(total, weight, 1e-5), F.rms_norm(total, (hidden,), weight, 1e-5))


def test_rotate():
    shapes = ((1, 1, 32, 8, 128, 128), (3, 5, 6, 2, 64, 64), (2, 4, 4, 4, 80, 32), (1, 7, 8, 1, 96, 96), (2, 1, 5, 5, 256, 128), (1, 2, 3, 1, 2, 2), (1, 3, 2, 1, 512, 510))
    for dtype, (batch, tokens, heads, kv, dim, rotary), tables, norms, in_place in itertools.product((F32, F16, BF16), shapes, (False, True), (False, True), (False, True)):
        g = generator(dim)
        total = heads + 2 * kv
        qkv = matrix((batch * tokens, total * dim), dtype, g, 3)
        view = qkv.unflatten(0, (batch, tokens)).unflatten(2, (total, dim)).transpose(1, 2)
        q, k, v = view[:, :heads], view[:, heads:heads + kv], view[:, heads + kv:]
        before = [t.clone() for t in (q, k, v)]
        out = [q, k, v] if in_place else [torch.full_like(t, float("nan")).contiguous() for t in (q, k, v)]
        positions = torch.randint(0, 5000 if tables else 1 << 20, (batch, tokens), device="cuda", generator=g, dtype=torch.int32)
        inv_freq = 500000.0 ** (-torch.arange(rotary // 2, device="cuda", dtype=torch.float64) / (rotary // 2))
        angles = torch.arange(5000, device="cuda", dtype=torch.float64)[:, None] * inv_freq
        cos, sin = angles.cos().float(), angles.sin().float()
        weights = [torch.randn(dim, device="cuda", generator=g).to(dtype) for _ in range(2)] if norms else [None, None]
        call("rotate", Rope(DTYPES[dtype], batch, tokens, heads, kv, dim, rotary, 1e-6, dense(q), dense(k), dense(v), *map(dense, out),
                            *map(address, weights), address(positions), None if tables else address(inv_freq),
                            address(cos) if tables else None, address(sin) if tables else None, 5000 if tables else 0, 1.25))
        check(torch.equal(out[2], before[2]), "values")
        for x, y, weight in zip(before, out, weights):
            exact = x.double() if weight is None else reference.rms_norm(x, weight, 1e-6)
            plain = x if weight is None else F.rms_norm(x, (dim,), weight, 1e-6)
            exact = reference.rotated(exact, positions, inv_freq, 1.25)
            turn = positions.double()[:, None, :, None] * inv_freq
            c, s = (turn.cos() * 1.25).to(dtype), (turn.sin() * 1.25).to(dtype)
            a, b, rest = plain[..., :rotary // 2], plain[..., rotary // 2:rotary], plain[..., rotary:]
            close(f"{dtype} {batch, tokens, heads, kv, dim, rotary} tables {tables} norms {norms} in place {in_place}", y, exact,
                  torch.cat([a * c - b * s, b * c + a * s, rest], -1))
    position = torch.tensor([[-1, 5000]], device="cuda", dtype=torch.int32)
    x = torch.ones(1, 1, 2, 2, device="cuda")
    out = [torch.zeros_like(x) for _ in range(2)]
    table = torch.ones(5000, 1, device="cuda")
    call("rotate", Rope(0, 1, 2, 1, 1, 2, 2, 0, dense(x), dense(x), dense(None), *map(dense, out), dense(None), None, None, address(position),
                        None, address(table), address(table), 5000, 1))
    check(all(t.isnan().all() for t in out), "positions outside the table give NaN")


def test_silu_mul():
    for dtype, count, width, gap in itertools.product((F32, F16, BF16), (1, 3, 65), (1, 7, 1000, 14336), (0, 3)):
        g = generator(width)
        x, out = matrix((count, 2 * width), dtype, g, gap), matrix((count, width), dtype, g, gap)
        x[0, 0] = 60 if dtype == F16 else 200
        x[0, width // 2] = -100
        call("silu_mul", DTYPES[dtype], count, width, rows(x), rows(out))
        gate, up = x.chunk(2, -1)
        close(f"{dtype} {count} x {width}", out, reference.silu_mul(x), F.silu(gate) * up)


def linear_case(dtype, count, inputs, outputs, gated, extras, gap):
    g = generator(inputs + outputs)
    parts = 2 if gated else 1
    x, weight = matrix((count, inputs), dtype, g, gap), matrix((parts * outputs, inputs), dtype, g, gap)
    weight *= inputs ** -0.5
    out = matrix((count, outputs), dtype, g, gap)
    norm = bias = residual = None
    if extras:
        norm, bias = (torch.randn(n, device="cuda", generator=g).to(dtype) for n in (inputs, parts * outputs))
        residual = matrix((count, outputs), dtype, g, gap)
    exact, plain = x.double(), x
    if extras:
        exact, plain = reference.rms_norm(x, norm, 1e-5), F.rms_norm(x, (inputs,), norm, 1e-5)
    exact, plain = exact @ weight.double().T + (0 if bias is None else bias.double()), F.linear(plain, weight, bias)
    if gated:
        gate, up = plain.chunk(2, -1)
        exact, plain = reference.silu_mul(exact), F.silu(gate) * up
    if extras:
        exact, plain = exact + residual.double(), plain + residual
    call("linear_forward", Linear(DTYPES[dtype], count, inputs, outputs, gated, 1e-5, rows(x), address(norm), rows(weight), address(bias),
                          rows(residual), rows(out)))
    close(f"{dtype} {count} x {inputs} -> {outputs} gated {gated} extras {extras} gap {gap}", out, exact, plain)


def test_linear():
    # Exact sums of f32 products: torch must not take tensor cores' shorter ones.
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = ((1, 1), (31, 5), (256, 18), (333, 129), (4096, 64)) if test_cuda.SMALL else (
        (1, 1), (31, 5), (256, 18), (333, 129), (1000, 1001), (4096, 6144), (14336, 512), (5000, 300), (16384, 77))
    counts = (1, 3, 8) if test_cuda.SMALL else range(1, 9)
    for dtype, count, (inputs, outputs), gated, extras in itertools.product((F32, F16, BF16), counts, sizes, (False, True), (False, True)):
        linear_case(dtype, count, inputs, outputs, gated, extras, 0)
        if inputs < 1000:
            linear_case(dtype, count, inputs, outputs, gated, extras, 3)
    for dtype, inputs in ((F32, 16384), (BF16, 32768)):  # what the header promises
        linear_case(dtype, 2, inputs, 40, True, True, 0)
    try:
        linear_case(F32, 1, 1 << 17, 8, False, False, 0)
        check(False, "a row that does not fit was served")
    except NativeError as error:
        check("in_features" in str(error), str(error))


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
        call("sample", arguments)
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
PENALISED = [o | given for o, given in zip(itertools.cycle(VARIED), (
    dict(repetition_penalty=1.3), dict(frequency_penalty=0.5), dict(presence_penalty=2.0), dict(repetition_penalty=0.7, frequency_penalty=-0.2, presence_penalty=1.0),
    dict(repetition_penalty=1.2, frequency_penalty=0.1, presence_penalty=0.1), dict(frequency_penalty=100.0)) * 3)]


def test_sample():
    vocabularies = (1, 31, 1000) if test_cuda.SMALL else (1, 2, 31, 257, 32001, 128256, 262144)
    kinds = {"normal": lambda x: 3 * x, "ties": lambda x: (2 * x).round(), "equal": lambda x: 0 * x - 0.0, "wide": lambda x: 1e4 * x,
             "close": lambda x: 20 + 1e-3 * x, "peaked": lambda x: torch.where(x > x.max() - 1e-6, 40.0, x), "zeros": lambda x: torch.where(x > 0, 0.0, -0.0)}
    for number, (vocab, (kind, shape), dtype) in enumerate(itertools.product(vocabularies, kinds.items(), (F32, F16, BF16))):
        if vocab > 1000 and number % 3 != number // 3 % 3:
            continue  # the oracle takes its time: each kind in one dtype
        g = generator(vocab)
        host = np.random.default_rng(vocab)
        logits = matrix((len(VARIED), vocab), F32, g)
        logits = shape(logits).clamp(-6e4, 6e4).to(dtype)
        name = f"{kind} {dtype} {vocab}"
        draw(name, logits, VARIED)
        some = logits[:len(PENALISED)]
        draw(f"{name} penalised", some, PENALISED, counts=host.integers(0, 3, some.shape), prompt=host.random(some.shape) < 0.2)
        draw(f"{name} allowed", some, VARIED[:len(some)], draws=1, allowed=host.random(some.shape) < 0.1)
        draw(f"{name} same allowed", some, VARIED[:len(some)], draws=1, allowed=host.random((1, vocab)) < 0.9)


def test_sample_special():
    g = generator(5)
    logits = matrix((8, 1000), F32, g, 3)
    logits[0, 500] = float("nan")
    logits[1] = -float("inf")
    logits[2] = -float("inf")
    logits[2, 999] = 1
    logits[3, 3] = float("inf")
    logits[4, ::2] = -float("inf")
    logits[5, 700] = float("nan")
    logits[6, 700] = float("inf")
    allowed = np.ones((8, 1000), dtype=bool)
    allowed[5, 700] = allowed[6, 700] = False
    allowed[7] = False
    for o in (options(), options(temperature=0.0), options(top_k=5, top_p=0.9)):
        draw("special values", logits, [o] * 8, allowed=allowed)
    draw("special values, penalised", logits, [options(repetition_penalty=0.0, top_k=3)] * 8, counts=np.ones((8, 1000)))
    call("sample", Sampling(0, 0, 1000, 0, rows(logits)))


def test_sample_clusters():
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
        penalised = [o | {"repetition_penalty": 1.2, "frequency_penalty": 0.1, "presence_penalty": 0.2} for o in chosen]
        name = f"{dtype} {batch} x {vocab} gap {gap}"
        draw(name, logits, chosen, draws=2)
        draw(f"{name} allowed", logits, chosen, draws=1, allowed=host.random((batch, vocab)) < 0.5)
        draw(f"{name} penalised", logits, penalised, draws=2, counts=host.integers(0, 3, (batch, vocab)), prompt=host.random((batch, vocab)) < 0.2,
             allowed=host.random((1, vocab)) < 0.9)
    if not test_cuda.SMALL:
        filters = [options(seed=4), options(top_k=50), options(top_k=3 << 20, top_p=0.9), options(temperature=0.0)]
        draw("largest vocabulary", (8 * matrix((4, 1 << 22), F32, generator(9))).round() / 4, filters, draws=1)
        draw("largest vocabulary, bf16", 3 * matrix((1, 1 << 22), BF16, generator(10)), filters[2:3], draws=1)


def test_many_sequences():
    g = generator(6)
    vocab, batch = (1000, 20) if test_cuda.SMALL else (32000, 512)
    draw("512 sequences", 4 * matrix((batch, vocab), BF16, g), [o | {"seed": i} for i, o in zip(range(batch), itertools.cycle(VARIED))], draws=1)


def test_graph():
    """The operations follow each other in a graph, each starting before the last has ended, as without one."""
    g = generator(7)
    dtype, hidden, width, vocab = BF16, 1024, 2816, 40000
    x0, residual0 = matrix((4, hidden), dtype, g), matrix((4, hidden), dtype, g)
    weights = [0.03 * matrix(shape, dtype, g) for shape in ((2 * width, hidden), (hidden, width), (vocab, hidden))]
    norm = torch.ones(hidden, dtype=dtype, device="cuda")
    x, residual, h = x0.clone(), residual0.clone(), torch.empty(4, width, dtype=dtype, device="cuda")
    logits = torch.empty(4, vocab, dtype=dtype, device="cuda")
    parameters = on_device([SamplingOptions(0.8, 40, 0.95, 0, 1.1, 0, 0, 0, 9)] * 4)
    steps, counts = torch.zeros(4, dtype=torch.int64, device="cuda"), torch.zeros(4, vocab, dtype=torch.int32, device="cuda")
    tokens = torch.empty(4, dtype=torch.int64, device="cuda")
    gate_up = torch.empty(4, 2 * width, dtype=dtype, device="cuda")

    def step():
        call("rms_norm", Norm(2, hidden, 4, 1e-5, rows(x), rows(residual), address(norm), rows(x)))
        call("linear_forward", Linear(2, 4, hidden, 2 * width, 0, 0, rows(x), None, rows(weights[0]), None, rows(None), rows(gate_up)))
        call("silu_mul", 2, 4, width, rows(gate_up), rows(h))
        call("linear_forward", Linear(2, 4, width, hidden, 0, 0, rows(h), None, rows(weights[1]), None, rows(residual), rows(residual)))
        call("linear_forward", Linear(2, 4, hidden, vocab, 0, 1e-5, rows(residual), address(norm), rows(weights[2]), None, rows(None), rows(logits)))
        call("sample", Sampling(2, 4, vocab, 0, rows(logits), address(parameters), address(steps), address(counts), None, None, address(tokens), None))

    def run(run_step):
        x.copy_(x0), residual.copy_(residual0), steps.zero_(), counts.zero_()
        result = []
        for _ in range(20):
            run_step()
            result.append(tokens.tolist())
        return result, residual.clone()

    eager = run(step)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        step()
    replayed = run(graph.replay)
    check(eager[0] == replayed[0] and torch.equal(eager[1], replayed[1]), f"graph {replayed[0][:4]}, without {eager[0][:4]}")


if __name__ == "__main__":
    sys.exit(test_cuda.main(globals()))
