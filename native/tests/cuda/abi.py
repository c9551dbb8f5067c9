"""The C API (native/include/mustafar) in Python, checked against the library's own description of its types.

    python3 abi.py LIBRARY

only checks; that needs neither torch nor a GPU.
"""
import ctypes
import os
import sys

I32, I64, PTR, F32, TEXT = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_float, ctypes.c_char_p
CUDA = 1
PLAIN, KEY_FRAGMENT, VALUE_FRAGMENT = 0, 1, 2
FIXED, OFFSETS = 0, 1
UNSTRUCTURED, BALANCED_KEYS, BALANCED_VALUES, ALL, MASK, ALL_ROTATED = 0, 1, 2, 3, 4, 5
BLOCK, PADDING, COUNTER_BYTES = 32, 64, 16384
ABI_VERSION = 7
CONSTANTS = {
    "MUSTAFAR_DEVICE_CUDA": CUDA,
    "MUSTAFAR_DTYPE_F32": 0, "MUSTAFAR_DTYPE_F16": 1, "MUSTAFAR_DTYPE_BF16": 2,
    "MUSTAFAR_VALUE_FORMAT_NATIVE": 0, "MUSTAFAR_VALUE_FORMAT_INT8": 1, "MUSTAFAR_VALUE_FORMAT_INT4": 2,
    "MUSTAFAR_PATTERN_UNSTRUCTURED": UNSTRUCTURED, "MUSTAFAR_PATTERN_BALANCED_KEYS": BALANCED_KEYS,
    "MUSTAFAR_PATTERN_BALANCED_VALUES": BALANCED_VALUES, "MUSTAFAR_PATTERN_ALL": ALL, "MUSTAFAR_PATTERN_MASK": MASK,
    "MUSTAFAR_PATTERN_ALL_ROTATED": ALL_ROTATED,
    "MUSTAFAR_LAYOUT_FIXED": FIXED, "MUSTAFAR_LAYOUT_OFFSETS": OFFSETS,
    "MUSTAFAR_ORDER_PLAIN": PLAIN, "MUSTAFAR_ORDER_KEY_FRAGMENT": KEY_FRAGMENT, "MUSTAFAR_ORDER_VALUE_FRAGMENT": VALUE_FRAGMENT,
    "MUSTAFAR_ACTIVATION_NONE": 0, "MUSTAFAR_ACTIVATION_SILU_MUL": 1,
    "MUSTAFAR_BLOCK_TOKENS": BLOCK, "MUSTAFAR_PAGE_PADDING": PADDING, "MUSTAFAR_WORKSPACE_COUNTER_BYTES": COUNTER_BYTES,
}


class AbiEntry(ctypes.Structure):
    _fields_ = [("kind", I32), ("size", I32), ("alignment", I32), ("value", I32), ("type", TEXT), ("name", TEXT)]


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
        ("scale", F32), ("sequences", PTR), ("lengths", PTR), ("compressed", PTR), ("query_counts", PTR), ("query", Dense),
        ("output", Dense), ("keys", Blocks), ("values", Blocks), ("key_factors", PTR), ("tail_keys", Dense), ("tail_values", Dense),
        ("fresh_keys", Dense), ("fresh_values", Dense), ("log_sum_exp", PTR), ("workspace", PTR), ("workspace_bytes", I64)]


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


class SamplingOptions(ctypes.Structure):
    _fields_ = [("temperature", F32), ("top_k", I32), ("top_p", F32), ("min_p", F32), ("repetition_penalty", F32),
                ("frequency_penalty", F32), ("presence_penalty", F32), ("reserved", I32), ("seed", ctypes.c_uint64)]


class Sampling(ctypes.Structure):
    _fields_ = [("dtype", I32), ("batch", I32), ("vocab_size", I32), ("allowed_stride", I64), ("logits", Rows),
                ("options", PTR), ("steps", PTR), ("counts", PTR), ("prompt", PTR), ("allowed", PTR), ("tokens", PTR),
                ("log_probabilities", PTR)]


STRUCTS = {
    "mustafar_abi_entry": AbiEntry, "mustafar_context": Context, "mustafar_format": Format, "mustafar_dense": Dense,
    "mustafar_blocks": Blocks, "mustafar_product": Product, "mustafar_attention": Attention, "mustafar_append": Append,
    "mustafar_rows": Rows, "mustafar_norm": Norm, "mustafar_rope": Rope, "mustafar_linear": Linear,
    "mustafar_sampling_options": SamplingOptions, "mustafar_sampling": Sampling,
}

# Behind the context; all return a status.
FUNCTIONS = {
    "mustafar_prune": (PTR, I32, I32, I64, PTR, PTR, PTR),
    "mustafar_offsets": (PTR, I32, I32, I64, PTR, PTR, PTR),
    "mustafar_key_factors": (I32, I32, I32, I32, I64, PTR, PTR),
    "mustafar_compress": (I32, I32, I64, PTR, PTR, PTR, PTR, PTR),
    "mustafar_decompress": (I32, I32, I64, I64, PTR, PTR, PTR),
    "mustafar_convert": (I32, I32, I64, PTR, PTR),
    "mustafar_key_scores": (PTR,),
    "mustafar_value_sum": (PTR,),
    "mustafar_attention_workspace": (PTR, PTR),
    "mustafar_attention_forward": (PTR,),
    "mustafar_append_tokens": (PTR,),
    "mustafar_rms_norm": (PTR,),
    "mustafar_rotate": (PTR,),
    "mustafar_silu_mul": (I32, I64, I32, PTR, PTR),
    "mustafar_linear_forward": (PTR,),
    "mustafar_linear_reads_once": (PTR, PTR),
    "mustafar_sample": (PTR,),
}


def check_types(library):
    """Compares every structure and constant above with the library's."""
    count = I32()
    fields, constants = {}, {}
    for entry in library.mustafar_abi_table(ctypes.byref(count))[:count.value]:
        owner, name = (text.decode() if text else None for text in (entry.type, entry.name))
        if owner in STRUCTS:
            fields[f"{owner}.{name}" if name else owner] = entry.value, entry.size
        elif name in CONSTANTS:
            constants[name] = entry.value
    ours = {name: (0, ctypes.sizeof(struct)) for name, struct in STRUCTS.items()}
    ours |= {f"{name}.{field}": (getattr(struct, field).offset, getattr(struct, field).size)
             for name, struct in STRUCTS.items() for field, _ in struct._fields_}
    for what, here, there in (("offset and size", ours, fields), ("value", CONSTANTS, constants)):
        wrong = [f"{name}: {what} {here.get(name)} in Python, {there.get(name)} in the library"
                 for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
        if wrong:
            raise RuntimeError("\n".join(wrong))


def load(path):
    """The library, its functions ready to be called."""
    library = ctypes.CDLL(os.path.abspath(path))
    version = library.mustafar_abi_version()
    if version != ABI_VERSION:
        raise RuntimeError(f"{path}: expected ABI version {ABI_VERSION}, got {version}")
    library.mustafar_last_error.restype = TEXT
    library.mustafar_abi_table.restype = ctypes.POINTER(AbiEntry)
    check_types(library)
    for name, arguments in FUNCTIONS.items():
        getattr(library, name).argtypes = [PTR, *arguments]
    return library


if __name__ == "__main__":
    load(sys.argv[1])
    print(f"{len(STRUCTS)} structures and {len(CONSTANTS)} constants are those of the library")
