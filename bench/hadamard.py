"""The Hadamard linear layer against one dense GEMM, and the fast transform against a copy of the same bytes.

    Y = beta * H (W_g (H (alpha * x))_g)_g            n = 32 blocks: 1/32 of the weights and of the multiplications
    FHT-32: 5 additions per element, memory-bound: the bar is the copy

Peers where they are installed: ``hadamard-transform`` (plain PyTorch), and on a GPU ``fast-hadamard-transform``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from walsh import reference
from walsh.measure import work
from walsh.measure.case import Absent, Case, Inputs, Provider, Setting, Work
from walsh.measure.checks import TOLERANCES, codes, draw_rows, normal, row_check, share, to_double
from walsh.measure.kernels import own, peer, without_triton

SIZE = 32


def linear(setting: Setting, m: int, c: int, dtype: str) -> Case:
    """Forward with prepared ternary weights; the baseline is a GEMM of the same width, not of the same function."""
    kind, k = getattr(torch, dtype), c // SIZE
    q = codes(1, setting, SIZE, k, k)
    alpha, beta = normal(2, setting, SIZE, k).abs() + 0.5, normal(3, setting, SIZE, k).abs() + 0.5
    weights, a, b = q.to(kind), alpha.to(kind), beta.to(kind)
    dense = normal(4, setting, c, c).to(kind)
    wide, factors = to_double(dense).T, (to_double(q), to_double(a), to_double(b))
    mine = work.hadamard_linear(m, c, c, dtype, SIZE, bits=8 * work.SIZES[dtype])
    tolerance = TOLERANCES[dtype]
    return Case(
        op="hadamard",
        name=f"hadamard/linear/M{m}-C{c}/{dtype}",
        shape={"M": m, "K": c, "N": c, "n": SIZE},
        dtype=dtype,
        work=work.dense_linear(m, c, c, dtype),
        fresh=lambda seed: {"x": normal(seed, setting, m, c, dtype=kind)},
        check=row_check(["x"], lambda x: reference.hadamard_linear(x, *factors), tolerance),
        providers=(
            Provider(
                "dense GEMM",
                lambda i: torch.nn.functional.linear(i["x"], dense),
                check=row_check(["x"], lambda x: x @ wide, tolerance),
            ),
            *own(setting, "hadamard_linear", lambda f, i: f(i["x"], weights, a, b), mine),
        ),
    )


def transform(setting: Setting, rows: int, size: int, dtype: str) -> Case:
    """The transform alone."""
    kind, case = getattr(torch, dtype), f"hadamard/transform{size}/rows{rows}/{dtype}"
    matrix = torch.from_numpy(reference.hadamard_transform(torch.eye(size, dtype=torch.float64).numpy()))
    matrix = matrix.to(setting.device, kind)
    elements = rows * size
    check = row_check(["x"], reference.hadamard_transform, TOLERANCES[dtype])
    providers = [
        Provider(
            "copy of the same bytes",
            lambda i: i["x"].clone(),
            work=work.elementwise(elements, 0, 2 * work.SIZES[dtype], dtype),
            check=row_check(["x"], lambda x: x, TOLERANCES[dtype]),
        ),
        Provider("GEMM with H", lambda i: i["x"] @ matrix, work=gemm(rows, size, dtype)),
        *own(setting, "hadamard_transform", lambda f, i: f(i["x"])),
    ]
    if peer(case, "", "hadamard-transform", setting) is None:
        package = importlib.import_module("hadamard_transform")
        providers.append(Provider("hadamard-transform", lambda i: package.hadamard_transform(i["x"])))
    if peer(case, "", "fast-hadamard-transform", setting, gpu_only=True) is None:
        fused = importlib.import_module("fast_hadamard_transform").hadamard_transform
        providers.append(Provider("fast-hadamard-transform", lambda i: fused(i["x"], 1 / math.sqrt(size))))
    return Case(
        op="hadamard",
        name=case,
        shape={"M": rows, "n": size},
        dtype=dtype,
        work=work.transform(elements, size, dtype),
        fresh=lambda seed: {"x": normal(seed, setting, rows, size, dtype=kind)},
        check=check,
        providers=tuple(providers),
    )


def gemm(rows: int, size: int, dtype: str) -> Work:
    return work.dense_linear(rows, size, size, dtype)


def train(setting: Setting, m: int, c: int) -> Case:
    """Forward and gradients of the layer as it trains, against dense float32."""
    k = c // SIZE
    w, dense = normal(1, setting, SIZE, k, k), normal(4, setting, c, c) / c**0.5
    q, wide = reference.ternary(to_double(w))[0].astype(float), to_double(dense)
    mine = work.hadamard_linear(m, c, c, "float32", SIZE, bits=32, passes=3)

    def pull(function: object, inputs: Inputs, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight = inputs["x"].detach().requires_grad_(), weight.detach().requires_grad_()
        y = function(x, weight)  # type: ignore[operator]  # a layer
        return (y.detach(), *torch.autograd.grad(y, (x, weight), inputs["dy"]))

    def check(inputs: Inputs, output: tuple[torch.Tensor, ...], seed: int) -> float:
        rows = draw_rows(seed, m)
        x, dy = to_double(inputs["x"][rows]), to_double(inputs["dy"][rows])
        dx = reference.hadamard_linear_backward(x, q, None, None, dy)[0]
        return max(
            share(output[0][rows], reference.hadamard_linear(x, q), TOLERANCES["float32"]),
            share(output[1][rows], dx, TOLERANCES["float32"]),
            probe(inputs, output[2], seed),
        )

    def probe(inputs: Inputs, dw: torch.Tensor, seed: int) -> float:
        """``dW_g r = (H dY)_g^T ((H X)_g r)`` for random r, in float64."""
        r = np.random.default_rng(seed).standard_normal(k)
        v, dz = (across(to_double(inputs[name])) for name in ("x", "dy"))
        expected = np.einsum("mgn,mg->gn", dz, v @ r)
        return share(to_double(dw) @ r, expected, 10 * TOLERANCES["float32"])

    def across(x: NDArray[np.float64]) -> NDArray[np.float64]:
        blocks = x.reshape(m, SIZE, k).swapaxes(1, 2)
        return np.asarray(reference.hadamard_transform(blocks).swapaxes(1, 2))

    def check_dense(inputs: Inputs, output: tuple[torch.Tensor, ...], seed: int) -> float:
        rows = draw_rows(seed, m)
        x, dy = to_double(inputs["x"][rows]), to_double(inputs["dy"][rows])
        found = share(output[0][rows], x @ wide.T, TOLERANCES["float32"])
        return max(found, share(output[1][rows], dy @ wide, TOLERANCES["float32"]))

    return Case(
        op="hadamard",
        name=f"hadamard/train/M{m}-C{c}/float32",
        shape={"M": m, "K": c, "N": c, "n": SIZE},
        dtype="float32",
        work=work.dense_linear(m, c, c, "float32", 3),
        fresh=lambda seed: {"x": normal(seed, setting, m, c), "dy": normal(seed + 1, setting, m, c)},
        check=check,
        providers=(
            Provider("dense float32", lambda i: pull(torch.nn.functional.linear, i, dense), check=check_dense),
            *own(
                setting,
                "hadamard_bit_linear",
                lambda f, i: pull(lambda x, v: f(x, v, activation_bits=None), i, w),
                mine,
            ),
        ),
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m, c = (256, 1024) if setting.quick else (4096, 4096) if setting.device == "cuda" else (1024, 4096)
    yield linear(setting, m, c, "float32")
    yield train(setting, m, c)
    yield transform(setting, m * c // 32, 32, "float32")
    if not setting.quick:
        yield linear(setting, m, c, "bfloat16")
        yield transform(setting, m * c // 32, 32, "bfloat16")
        yield transform(setting, m * c // 4096, 4096, "float32")
    for package, gpu_only in (("hadamard-transform", False), ("fast-hadamard-transform", True)):
        missing = peer("hadamard/transform*", package, package, setting, gpu_only)
        if missing:
            yield missing
    yield from without_triton(setting, "hadamard/*")
