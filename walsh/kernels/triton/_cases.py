"""What :mod:`walsh.kernels.triton.compile` compiles: calls on ``meta`` tensors, forward and backward, named by operation.

Shapes are those of a small model (512 features, 2,048 tokens) and of decoding one token; ``full`` adds dtypes and a large
model. Nothing is computed: each call only makes its launches known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from walsh.kernels.triton import activations, cayley_dickson, hadamard, ternary

Case = tuple[str, Callable[[], object]]


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without content."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _cayley_dickson(dtype: torch.dtype, tokens: int, features: int, d: int, method: str) -> Iterator[Case]:
    size = features // d
    name = f"cayley_dickson_linear D={d} {dtype} M={tokens} {method}"
    x, y, w, beta = tensor(tokens, features, dtype=dtype), tensor(tokens, features, dtype=dtype), tensor(d, size, size), None
    w, beta = w.to(dtype), tensor(size)
    none = (None, None, None, None, method)
    yield name, lambda: cayley_dickson._linear(x, w, beta, *none)
    if tokens > 1:
        yield name + " backward", lambda: cayley_dickson._backward(y, x, w, beta, *none, True, True, True)


def _codes(dtype: torch.dtype, tokens: int, features: int, d: int) -> Iterator[Case]:
    size = features // d
    x, codes, scale = tensor(tokens, features, dtype=dtype), tensor(tokens, features, dtype=torch.int8), tensor(tokens, 1)
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
    codes, scale, q = tensor(tokens, features, dtype=torch.int8), tensor(tokens, 1), tensor(n, size, size, dtype=torch.int8)
    name = f"hadamard_linear n={n} {dtype} M={tokens}"
    plain, rounded = (None, None, None, None), (codes, scale, q, None)
    yield name, lambda: hadamard._linear(x, w, alpha, beta, *plain)
    yield name + " quantize", lambda: hadamard.hadamard_quantize(x, alpha, n, False)
    yield name + " bit", lambda: hadamard._linear(x, w, alpha, beta, *rounded)
    if tokens > 1:
        needs = (True, True, True, True)
        yield name + " backward", lambda: hadamard._backward(x, x, w, alpha, beta, *plain, *needs)
        yield name + " bit backward", lambda: hadamard._backward(x, x, w, alpha, beta, *rounded, *needs)


def _elementwise(dtype: torch.dtype) -> Iterator[Case]:
    x = tensor(2048, 512, dtype=dtype)
    yield f"ternary {dtype}", lambda: ternary._ternary(x, "absmean")
    yield f"quantize_activations {dtype}", lambda: activations.quantize(x, False, False)
    yield f"fake_quantize_activations {dtype}", lambda: activations.quantize(x, True, False)
    for n in (32, 4096, 32768):
        row = tensor(64, n, dtype=dtype)
        yield f"hadamard_transform n={n} {dtype}", lambda row=row: hadamard.transform(row, True, False)  # type: ignore[misc]  # a default argument binds the loop's value


def cases(full: bool) -> Iterator[Case]:
    """Every case, or the selection that continuous integration can afford."""
    dtypes = (torch.bfloat16, torch.float32, *((torch.float16, torch.float64) if full else ()))
    for dtype in dtypes:
        yield from _elementwise(dtype)
        for tokens, features in ((2048, 512), (1, 512), *(((4096, 4096),) if full else ())):
            for d in (1, 2, 4, 8, 16) if full else (1, 8):
                yield from _cayley_dickson(dtype, tokens, features, d, "direct")
                yield from _codes(dtype, tokens, features, d)
            yield from _cayley_dickson(dtype, tokens, features, 8, "fast")
            for n in (2, 8, 32, 64) if full else (32,):
                yield from _hadamard(dtype, tokens, features, n)
    q = tensor(512, 512, dtype=torch.int8)
    yield "pack_ternary", lambda: ternary._pack(q)
    yield "unpack_ternary", lambda: ternary._unpack(tensor(512, 128, dtype=torch.uint8), 512)
