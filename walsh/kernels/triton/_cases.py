"""What :mod:`walsh.kernels.triton.compile` compiles: calls on ``meta`` tensors, forward and backward.

Shapes are those of a small model (512 features, 2,048 tokens) and of decoding one token; ``full`` adds dtypes and a
large model. Every configuration of ``configs.json`` is a case of its own, for the target of the device it was measured
on. Nothing is computed: each call only makes its launches known.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from walsh.algebra import DIMENSIONS
from walsh.kernels.triton import _config
from walsh.kernels.triton._workloads import workload


def _module(name: str) -> Any:
    """A module of the package, also where a function of the package has its name."""
    return importlib.import_module(f"walsh.kernels.triton.{name}")


activations, cayley_dickson, hadamard, ternary = map(_module, ("activations", "cayley_dickson", "hadamard", "ternary"))
attention, cross_entropy, kv_cache = map(_module, ("attention", "cross_entropy", "kv_cache"))
embedding, embedding_head, gemm = map(_module, ("embedding", "embedding_head", "gemm"))
rms_norm, rope, swiglu = map(_module, ("rms_norm", "rope", "swiglu"))
arithmetic, layers = map(_module, ("strict._arithmetic", "strict.layers"))
strict_attention, sampling = map(_module, ("strict.attention", "strict.sampling"))
bitmask, ternary_packing = map(_module, ("bitmask", "ternary_packing"))

Case = tuple[str, Callable[[], object]]


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without content."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _cayley_dickson(dtype: torch.dtype, tokens: int, features: int, d: int, method: str) -> Iterator[Case]:
    size = features // d
    name = f"cayley_dickson_linear D={d} {dtype} M={tokens} {method}"
    x, y, w, beta = (
        tensor(tokens, features, dtype=dtype),
        tensor(tokens, features, dtype=dtype),
        tensor(d, size, size),
        None,
    )
    w, beta = w.to(dtype), tensor(size)
    none = (None, None, None, None, method)
    yield name, lambda: cayley_dickson._linear(x, w, beta, *none)
    if tokens > 1:
        yield name + " backward", lambda: cayley_dickson._backward(y, x, w, beta, *none, True, True, True)


def _codes(dtype: torch.dtype, tokens: int, features: int, d: int) -> Iterator[Case]:
    size = features // d
    x, codes, scale = (
        tensor(tokens, features, dtype=dtype),
        tensor(tokens, features, dtype=torch.int8),
        tensor(tokens, 1),
    )
    w, beta, q = tensor(d, size, size), tensor(size), tensor(d, size, size, dtype=torch.int8)
    packed = tensor(d, size, size // 4, dtype=torch.uint8)
    name = f"cayley_dickson_bit_linear D={d} {dtype} M={tokens}"
    state = (codes, scale, q, None, "direct")
    yield name, lambda: cayley_dickson._linear(x, w, beta, *state)
    yield name + " packed", lambda: cayley_dickson._linear(x, packed, beta, codes, scale, None, None, "direct")
    yield name + " packed float", lambda: cayley_dickson._linear(x, packed, beta, None, None, None, None, "direct")
    if tokens > 1:
        yield name + " backward", lambda: cayley_dickson._backward(x, x, w, beta, *state, True, True, True)


def _hadamard(dtype: torch.dtype, tokens: int, features: int, n: int) -> Iterator[Case]:
    size = features // n
    x, w = tensor(tokens, features, dtype=dtype), tensor(n, size, size, dtype=dtype)
    alpha, beta = tensor(n, size), tensor(n, size)
    codes, scale, q = (
        tensor(tokens, features, dtype=torch.int8),
        tensor(tokens, 1),
        tensor(n, size, size, dtype=torch.int8),
    )
    name = f"hadamard_linear n={n} {dtype} M={tokens}"
    plain, rounded = (None, None, None, None), (codes, scale, q, None)
    yield name, lambda: hadamard.linear(x, w, alpha, beta, *plain)
    yield name + " quantize", lambda: hadamard.hadamard_quantize(x, alpha, n, False)
    yield name + " bit", lambda: hadamard.linear(x, w, alpha, beta, *rounded)
    if tokens > 1:
        needs = (True, True, True, True)
        yield name + " backward", lambda: hadamard.backward(x, x, w, alpha, beta, *plain, *needs)
        yield name + " bit backward", lambda: hadamard.backward(x, x, w, alpha, beta, *rounded, *needs)


def _hadamard_packed(dtype: torch.dtype, tokens: int, features: int, n: int) -> Iterator[Case]:
    """Weights as they are stored: packed, and float or rounded activations."""
    size = features // n
    x, packed = tensor(tokens, features, dtype=dtype), tensor(n, size, size // 4, dtype=torch.uint8)
    alpha, beta, codes = tensor(n, size), tensor(n, size), tensor(tokens, features, dtype=torch.int8)
    plain, rounded = (None, None, None, None), (codes, tensor(tokens, 1), None, None)
    name = f"hadamard_linear n={n} {dtype} M={tokens} packed"
    yield name, lambda: hadamard.linear(x, packed, alpha, beta, *plain)
    yield name + " bit", lambda: hadamard.linear(x, packed, alpha, beta, *rounded)
    if tokens > 1:
        needs = (True, False, True, True)
        yield name + " backward", lambda: hadamard.backward(x, x, packed, alpha, beta, *plain, *needs)


def _head_mixers(dtype: torch.dtype) -> Iterator[Case]:
    """Full precision weights that are applied from the right: the layers' kernels, columns side by side."""
    none = (None, None, None, None)
    for n in (8, 32):
        heads, w = tensor(2048, n * 64, dtype=dtype), tensor(n, 64, 64, dtype=dtype).transpose(1, 2)
        if n == 8:
            beta, state = tensor(64), (*none, "direct")
            yield f"head_mixer octonion {dtype}", partial(cayley_dickson._linear, heads, w, beta, *state)
            call = partial(cayley_dickson._backward, heads, heads, w, beta, *state, True, True, True)
            yield f"head_mixer octonion {dtype} backward", call
        else:
            beta = tensor(n, 64)
            yield f"head_mixer hadamard {dtype}", partial(hadamard.linear, heads, w, None, beta, *none)
            call = partial(hadamard.backward, heads, heads, w, None, beta, *none, True, True, False, True)
            yield f"head_mixer hadamard {dtype} backward", call


def _elementwise(dtype: torch.dtype, tokens: int = 2048, features: int = 512) -> Iterator[Case]:
    x = tensor(tokens, features, dtype=dtype)
    yield f"ternary {dtype}", lambda: ternary._ternary(x, "absmean")
    yield f"ternary_packed {dtype}", lambda: ternary._packed(x, "absmean")
    yield f"quantize_activations {dtype}", lambda: activations.quantize(x, False, False)
    yield f"fake_quantize_activations {dtype}", lambda: activations.quantize(x, True, False)
    for n in (32, 4096, 32768):
        row = tensor(64, n, dtype=dtype)
        yield f"hadamard_transform n={n} {dtype}", partial(hadamard.transform, row, True, False)
    yield f"hadamard_transform across 32 blocks {dtype}", lambda: hadamard.transform(x, True, False, features // 32)


def _attention(dtype: torch.dtype, tokens: int, keys: int) -> Iterator[Case]:
    q, k = tensor(4, tokens, 8, 64, dtype=dtype), tensor(4, keys, 8, 64, dtype=dtype)
    positions, lse = tensor(4, tokens, dtype=torch.int64), tensor(4, 8, tokens)
    name = f"attention {dtype} T={tokens} S={keys}"
    yield name, lambda: attention.attend(q, k, k, None, None, positions)
    codes, worth = tensor(4, keys, 8, 64, dtype=torch.int8), tensor(4, keys, 8, 1)
    yield name + " int8 cache", lambda: attention.attend(q, codes, codes, worth, worth, positions)
    if tokens > 1:
        yield name + " backward", lambda: attention._backward(q, q, k, k, positions, lse)
    cache = kv_cache.KVCache(4, keys, 8, 64, dtype, "meta")
    yield name + " append", lambda: cache.append(q, q)
    int8_cache = kv_cache.KVCache(4, keys, 8, 64, torch.int8, "meta")
    yield name + " int8 append", lambda: int8_cache.append(q, q)


def _model_parts(dtype: torch.dtype) -> Iterator[Case]:
    yield from _norms_and_losses(dtype)
    x, table = tensor(2048, 512, dtype=dtype), tensor(8192, 512, dtype=dtype)
    ids, kind = tensor(2048, dtype=torch.int64), torch.float64 if dtype == torch.float64 else torch.float32
    heads, angles = tensor(4, 512, 8, 64, dtype=dtype), tensor(512, 32, dtype=kind)
    yield f"rope {dtype}", lambda: rope.rotate(heads, angles, angles, False, False)
    yield f"rope_table {dtype}", lambda: rope.rope_table(ids, tensor(32, dtype=torch.float64), kind, False)
    yield f"embedding {dtype}", lambda: embedding._embedding(ids, table)
    small, importance, indices = tensor(1021, 512, dtype=dtype), tensor(8192, 2), tensor(8192, 2, dtype=torch.int64)
    yield f"hash_embedding {dtype}", lambda: embedding._hash_embedding(ids, [small, small], importance, indices, 2.0)
    yield f"hash_lm_head {dtype}", lambda: embedding_head._hash_head(x, [small, small], importance, indices)
    groups = tensor(2048, dtype=torch.int64), tensor(8193, dtype=torch.int64)
    source, target = gemm.rowwise(x), gemm.rowwise(table)
    yield f"embedding {dtype} backward", lambda: embedding.segment_sum(source, 512, groups, target)
    yield (
        f"hash_embedding {dtype} backward",
        lambda: embedding.segment_sum(source, 512, groups, target, tensor(2048), 2.0),
    )
    dots = tensor(2048, 1, dtype=kind)
    yield f"importance {dtype} backward", lambda: embedding.row_dots(source, target, 512, dots, None, ids)


def _norms_and_losses(dtype: torch.dtype, tokens: int = 2048, features: int = 512) -> Iterator[Case]:
    x, weight = tensor(tokens, features, dtype=dtype), tensor(features, dtype=dtype)
    table, ids = tensor(8192, features, dtype=dtype), tensor(tokens, dtype=torch.int64)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    yield f"rms_norm {dtype}", lambda: rms_norm.normalize(x, weight, 1e-6, False)
    yield f"rms_norm_quantize {dtype}", lambda: rms_norm.normalize_quantize(x, weight, 1e-6, False)
    yield f"rms_norm {dtype} backward", lambda: rms_norm._backward(x, x, weight, 1e-6)
    yield f"swiglu {dtype}", lambda: swiglu.gated(x, x, False)
    yield f"swiglu {dtype} backward", lambda: swiglu._backward(x, x, x)
    logits, sums, number = tensor(tokens, 8192, dtype=dtype), tensor(tokens, dtype=kind), tensor(dtype=kind)
    yield f"lm_head {dtype}", lambda: embedding_head._lm_head(x, table)
    yield f"lm_head {dtype} backward", lambda: embedding_head._lm_head_backward(logits, x, table)
    yield f"cross_entropy {dtype}", lambda: cross_entropy._cross_entropy(logits, ids)
    yield (
        f"cross_entropy {dtype} backward",
        lambda: cross_entropy._backward(tensor(dtype=dtype), logits, ids, sums, number),
    )
    yield f"linear_cross_entropy {dtype}", lambda: cross_entropy._linear(x, table, ids, 1024, True)


def _strict() -> Iterator[Case]:
    """Every kernel that strict arithmetic launches, with the constants that it launches them with."""
    x, weight = tensor(2048, 512), tensor(512)
    codes, r = tensor(2048, 512, dtype=torch.int8), tensor(2048, 1)
    for d, n, k in ((1, 8192, 512), (8, 64, 64)):
        w, beta = tensor(d, n, k, dtype=torch.int8), tensor(n)
        yield (
            f"cayley_dickson_linear.strict D={d}",
            partial(cayley_dickson.integer_linear, codes, w, beta, r, True, d == 1),
        )
    mixer = tensor(8, 64, 64, dtype=torch.int8)
    yield (
        "head_mixer.strict octonion",
        lambda: cayley_dickson.integer_linear(codes, mixer.transpose(1, 2), tensor(2, 64), r, True, True),
    )
    blocks = tensor(32, 16, 16, dtype=torch.int8)
    yield "hadamard_linear.strict", lambda: hadamard.integer_linear(codes, r, blocks, tensor(1, 32, 16))
    yield "head_mixer.strict hadamard", lambda: hadamard.integer_linear(codes, r, blocks, tensor(2, 32, 16))
    yield "hadamard_linear.strict quantize", lambda: hadamard.hadamard_quantize(x, tensor(32, 16), 32, True)
    yield "hadamard_transform.strict", lambda: hadamard.transform(tensor(64, 32768), True, True)
    yield "quantize_activations.strict", lambda: activations.quantize(x, False, True)
    yield "rms_norm.strict", lambda: rms_norm.normalize(x, weight, 1e-6, True)
    yield "rms_norm_quantize.strict", lambda: rms_norm.normalize_quantize(x, weight, 1e-6, True)
    yield "swiglu.strict", lambda: swiglu.gated(x, x, True)
    ids, inv_freq = tensor(512, dtype=torch.int64), tensor(32, dtype=torch.float64)
    yield "rope_table.strict", lambda: rope.rope_table(ids, inv_freq, torch.float32, True)
    heads, angles = tensor(4, 512, 8, 64), tensor(512, 32)
    yield "rope.strict", lambda: rope.rotate(heads, angles, angles, False, True)
    yield "exp.strict", lambda: arithmetic.exp(x)
    yield "hsum.strict", lambda: arithmetic.hsum(tensor(4, 65536))
    yield "psum.strict", lambda: arithmetic.psum(x)
    for tokens in (1, 512):
        query, key = tensor(4, tokens, 8, 64, dtype=torch.int8), tensor(4, 1024, 8, 64, dtype=torch.int8)
        r_q, r_k, places = tensor(4, tokens, 8, 1), tensor(4, 1024, 8, 1), tensor(4, tokens, dtype=torch.int64)
        yield (
            f"attention.strict T={tokens}",
            partial(strict_attention.attend, query, r_q, key, r_k, key, r_k, places),
        )
    table, rows = tensor(8192, 512, dtype=torch.int8), tensor(8192)
    yield "embedding.strict", lambda: embedding.gather(ids, [table], tensor(512, 512), scales=[rows])
    small, heights, indices = tensor(1021, 512, dtype=torch.int8), tensor(1021), tensor(8192, 2, dtype=torch.int64)
    yield (
        "hash_embedding.strict",
        lambda: embedding.gather(
            ids,
            [small, small],
            tensor(512, 512),
            indices=indices,
            importance=tensor(8192, 2),
            scales=[heights, heights],
            scale=2.0,
        ),
    )
    products = [tensor(512, 1021), tensor(512, 1021)]
    yield (
        "hash_lm_head.strict",
        lambda: embedding_head.combine(products, indices, tensor(8192, 2), tensor(512, 8192)),
    )
    logits, history = tensor(4, 8192), tensor(4, 100, dtype=torch.int64)
    yield "sample.strict penalty", lambda: sampling._penalized(logits, history, 1.1, 0.8)
    yield "sample.strict draw", lambda: sampling._draw(logits, 50, 0.9, tensor(4))
    yield "sample.strict argmax", lambda: sampling._greedy(logits)
    yield "uniform.strict", lambda: sampling._uniform(ids, ids)


def model_cases(tokens: int, features: int, algebra: str, dtype: torch.dtype) -> Iterator[Case]:
    """What a model of this width calls in a training step and in decoding one token: what the tuner measures."""
    for rows in (tokens, 1):
        if algebra == "hadamard":
            yield from _hadamard(dtype, rows, features, 32)
        else:
            d = DIMENSIONS[algebra]
            yield from _cayley_dickson(dtype, rows, features, d, "direct")
            yield from _codes(dtype, rows, features, d)
            if d > 1:
                yield from _cayley_dickson(dtype, rows, features, d, "fast")
        yield from _norms_and_losses(dtype, rows, features)
    yield from _elementwise(dtype, tokens, features)
    yield from _attention(dtype, 512, 512)
    yield from _attention(dtype, 1, 1024)


def configured_cases() -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Target, name and call of every entry of ``configs.json``: what it decides is launched as on its device."""
    for device, record in sorted(_config.table().items()):
        for key, entry in sorted(record["configs"].items()):
            call = workload(_config.Shape.parse(key), torch.device("meta"))
            yield str(record["target"]), f"{device}: {key}", partial(_with_entry, call, {key: entry})


def _with_entry(call: Callable[[], object], entries: dict[str, _config.Entry]) -> None:
    with _config.given(entries):
        call()


def cases(full: bool) -> Iterator[Case]:
    """Every case, or the selection that continuous integration can afford."""
    dtypes = (torch.bfloat16, torch.float32, *((torch.float16, torch.float64) if full else ()))
    for dtype in dtypes:
        yield from _elementwise(dtype)
        for tokens, features in ((2048, 512), (1, 512), *(((4096, 4096),) if full else ())):
            for d in (1, 2, 4, 8, 16) if full else (8,):
                yield from _cayley_dickson(dtype, tokens, features, d, "direct")
                yield from _codes(dtype, tokens, features, d)
            yield from _cayley_dickson(dtype, tokens, features, 8, "fast")
            # A tile of 64 blocks in float64 is too large for a program, and refused.
            for n in (2, 8, 32, *((64,) if dtype != torch.float64 else ())) if full else (32,):
                yield from _hadamard(dtype, tokens, features, n)
                if full or dtype == torch.bfloat16:
                    yield from _hadamard_packed(dtype, tokens, features, n)
        yield from _model_parts(dtype)
        yield from _attention(dtype, 512, 512)
        yield from _attention(dtype, 1, 1024)
        if full:
            yield from _head_mixers(dtype)
    yield from _strict()
    q = tensor(512, 512, dtype=torch.int8)
    yield "bitmask_encode", lambda: bitmask.bitmask_encode(q)
    mask, signs = tensor(32768, dtype=torch.uint8), tensor(100, dtype=torch.uint8)
    yield "bitmask_decode", lambda: bitmask.bitmask_decode(mask, signs, (512, 512))
    yield "pack_ternary", lambda: ternary_packing._pack(q)
    yield "unpack_ternary", lambda: ternary_packing._unpack(tensor(512, 128, dtype=torch.uint8), 512)
