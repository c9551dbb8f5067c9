"""A compressed cache built by torch alone, and the arguments of an attention call over it."""
import math

import torch

import reference
from abi import (ALL, ALL_ROTATED, BALANCED_KEYS, BALANCED_VALUES, BLOCK, COUNTER_BYTES, KEY_FRAGMENT, PLAIN, UNSTRUCTURED,
                 VALUE_FRAGMENT, Attention)
from native import Pages, dense

NAN = float("nan")


def compressed_tokens(length, window=32, group=64, lookahead=0):
    """Of whole groups that are there, those that leave a window of dense tokens, those to come among them."""
    return max(0, min((length + lookahead - window) // group, length // group) * group)


def last_tokens(x, lengths, counts, queries):
    """The last counts[b] of lengths[b] tokens of each sequence b of x, [batch, heads, queries, head_dim]; NaN behind them."""
    last = torch.full((*x.shape[:2], queries, x.shape[3]), NAN, dtype=x.dtype, device=x.device)
    for b, (n, c) in enumerate(zip(lengths, counts)):
        last[b, :, :c] = x[b, :, n - c:n]
    return last


class Cache:
    """keys, values: dense [batch, kv heads, longest, head_dim]. After construction self.keys and self.values are what the
    cache represents: pruned where compressed, as given where dense. Everything unused is NaN."""

    def __init__(self, keys, values, lengths, keep_keys, keep_values, *, fragment=True, window=32, group=64, fresh=None,
                 page_blocks=4, generator=None, mask=None, base=0, balanced=None, integers=None, bits=16, factors=False, rotated=False):
        """balanced: a Library that writes blocks of the balanced patterns; integers: one that writes those of fewer bits than 16, the keys
        with channel scales where factors says so, and rotated where rotated does. Not balanced they are unstructured, or integers of all
        channels where so many are to be kept. balanced and bits: of both, or a pair. mask: what is kept of unstructured ones."""
        batch, heads, longest, head_dim = keys.shape
        self.dtype, self.head_dim, self.heads = keys.dtype, head_dim, heads
        self.fresh = fresh if fresh is not None else [0] * batch
        self.lengths_list = list(lengths)
        stored = [max(0, length - f) for length, f in zip(lengths, self.fresh)]
        self.compressed_list = [compressed_tokens(n, window, group) for n in stored]
        self.capacity = (window + BLOCK - 1) // BLOCK * BLOCK + group
        device = keys.device
        mask = mask or reference.keep_mask
        self.keys, self.values = keys.clone(), values.clone()
        self.tail_keys = torch.full((batch, heads, self.capacity, head_dim), NAN, dtype=keys.dtype, device=device)
        self.tail_values = self.tail_keys.clone()
        orders = (KEY_FRAGMENT, VALUE_FRAGMENT) if fragment else (PLAIN, PLAIN)
        most = max(BLOCK, max(self.compressed_list, default=0))
        bits, balanced = (pair if isinstance(pair, tuple) else (pair, pair) for pair in (bits, balanced))
        patterns = [pattern if own else ALL if own_bits < 16 and keep == head_dim else UNSTRUCTURED
                    for own, pattern, keep, own_bits in zip(balanced, (BALANCED_KEYS, BALANCED_VALUES), (keep_keys, keep_values), bits)]
        if rotated:
            patterns[0] = ALL_ROTATED
        self.key_factors = torch.full((batch, heads, head_dim), NAN, device=device) if factors else None
        if integers:  # what they stand for needs more digits
            self.keys, self.values = self.keys.float(), self.values.float()
        self.key_pages = Pages(batch, heads, most, head_dim, keys.dtype, keep_keys, orders[0], page_blocks, generator, base,
                               patterns[0], bits=bits[0])
        self.value_pages = Pages(batch, heads, most, head_dim, keys.dtype, keep_values, orders[1], page_blocks, generator,
                                 base, patterns[1], bits=bits[1])
        for b in range(batch):
            c, n = self.compressed_list[b], stored[b]
            for pages, full, keep, own_bits, writer, role in ((self.key_pages, self.keys, keep_keys, bits[0], balanced[0], "keys"),
                                                              (self.value_pages, self.values, keep_values, bits[1], balanced[1], "values")):
                if not c:
                    continue
                part = (keys if role == "keys" else values)[b:b + 1, :, :c].contiguous()
                if own_bits < 16:
                    own = None
                    if role == "keys" and factors:
                        own = self.key_factors[b:b + 1]
                        integers.call("key_factors", pages.format.dtype, head_dim, 1, heads, c, dense(part), own)
                    integers.call("compress", 1, heads, c, dense(part), None, None, own, pages.blocks_of(b))
                    kept = (reference.balanced_mask(part, keep, role) if writer else
                            None if keep == head_dim else mask(part, keep))
                    full[b, :, :c] = reference.dequantized(part, own_bits, own, kept, rotated and role == "keys")[0]
                elif writer:
                    writer.call("compress", 1, heads, c, dense(part), None, None, None, pages.blocks_of(b))
                    full[b, :, :c] = torch.where(reference.balanced_mask(part, keep, role)[0], part[0], 0)
                else:
                    kept = mask(part, keep)
                    packed = reference.pack(part, kept, role if fragment else "plain")
                    pages.memory[pages.gathered(c // BLOCK)[b]] = packed[0]
                    full[b, :, :c] = torch.where(kept[0], part[0], 0)
            slots = torch.arange(c, n, device=device) % self.capacity
            self.tail_keys[b, :, slots] = keys[b, :, c:n]
            self.tail_values[b, :, slots] = values[b, :, c:n]
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.compressed = torch.tensor(self.compressed_list, dtype=torch.int32, device=device)

    def bytes(self):
        """What an attention step has to read: blocks and dense tokens."""
        element = torch.empty(0, dtype=self.dtype).element_size()
        blocks = sum(c // BLOCK for c in self.compressed_list) * self.heads
        tail = sum(n - c for n, c in zip(self.lengths_list, self.compressed_list)) * self.heads
        return blocks * (self.key_pages.block_bytes + self.value_pages.block_bytes) + 2 * tail * self.head_dim * element


class Call:
    """One attention call; keeps its tensors alive. out starts as NaN, and so does the workspace behind its counters. rows: the
    sequences of the cache that the query rows are for; all, in their order, by default. workspace: another call's, to share."""

    def __init__(self, library, cache, query, *, scale=None, counts=None, fresh_keys=None, fresh_values=None,
                 sliding_window=0, max_tokens=None, lse=True, out=None, rows=None, workspace=None):
        self.library, self.cache, self.query = library, cache, query
        batch, heads, queries, head_dim = query.shape
        self.out = torch.full_like(query, NAN).contiguous() if out is None else out
        self.lse = torch.full((batch, heads, queries), NAN, dtype=torch.float32, device=query.device) if lse else None
        self.counts = None if counts is None else torch.tensor(counts, dtype=torch.int32, device=query.device)
        self.fresh = fresh_keys, fresh_values
        self.sequences = None if rows is None else torch.tensor(rows, dtype=torch.int32, device=query.device)
        self.arguments = Attention(
            batch, len(cache.lengths_list), heads, cache.heads, queries, 0 if fresh_keys is None else queries, cache.capacity,
            max_tokens or max(1, max(cache.lengths_list)), sliding_window, scale or 1 / math.sqrt(head_dim),
            None if rows is None else self.sequences.data_ptr(), cache.lengths.data_ptr(), cache.compressed.data_ptr(), None if counts is None else self.counts.data_ptr(),
            dense(query), dense(self.out), cache.key_pages.blocks(), cache.value_pages.blocks(), None if cache.key_factors is None else cache.key_factors.data_ptr(),
            dense(cache.tail_keys),
            dense(cache.tail_values), dense(fresh_keys), dense(fresh_values), self.lse.data_ptr() if lse else None, None, 0)
        needed = torch.zeros(1, dtype=torch.int64)
        library.call("attention_workspace", self.arguments, needed)
        if workspace is None:
            workspace = torch.full((max(1, int(needed) // 4 + 1),), NAN, dtype=torch.float32, device=query.device)
            workspace[:COUNTER_BYTES // 4] = 0
        self.workspace = workspace
        self.arguments.workspace = self.workspace.data_ptr()
        self.arguments.workspace_bytes = int(needed)

    def __call__(self):
        self.library.call("attention_forward", self.arguments)
        return self.out
