"""The C API on a GPU, with torch tensors as memory."""
import ctypes
import math
import os

import torch

import abi
from abi import (ALL, ALL_ROTATED, BALANCED_KEYS, BALANCED_VALUES, BLOCK, CUDA, FIXED, PADDING, PLAIN, UNSTRUCTURED,
                 Blocks, Context, Dense, Format, Rows)

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
VALUE_FORMATS = {16: 0, 8: 1, 4: 2}  # by bits
CUDA_FILE = "libmustafar_cuda.so"


class NativeError(RuntimeError):
    def __init__(self, status, text):
        super().__init__(f"status {status}: {text}")
        self.status = status


class Library:
    """libmustafar at a path, by default that of MUSTAFAR_LIBRARY. One process can use several, each with its CUDA library beside it."""

    def __init__(self, path=None):
        path = path or os.environ.get("MUSTAFAR_LIBRARY", "libmustafar.so")
        beside = os.path.join(os.path.dirname(os.path.abspath(path)), CUDA_FILE)
        if not os.path.exists(beside):
            # It would otherwise use the one that another libmustafar has loaded.
            raise FileNotFoundError(f"{path}: expected {CUDA_FILE} in its folder")
        self._library = abi.load(path)

    def call(self, name, *arguments):
        """mustafar_NAME on the current stream."""
        context = Context(CUDA, torch.cuda.current_device(), 0, 0, torch.cuda.current_stream().cuda_stream)
        pass_on = [ctypes.byref(a) if isinstance(a, ctypes.Structure) else a.data_ptr() if isinstance(a, torch.Tensor) else a
                   for a in arguments]
        status = getattr(self._library, "mustafar_" + name)(ctypes.byref(context), *pass_on)
        if status != 0:
            raise NativeError(status, self._library.mustafar_last_error().decode())


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


def on_device(structures):
    """Their bytes, one behind the other."""
    return torch.frombuffer(bytearray(b"".join(map(bytes, structures))), dtype=torch.uint8).cuda()


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
