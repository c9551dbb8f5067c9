"""A slow, plain oracle of sampling: the header's definition."""
import numpy as np

F32 = np.float32


def random_bits(seed, step):
    """Words 1 and 0 of Philox4x32-10."""
    c, k, mask = [step & 0xffffffff, step >> 32 & 0xffffffff, 0, 0], [seed & 0xffffffff, seed >> 32], 0xffffffff
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & mask, p0 >> 32 ^ c[3] ^ k[1], p0 & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return c[1] << 32 | c[0]


def weights(logits, largest, temperature):
    with np.errstate(all="ignore"):
        power = (logits - largest) / F32(temperature) * F32(1.44269504)
        power = np.where(power > -63, power, F32(-63)).astype(F32)
        whole = (power + F32(12582912)) - F32(12582912)
        rest = power - whole
        value = np.full_like(power, F32(1.535336188e-4))
        for c in (1.339887440e-3, 9.618437357e-3, 5.550332548e-2, 2.402264791e-1, 6.931472028e-1, 1.0):
            value = value * rest + F32(c)
        mantissa = (value * F32(8388608)).astype(np.uint64)
    shift = whole.astype(np.int64) + 17
    return np.where(shift >= 0, mantissa << np.maximum(shift, 0).astype(np.uint64),
                    mantissa >> np.minimum(-np.minimum(shift, 0), 63).astype(np.uint64))


def part_of(part, total):
    exact = float(F32(part)) * float(total)
    if not exact < 2.0 ** 63:
        return total
    return min(total, int(exact) + (float(int(exact)) < exact))


def sample(logits, options, step, counts, prompt, allowed):
    """Token of one sequence; logits: float32 array, counts: int array, prompt and allowed: bool arrays or None."""
    o = {name: F32(value) if isinstance(value, float) else value for name, value in options.items()}
    with np.errstate(all="ignore"):
        scores = logits.copy()
        seen = counts > 0
        known = seen if prompt is None else seen | prompt
        if o["repetition_penalty"] != 1:
            penalised = np.where(scores > 0, scores / o["repetition_penalty"], scores * o["repetition_penalty"])
            scores = np.where(known, penalised, scores)
        penalty = np.float64(o["frequency_penalty"]) * counts + np.float64(o["presence_penalty"])
        scores = np.where(seen, scores - penalty.astype(F32), scores).astype(F32)
    ids = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    scores = scores[ids]
    if len(ids) == 0 or np.isnan(scores).any() or not np.isfinite(scores.max()):
        return -1
    if not o["temperature"] > 0:
        return int(ids[np.argmax(scores)])
    weight = weights(scores, scores.max(), o["temperature"])
    ids, scores, weight = ids[weight > 0], scores[weight > 0], weight[weight > 0]
    order = np.argsort(-scores, kind="stable")  # ids ascend, so ties do
    if 0 < o["top_k"] < len(order):
        order = order[:o["top_k"]]
    if o["top_p"] < 1:
        sums = np.cumsum(weight[order])
        wanted = part_of(o["top_p"], int(sums[-1])) if o["top_p"] > 0 else 0
        order = order[:max(1, int(np.searchsorted(sums, np.uint64(max(wanted, 1)))) + 1)]
    left = np.sort(order)
    if o["min_p"] > 0:
        left = left[weight[left] >= part_of(o["min_p"], 1 << 40)]
    sums = np.cumsum(weight[left])
    drawn = random_bits(int(o["seed"]), int(step)) * int(sums[-1]) >> 64
    return int(ids[left[np.searchsorted(sums, np.uint64(drawn), side="right")]])
