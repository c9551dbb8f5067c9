"""Slow, plain oracles: pruning, the block format, attention in float64."""
import torch

BLOCK = 32


def keep_mask(x, keep):
    """Exactly `keep` channels of largest magnitude per row; ties to the lower channel; NaN above everything."""
    magnitude = x.double().abs()
    magnitude = torch.where(magnitude.isnan(), torch.full_like(magnitude, float("inf")), magnitude)
    # Infinity and NaN differ in rank: a second key, sorted first, then a stable sort by the other.
    nan_first = torch.sort(x.isnan().to(torch.int8), dim=-1, descending=True, stable=True).indices
    ordered = torch.gather(magnitude, -1, nan_first)
    order = torch.gather(nan_first, -1, torch.sort(ordered, dim=-1, descending=True, stable=True).indices)
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, order[..., :keep], True)


def balanced_mask(x, keep, role):
    """The balanced pattern of keys or values [batch, heads, tokens, head_dim], unit by unit."""
    batch, heads, tokens, head_dim = x.shape
    kept = 16 * keep // head_dim
    if role == "keys":
        # unit (p, j) of a token, group i, element m: channel 16p + j + 4i + m * head_dim / 4
        units = x.view(batch, heads, tokens, 4, head_dim // 64, 4, 4).permute(0, 1, 2, 4, 6, 5, 3)
    else:
        # four tokens (element m), four channels (group i)
        x = torch.nn.functional.pad(x, (0, 0, 0, -tokens % 4))
        units = x.view(batch, heads, -1, 4, head_dim // 4, 4).permute(0, 1, 2, 4, 5, 3)
    # Flattened element-major, so that position = 4m + i breaks ties.
    flat = units.transpose(-1, -2).flatten(-2)
    magnitude = torch.where(flat.isnan(), torch.full_like(flat, float("inf"), dtype=torch.float64), flat.double().abs())
    nan_first = torch.sort(flat.isnan().to(torch.int8), dim=-1, descending=True, stable=True).indices
    order = torch.gather(nan_first, -1, torch.sort(torch.gather(magnitude, -1, nan_first), dim=-1, descending=True,
                                                   stable=True).indices)
    taken = torch.zeros_like(flat, dtype=torch.bool)
    in_group = torch.zeros(*flat.shape[:-1], 4, dtype=torch.int64, device=x.device)
    total = torch.zeros(flat.shape[:-1], dtype=torch.int64, device=x.device)
    for i in range(16):
        place = order[..., i:i + 1]
        free = (torch.gather(in_group, -1, place % 4)[..., 0] < 2) & (total < kept)
        taken.scatter_(-1, place, free[..., None])
        in_group.scatter_add_(-1, place % 4, free[..., None].to(torch.int64))
        total += free
    units = taken.unflatten(-1, (4, 4)).transpose(-1, -2)
    if role == "keys":
        return units.permute(0, 1, 2, 6, 3, 5, 4).reshape(batch, heads, tokens, head_dim)
    return units.permute(0, 1, 2, 5, 3, 4).reshape(batch, heads, -1, head_dim)[:, :, :tokens]


def value_order(head_dim, role):
    """Positions token * head_dim + channel of a block in the order in which its values are stored."""
    def flat(*loops):
        if len(loops) == 0:
            return [()]
        return [(i, *rest) for i in range(loops[0]) for rest in flat(*loops[1:])]

    pair = [0, 1, 8, 9]
    if role == "plain":
        places = [(token, channel) for token in range(BLOCK) for channel in range(head_dim)]
    elif role == "keys" and head_dim == 128:
        places = [(8 * a + g, 32 * t + 8 * m + i) for a, i, g, t, m in flat(4, 8, 8, 4, 4)]
    elif role == "values" and head_dim == 128:
        places = [(16 * k + 2 * t + pair[m], 16 * g + 8 * h + i) for k, h, i, g, t, m in flat(2, 2, 8, 8, 4, 4)]
    elif role == "keys" and head_dim == 64:
        places = [(16 * a + g + 8 * (m >> 1), 16 * t + 8 * (m & 1) + i) for a, i, g, t, m in flat(2, 8, 8, 4, 4)]
    elif role == "values" and head_dim == 64:
        places = [(16 * k + 2 * t + pair[m], 8 * g + i) for k, i, g, t, m in flat(2, 8, 8, 4, 4)]
    else:
        raise ValueError((head_dim, role))
    assert sorted(places) == [(t, c) for t in range(BLOCK) for c in range(head_dim)]
    return torch.tensor([token * head_dim + channel for token, channel in places])


def turned(x):
    """The Hadamard matrix times the rows of x, with the sums in the order of the header."""
    width, rows = x.shape[-1], x
    distance = 1
    while distance < width:
        pairs = rows.reshape(*x.shape[:-1], width // (2 * distance), 2, distance)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        rows = torch.stack((a + b, a - b), -2).reshape(x.shape)
        distance *= 2
    return rows * torch.full((), width ** -0.5, device=x.device, dtype=torch.float32)


def quantized(x, bits, factors=None, mask=None, rotated=False):
    """Rows [batch, heads, tokens, head_dim] as integers (int32) and f16 scales [batch, heads, tokens]; factors: [batch, heads,
    head_dim], what keys are divided by; mask: what is kept, None: everything."""
    largest = 2 ** (bits - 1) - 1
    x = x.float()
    finite = x.isfinite().all(-1)
    scaled = x if factors is None else x / factors[:, :, None]
    if rotated:
        scaled = turned(scaled)
        finite &= scaled.isfinite().all(-1)
    if mask is not None:
        scaled = torch.where(mask, scaled, 0)
    scaled = torch.where(finite[..., None], scaled, 0)
    # A number beside a CUDA tensor would be multiplied by its inverse, which rounds otherwise.
    scale = (scaled.abs().amax(-1) / torch.full((), largest, device=x.device, dtype=torch.float32)).clamp(max=65504).half()
    divisor = scale.float()[..., None]
    integers = torch.where(divisor == 0, 0, (scaled / torch.where(divisor == 0, 1, divisor)).round()).clamp(-largest, largest)
    return integers.int(), torch.where(finite, scale, torch.full_like(scale, float("nan")))


def dequantized(x, bits, factors=None, mask=None, rotated=False):
    """What integers stand for, f32; zeros where nothing is kept."""
    integers, scale = quantized(x, bits, factors, mask, rotated)
    result = integers.float() * scale.float()[..., None]
    result = turned(result) if rotated else result
    result = result if factors is None else result * factors[:, :, None]
    return result if mask is None else torch.where(mask, result, 0)


def key_factors(x):
    """[batch, heads, head_dim] of keys [batch, heads, tokens, head_dim]."""
    top = x.float().abs()
    top = torch.where(top.isnan(), float("inf"), top).amax(-2)
    counts = (top > 0) & top.isfinite()
    mean = torch.where(counts, top.double(), 0).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp(min=1)
    factor = torch.where(counts, (top.double() / torch.where(mean == 0, 1, mean)).clamp(2.0 ** -10, 2.0 ** 10), 1.0)
    return factor.float().half().float()


def integer_words(elements, bits):
    """Operands [..., operand, lane, register, element] as bytes [..., n]."""
    of4 = {0: ((4, 15), (20, 31)), 1: ((0, 11), (16, 27)), 2: ((28, 7), (12, 23)), 3: ((24, 3), (8, 19))}
    per_operand = bits // 4
    words = torch.zeros(*elements.shape[:-2], per_operand, dtype=torch.int64, device=elements.device)
    for r in range(4):
        for e in range(2):
            low, sign = of4[r][e] if bits == 4 else (8 * (r % 2) + 16 * e, (7 if r % 2 else 15) + 16 * e)
            value = elements[..., r, e].long()
            words[..., r * per_operand // 4] |= value.abs() << low | (value < 0).long() << sign
    words = words.unflatten(-3, (-1, 4 // per_operand)).transpose(-3, -2).flatten(-4)  # four words of a lane together
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32).view(torch.uint8)


def ordered_scales(scales):
    """[batch, heads, blocks, 32] as bytes in fragment order."""
    ordered = torch.empty_like(scales)
    ordered[..., [4 * (token % 8) + token // 8 for token in range(BLOCK)]] = scales
    return ordered.view(torch.uint8)


def operand_places(head_dim, role):
    """Position token * head_dim + channel of the elements [operand, lane, register, element] where all channels are kept."""
    places = torch.empty(head_dim // 8, 32, 4, 2, dtype=torch.int64)
    for operand in range(head_dim // 8):
        for lane in range(32):
            g, t = lane // 4, lane % 4
            for r in range(4):
                for e in range(2):
                    if role == "keys":
                        a, s = divmod(operand, head_dim // 16)
                        token, channel = 16 * a + 8 * (r % 2) + g, head_dim // 4 * t + 4 * s + 2 * (r // 2) + e
                    else:
                        i, k = divmod(operand, 2)
                        token, channel = 16 * k + 8 * (r // 2) + 2 * t + e, head_dim // 8 * g + 2 * i + r % 2
                    places[operand, lane, r, e] = token * head_dim + channel
    return places


def group_places(head_dim, role):
    """Position token * head_dim + channel of the elements [product, row, group, m] of a balanced block's sparse products."""
    places = torch.empty(head_dim // 16, 16, 8, 4, dtype=torch.int64)
    for product in range(head_dim // 16):
        for row in range(16):
            for group in range(8):
                for m in range(4):
                    if role == "keys":
                        a, s = divmod(product, head_dim // 32)
                        t, i = group % 4, s % 2 + 2 * (group // 4)
                        unit = 4 * (t % 2) + 2 * (s // 2) + t // 2 if head_dim == 128 else t
                        token, channel = 16 * a + row, unit // 4 * 16 + unit % 4 + 4 * i + m * head_dim // 4
                    else:
                        token, channel = 4 * group + m, head_dim // 8 * (row % 8) + 2 * product + row // 8
                    places[product, row, group, m] = token * head_dim + channel
    return places


def pack_integers(integers, scales, bits, role, mask=None):
    """Blocks [batch, heads, blocks, bytes] in fragment order, element by element as docs/format.md says. mask: of the 2:4 pattern;
    None: all channels are kept."""
    batch, heads, tokens, head_dim = integers.shape
    blocks = tokens // BLOCK
    flat = integers.reshape(batch, heads, blocks, -1)
    scales = ordered_scales(scales.view(batch, heads, blocks, BLOCK))
    if mask is None:
        return torch.cat([integer_words(flat[..., operand_places(head_dim, role).to(flat.device)], bits), scales], -1)
    places = group_places(head_dim, role).to(flat.device)
    kept = mask.reshape(flat.shape)[..., places]
    assert bool((kept.sum(-1) == 2).all())
    # Ascending positions of the two that are kept.
    positions = torch.sort((~kept).to(torch.int8), dim=-1, stable=True).indices[..., :2]
    values = torch.gather(flat[..., places], -1, positions)  # [..., product, row, group, element]
    # Lane 4g + t, registers: rows g, g + 8 with group t, then with group t + 4.
    values = values.unflatten(-3, (2, 8)).unflatten(-2, (2, 4)).permute(0, 1, 2, 3, 5, 7, 6, 4, 8).flatten(6, 7).flatten(4, 5)
    # Lane 4g + 2s + h, word w: product 2w + s, groups 4h ... 4h + 3 of the rows g and g + 8.
    two = (positions[..., 0] | positions[..., 1] << 2).unflatten(-3, (-1, 2)).unflatten(-2, (2, 8)).unflatten(-1, (2, 4))
    shift = 16 * torch.arange(2, device=two.device)[:, None, None, None] + 4 * torch.arange(4, device=two.device)
    words = (two << shift).sum((-4, -1)).permute(0, 1, 2, 5, 4, 6, 3).flatten(4, 5).flatten(3, 4).flatten(3)
    words = ((words ^ 0x80000000) - 0x80000000).to(torch.int32).view(torch.uint8)
    return torch.cat([words, integer_words(values, bits), scales], -1)


def pack_unstructured_integers(integers, scales, bits, role, mask):
    """Likewise of the unstructured pattern; in every token as many channels are kept."""
    batch, heads, tokens, head_dim = integers.shape
    flat = integers.reshape(batch, heads, tokens // BLOCK, -1)
    order = value_order(head_dim, role).to(flat.device)
    values = flat[..., order][mask.reshape(flat.shape)[..., order]].view(batch, heads, tokens // BLOCK, -1)
    magnitude, negative = values.abs(), (values < 0).int()
    if bits == 8:
        data = magnitude | negative << 7
    else:
        # Of two runs, of 8 or 16 tokens each, value j shares a byte.
        run = values.shape[-1] // (BLOCK // (8 if role == "keys" and head_dim == 128 else 16))
        m, n = (x.unflatten(-1, (-1, 2, run)) for x in (magnitude, negative))
        data = (m[..., 0, :] | n[..., 0, :] << 7 | m[..., 1, :] << 3 | n[..., 1, :] << 6).flatten(-2)
    bitmap = bitmap_words(mask).view(batch, heads, tokens // BLOCK, -1).contiguous().view(torch.uint8)
    return torch.cat([bitmap, data.to(torch.uint8), ordered_scales(scales.view(batch, heads, tokens // BLOCK, BLOCK))], -1)


def pack_plain_integers(integers, scales, bits, mask=None):
    """Likewise in plain order, of any head_dim. mask: of any pattern with as many channels in every block; None: all."""
    batch, heads, tokens, head_dim = integers.shape
    blocks = tokens // BLOCK
    kept = torch.ones_like(integers, dtype=torch.bool) if mask is None else mask
    values = integers.reshape(batch, heads, blocks, -1)[kept.reshape(batch, heads, blocks, -1)].view(batch, heads, blocks, -1)
    if bits == 8:
        data = values.to(torch.int8).view(torch.uint8)
    else:
        nibbles = values.abs() | (values < 0).int() << 3
        data = (nibbles[..., ::2] | nibbles[..., 1::2] << 4).to(torch.uint8)
    bitmap = [] if mask is None else [bitmap_words(mask).view(batch, heads, blocks, -1).contiguous().view(torch.uint8)]
    return torch.cat([*bitmap, data, scales.view(batch, heads, blocks, BLOCK).contiguous().view(torch.uint8)], -1)


def bitmap_words(mask):
    """Boolean [..., head_dim] to int32 [..., ceil(head_dim / 32)]."""
    pad = -mask.shape[-1] % 32
    bits = torch.nn.functional.pad(mask, (0, pad)).unflatten(-1, (-1, 32)).to(torch.int64)
    words = (bits << torch.arange(32, device=mask.device)).sum(-1)
    return ((words ^ 0x80000000) - 0x80000000).to(torch.int32)


def pack(x, mask, role):
    """FIXED blocks [batch, heads, blocks, bytes]; the number of tokens is a multiple of 32, of kept channels constant."""
    batch, heads, tokens, head_dim = x.shape
    order = value_order(head_dim, role).to(x.device)
    flat = x.reshape(batch, heads, tokens // BLOCK, BLOCK * head_dim)
    kept = mask.reshape(flat.shape)
    values = flat[..., order][kept[..., order]].view(batch, heads, tokens // BLOCK, -1)
    bitmap = bitmap_words(mask).view(batch, heads, tokens // BLOCK, -1)
    return torch.cat([bitmap.contiguous().view(torch.uint8), values.contiguous().view(torch.uint8)], -1)


def attention(query, keys, values, lengths, counts, scale, sliding_window=0):
    """float64; query [batch, heads, n, d], keys and values [batch, kv heads, max length, d]. Returns output, log-sum-exp."""
    batch, heads, queries, _ = query.shape
    group = heads // keys.shape[1]
    output = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    lse = torch.full(query.shape[:3], float("-inf"), dtype=torch.float64, device=query.device)
    for b in range(batch):
        n, length = int(counts[b]), int(lengths[b])
        if n == 0 or length == 0:
            continue
        k = keys[b, :, :length].double().repeat_interleave(group, 0)
        v = values[b, :, :length].double().repeat_interleave(group, 0)
        score = query[b, :, :n].double() @ k.transpose(-1, -2) * scale
        position = torch.arange(length - n, length, device=query.device)[:, None]
        token = torch.arange(length, device=query.device)[None]
        hidden = token > position
        if sliding_window:
            hidden |= token <= position - sliding_window
        score = score.masked_fill(hidden, float("-inf"))
        lse[b, :, :n] = torch.logsumexp(score, -1)
        weights = torch.softmax(score, -1)
        weights = weights.masked_fill(hidden, 0)
        output[b, :, :n] = torch.where((~hidden).any(-1)[None, :, None], weights @ v, 0)
    return output, lse
