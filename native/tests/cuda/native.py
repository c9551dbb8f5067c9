"""The CUDA back end through its table of functions (native/src/core/backend.h), with torch tensors as memory."""
import ctypes
import math
import os

import torch

I32, I64, PTR, F32 = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PLAIN, KEY_FRAGMENT, VALUE_FRAGMENT = 0, 1, 2
FIXED, OFFSETS = 0, 1
UNSTRUCTURED, BALANCED_KEYS, BALANCED_VALUES, ALL, MASK, ALL_ROTATED = 0, 1, 2, 3, 4, 5
VALUE_FORMATS = {16: 0, 8: 1, 4: 2}  # by bits
BLOCK = 32
PADDING = 64
COUNTER_BYTES = 16384  # of a workspace, zero before its first use
ABI_VERSION = 6


class Context(ctypes.Structure):
    _fields_ = [("device", I32), ("device_index", I32), ("num_threads", I32), ("cpu_variant", I32), ("stream", PTR)]


class Format(ctypes.Structure):
    _fields_ = [(n, I32) for n in ("head_dim", "dtype", "value_format", "pattern", "layout", "order", "keep")]


class Dense(ctypes.Structure):
    _fields_ = [("data", PTR), ("batch_stride", I64), ("head_stride", I64), ("token_stride", I64)]


class Blocks(ctypes.Structure):
    _fields_ = [("format", Format), ("page_blocks", I32), ("slab_pages", I32), ("slab_count", I32), ("page_capacity", I64),
                ("page_bytes", I64), ("base", I64), ("head_stride", I64), ("slab_bytes", I64), ("slabs", PTR), ("pages", PTR),
                ("offsets", PTR)]


class Product(ctypes.Structure):
    _fields_ = [("batch", I32), ("num_heads", I32), ("num_kv_heads", I32), ("num_queries", I32), ("tokens", I64),
                ("blocks", Blocks), ("dense", Dense), ("weights", Dense), ("scale", F32), ("key_factors", PTR)]


class Attention(ctypes.Structure):
    _fields_ = [(n, I32) for n in ("batch", "num_slots", "num_heads", "num_kv_heads", "num_queries", "num_fresh", "tail_capacity",
                                   "max_tokens", "sliding_window")] + [
        ("scale", F32), ("sequences", PTR), ("lengths", PTR), ("compressed", PTR), ("query_counts", PTR), ("query", Dense), ("output", Dense),
        ("keys", Blocks), ("values", Blocks), ("key_factors", PTR), ("tail_keys", Dense), ("tail_values", Dense), ("fresh_keys", Dense),
        ("fresh_values", Dense), ("log_sum_exp", PTR), ("workspace", PTR), ("workspace_bytes", I64)]


class Append(ctypes.Structure):
    _fields_ = [(n, I32) for n in ("batch", "num_slots", "num_kv_heads", "num_tokens", "lookahead", "group_size", "local_window",
                                   "tail_capacity", "max_tokens")] + [
        ("sequences", PTR), ("counts", PTR), ("lengths", PTR), ("compressed", PTR), ("new_lengths", PTR), ("new_compressed", PTR),
        ("new_keys", Dense), ("new_values", Dense), ("keys", Blocks), ("values", Blocks), ("key_factors", PTR), ("tail_keys", Dense),
        ("tail_values", Dense), ("key_importance", PTR), ("value_importance", PTR), ("key_bitmap", PTR), ("value_bitmap", PTR),
        ("bitmap_tokens", I32)]


class Rows(ctypes.Structure):
    _fields_ = [("data", PTR), ("row_stride", I64)]


class Norm(ctypes.Structure):
    _fields_ = [("dtype", I32), ("hidden_size", I32), ("rows", I64), ("eps", F32), ("input", Rows), ("residual", Rows),
                ("weight", PTR), ("output", Rows)]


class Rope(ctypes.Structure):
    _fields_ = [(n, I32) for n in ("dtype", "batch", "num_tokens", "num_heads", "num_kv_heads", "head_dim", "rotary_dim")] + [
        ("eps", F32), ("query", Dense), ("key", Dense), ("value", Dense), ("query_output", Dense), ("key_output", Dense),
        ("value_output", Dense), ("query_norm", PTR), ("key_norm", PTR), ("positions", PTR), ("inv_freq", PTR),
        ("cosines", PTR), ("sines", PTR), ("table_positions", I64), ("attention_scaling", F32)]


class Linear(ctypes.Structure):
    _fields_ = [(n, I32) for n in ("dtype", "rows", "in_features", "out_features", "activation")] + [
        ("eps", F32), ("input", Rows), ("norm", PTR), ("weight", Rows), ("bias", PTR), ("residual", Rows), ("output", Rows)]


class Sampling(ctypes.Structure):
    _fields_ = [("dtype", I32), ("batch", I32), ("vocab_size", I32), ("allowed_stride", I64), ("logits", Rows),
                ("options", PTR), ("steps", PTR), ("counts", PTR), ("prompt", PTR), ("allowed", PTR), ("tokens", PTR),
                ("log_probabilities", PTR)]


class _Table(ctypes.Structure):
    _fields_ = [("abi_version", I32)] + [(n, PTR) for n in (
        "prune", "offsets", "key_factors", "compress", "decompress", "convert", "key_scores", "value_sum", "attention_workspace", "attention",
        "append", "rms_norm", "rotate", "rotate_append", "silu_mul", "linear", "sample", "graph")]


_ARGUMENTS = {
    "prune": (PTR, I32, I32, I64, PTR, PTR, PTR),
    "offsets": (PTR, I32, I32, I64, PTR, PTR, PTR),
    "key_factors": (I32, I32, I32, I32, I64, PTR, PTR),
    "compress": (I32, I32, I64, PTR, PTR, PTR, PTR, PTR),
    "decompress": (I32, I32, I64, I64, PTR, PTR, PTR),
    "convert": (I32, I32, I64, PTR, PTR),
    "key_scores": (PTR,),
    "value_sum": (PTR,),
    "attention_workspace": (PTR, PTR),
    "attention": (PTR,),
    "append": (PTR,),
    "rms_norm": (PTR,),
    "rotate": (PTR,),
    "rotate_append": (PTR, PTR),
    "silu_mul": (I32, I64, I32, PTR, PTR),
    "linear": (PTR,),
    "sample": (PTR,),
}


class NativeError(RuntimeError):
    def __init__(self, status, text):
        super().__init__(f"status {status}: {text}")
        self.status = status


class Library:
    def __init__(self, path=None):
        path = path or os.environ.get("MUSTAFAR_CUDA_LIBRARY", "libmustafar_cuda.so")
        self._library = ctypes.CDLL(path)
        self._library.mustafar_cuda_backend.restype = ctypes.POINTER(_Table)
        table = self._library.mustafar_cuda_backend().contents
        if table.abi_version != ABI_VERSION:
            raise RuntimeError(f"{path}: expected ABI version {ABI_VERSION}, got {table.abi_version}")
        self._functions = {name: ctypes.CFUNCTYPE(I32, PTR, *arguments, PTR)(getattr(table, name))
                           for name, arguments in _ARGUMENTS.items() if getattr(table, name)}

    def call(self, name, *arguments, device=None):
        index = torch.cuda.current_device() if device is None else device.index
        context = Context(1, index, 0, 0, torch.cuda.current_stream(index).cuda_stream)
        error = ctypes.create_string_buffer(512)
        pass_on = [ctypes.addressof(a) if isinstance(a, ctypes.Structure) else
                   a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        status = self._functions[name](ctypes.addressof(context), *pass_on, ctypes.addressof(error))
        if status != 0:
            raise NativeError(status, error.value.decode())


def dense(tensor):
    """View of a [batch, heads, tokens, head_dim] tensor; None for one that is not used."""
    if tensor is None:
        return Dense(None, 0, 0, 0)
    if tensor.stride(-1) != 1:
        raise ValueError("the last dimension is not contiguous")
    return Dense(tensor.data_ptr(), *tensor.stride()[:3])


def rows(matrix):
    """View of a [rows, width] tensor; None for one that is not used."""
    return Rows(None, 0) if matrix is None else Rows(matrix.data_ptr(), matrix.stride(0))


def address(tensor):
    return None if tensor is None else tensor.data_ptr()


def block_bytes(head_dim, dtype, keep, pattern=UNSTRUCTURED, order=PLAIN, bits=16):
    element = torch.empty(0, dtype=dtype).element_size()
    codes = bits == 16 and pattern in (BALANCED_KEYS, BALANCED_VALUES) and order != PLAIN and element == 2 and head_dim <= 128 and 2 * keep < head_dim
    header = 0 if pattern in (ALL, ALL_ROTATED) else 128 * ((head_dim + 31) // 32) + (head_dim * 3 // 2 if codes else 0)
    if bits == 16:
        return header + BLOCK * keep * element
    return header + BLOCK * keep * bits // 8 + 2 * BLOCK


class Pages:
    """FIXED blocks of one tensor in pages of a random order. The pages are in slabs, whose addresses are in a random order too;
    all memory starts out as 0xff (NaN)."""

    def __init__(self, batch, heads, capacity_tokens, head_dim, dtype, keep, order, page_blocks, generator=None, base=0,
                 pattern=UNSTRUCTURED, slab_pages=3, bits=16):
        self.batch, self.heads, self.order = batch, heads, order
        self.format = Format(head_dim, DTYPES[dtype], VALUE_FORMATS[bits], pattern, FIXED, order, keep)
        self.page_blocks = page_blocks
        self.block_bytes = block_bytes(head_dim, dtype, keep, pattern, order, bits)
        self.capacity = max(1, math.ceil(math.ceil(capacity_tokens / BLOCK) / page_blocks))
        count = batch * self.capacity
        head_stride = page_blocks * self.block_bytes
        page_bytes = (heads * head_stride + 63) // 64 * 64
        slab_bytes = (base + slab_pages * page_bytes + PADDING + 63) // 64 * 64
        slabs = torch.randperm(-(-count // slab_pages), generator=generator)
        memory = torch.full((len(slabs) * slab_bytes,), 0xff, dtype=torch.uint8, device="cuda")
        numbers = torch.randperm(count, generator=generator).view(batch, self.capacity)
        self._place(memory, numbers, slabs * slab_bytes, slab_pages, base, head_stride, page_bytes, slab_bytes)

    def _place(self, memory, numbers, slab_starts, slab_pages, base, head_stride, page_bytes, slab_bytes):
        self.memory, self._numbers, self._slab_starts, self.slab_pages = memory, numbers, slab_starts, slab_pages
        self.base, self.head_stride, self.page_bytes, self.slab_bytes = base, head_stride, page_bytes, slab_bytes
        self._starts = slab_starts[numbers // slab_pages] + numbers % slab_pages * page_bytes
        self.table = numbers.to(torch.int32).to(memory.device)
        self.slabs = (memory.data_ptr() + slab_starts).to(memory.device)

    def move(self, memory):
        """To a copy of the memory."""
        self._place(memory, self._numbers, self._slab_starts, self.slab_pages, self.base, self.head_stride, self.page_bytes,
                    self.slab_bytes)

    def share_tables(self, other):
        """Takes over the tables of pages that lie in the same places."""
        self.table, self.slabs = other.table, other.slabs

    def blocks(self):
        return Blocks(self.format, self.page_blocks, self.slab_pages, len(self._slab_starts), self.capacity, self.page_bytes,
                      self.base, self.head_stride, self.slab_bytes, self.slabs.data_ptr(), self.table.data_ptr(), None)

    def blocks_of(self, sequence):
        """Of one sequence only."""
        blocks = self.blocks()
        blocks.pages += 4 * sequence * self.capacity
        return blocks

    def block(self, sequence, head, index):
        """Bytes of one block, as a view."""
        start = int(self._starts[sequence, index // self.page_blocks]) + self.base + \
            head * self.head_stride + index % self.page_blocks * self.block_bytes
        return self.memory[start:start + self.block_bytes]

    def gathered(self, blocks):
        """[batch, heads, blocks, block bytes] of the first blocks."""
        index = torch.arange(blocks)
        starts = self._starts[:, index // self.page_blocks] + self.base + index % self.page_blocks * self.block_bytes
        starts = starts[:, None, :] + torch.arange(self.heads)[None, :, None] * self.head_stride
        offsets = starts.to(self.memory.device)[..., None] + torch.arange(self.block_bytes, device=self.memory.device)
        return offsets


def place_in_slabs(keys, values, slab_pages=8):
    """Places pages as MustafarCache does: of each head a slab has one run of memory, in which the keys and the values of a
    page are neighbours, and pages that follow each other too."""
    page = (keys.page_blocks * (keys.block_bytes + values.block_bytes) + 63) // 64 * 64
    head_stride = slab_pages * page
    slabs = -(-keys.capacity // slab_pages)
    slab = keys.heads * head_stride
    memory = torch.full((keys.batch * slabs * slab + PADDING,), 0xff, dtype=torch.uint8, device="cuda")
    numbers = torch.arange(keys.batch)[:, None] * slabs * slab_pages + torch.arange(keys.capacity)
    starts = torch.arange(keys.batch * slabs) * slab
    for pages, base in ((keys, 0), (values, keys.page_blocks * keys.block_bytes)):
        before, places = pages.memory, pages.gathered(keys.capacity * keys.page_blocks)
        pages._place(memory, numbers, starts, slab_pages, base, head_stride, page, slab + PADDING)
        memory[pages.gathered(keys.capacity * keys.page_blocks)] = before[places]
    values.share_tables(keys)


class OffsetPages:
    """OFFSETS blocks: one buffer for all, the one page that every sequence has."""

    def __init__(self, batch, heads, blocks, head_dim, dtype, offsets, slab_bytes):
        self.format = Format(head_dim, DTYPES[dtype], 0, 0, OFFSETS, PLAIN, 0)
        self.page_blocks, self.slab_bytes, self.offsets = max(1, blocks), slab_bytes, offsets
        self.memory = torch.full((slab_bytes,), 0xff, dtype=torch.uint8, device="cuda")
        self.slabs = torch.tensor([self.memory.data_ptr()], dtype=torch.int64, device="cuda")
        self.table = torch.zeros(batch, dtype=torch.int32, device="cuda")

    def blocks(self):
        return Blocks(self.format, self.page_blocks, 1, 1, 1, 0, 0, 0, self.slab_bytes, self.slabs.data_ptr(),
                      self.table.data_ptr(), self.offsets.data_ptr())
