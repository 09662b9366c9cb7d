"""The octonion linear layer against one dense GEMM of the same width.

    y = x W^T, W [C, C] dense                 2 M C^2 multiply-adds' flops, C^2 weights
    Y_i = sum_j S[i, j] X_j W_{i xor j}^T      30 of 64 block products, C^2 / 8 weights             x [M, C], C = D K

The dense matrix is the sign-expanded one, so all providers of a case compute the same function. The published speed-up
of the field was measured against 64 separate products: they are shown too. ``train`` is forward and both gradients.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from walsh import reference
from walsh.kernels.torch.convolution import choose, expand, sign_table
from walsh.measure import work
from walsh.measure.case import Absent, Case, Check, Inputs, Provider, Setting
from walsh.measure.checks import TOLERANCES, codes, draw_rows, normal, row_check, share, to_double
from walsh.measure.kernels import own, without_triton

D = 8
GATES = {None: 1.6, 8: 2.0}
"""Least ratio of the full-size training step on a CPU, by activation bits."""


def products_of(m: int, c: int, setting: Setting) -> int:
    """Block products that the PyTorch kernel executes at this size."""
    method = choose("auto", D, m, c // D, c // D, torch.device(setting.device))
    return 30 if method == "fast" else 64


def separate_products(x: Tensor, w: Tensor) -> Tensor:
    """64 matrix products and their sums: what published code does."""
    signs, parts = sign_table(D), x.chunk(D, dim=-1)
    outputs = []
    for i in range(D):
        total = parts[0] @ w[i].t() * signs[i][0]
        for j in range(1, D):
            total = total + signs[i][j] * (parts[j] @ w[i ^ j].t())
        outputs.append(total)
    return torch.cat(outputs, dim=-1)


def forward(setting: Setting, m: int, c: int, dtype: str) -> Case:
    kind = getattr(torch, dtype)
    q = codes(1, setting, D, c // D, c // D)
    weights, dense = q.to(kind), expand(q).to(kind)
    definition = to_double(q)
    mine = work.cayley_dickson_linear(m, c, c, dtype, products=products_of(m, c, setting), bits=8 * work.SIZES[dtype])
    providers = [
        Provider("dense GEMM", lambda i: torch.nn.functional.linear(i["x"], dense)),
        Provider("64 matmuls", lambda i: separate_products(i["x"], weights), None, separate_work(m, c, dtype)),
    ]
    providers += own(setting, "cayley_dickson_linear", lambda f, i: f(i["x"], weights), mine)
    return Case(
        op="cayley_dickson",
        name=f"cayley_dickson/forward/M{m}-C{c}/{dtype}",
        shape={"M": m, "K": c, "N": c, "D": D},
        dtype=dtype,
        work=work.dense_linear(m, c, c, dtype),
        fresh=lambda seed: {"x": normal(seed, setting, m, c, dtype=kind)},
        check=row_check(["x"], lambda x: reference.cayley_dickson_linear(x, definition), TOLERANCES[dtype]),
        providers=tuple(providers),
    )


def separate_work(m: int, c: int, dtype: str) -> Any:
    return work.cayley_dickson_linear(m, c, c, dtype, products=64, bits=8 * work.SIZES[dtype])


def integer(setting: Setting, m: int, c: int) -> Case:
    """int8 activations: every sum is an exact integer."""
    q = codes(1, setting, D, c // D, c // D)
    dense_t = expand(q).t()
    definition = to_double(q)
    mine = work.cayley_dickson_linear(m, c, c, "int8", products=64, bits=8)
    providers = [Provider("dense int8 GEMM", lambda i: torch._int_mm(i["x"], dense_t))]
    providers += own(setting, "cayley_dickson_linear", lambda f, i: f(i["x"], q), mine)
    return Case(
        op="cayley_dickson",
        name=f"cayley_dickson/forward/M{m}-C{c}/int8",
        shape={"M": m, "K": c, "N": c, "D": D},
        dtype="int8",
        work=work.dense_linear(m, c, c, "int8"),
        fresh=lambda seed: {"x": codes(seed, setting, m, c, largest=127)},
        check=row_check(["x"], lambda x: reference.cayley_dickson_linear(x, definition), 1e-12),
        providers=tuple(providers),
    )


def gradient_check(w: Tensor, bits: int | None) -> Check:
    """Y and dx by rows, dw by its product with a random vector, all from the definition in float64."""
    q = reference.ternary(to_double(w))[0]

    def check(inputs: Inputs, output: Any, seed: int) -> float:
        y, dx, dw = output
        rows = draw_rows(seed, y.shape[0])
        x, dy = to_double(inputs["x"][rows]), to_double(inputs["dy"][rows])
        value = reference.fake_quantize_activations(x) if bits else x
        expected_y = reference.cayley_dickson_linear(value, q)
        expected_dx = reference.cayley_dickson_linear_backward(value, q.astype(float), None, None, dy)[0]
        return max(
            share(y[rows], expected_y, TOLERANCES["float32"]),
            share(dx[rows], expected_dx, TOLERANCES["float32"]),
            _probe(inputs, dw, bits, seed),
        )

    return check


def _probe(inputs: Inputs, dw: Tensor, bits: int | None, seed: int) -> float:
    """``dW_k r = sum_i S[i, i xor k] dY_i^T (X_{i xor k} r)`` for random r, in float64."""
    m, c = inputs["x"].shape
    x = inputs["x"].double()
    if bits:
        scale = 127 / x.abs().amax(1, keepdim=True).clamp_min(1e-5)
        x = (x * scale).round().clamp(-128, 127) / scale
    r = torch.randn(c // D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x.device)
    xr, dy, signs = x.view(m, D, -1) @ r, inputs["dy"].double().view(m, D, -1), sign_table(D)
    expected = [sum(signs[i][i ^ k] * (xr[:, i ^ k] @ dy[:, i]) for i in range(D)) for k in range(D)]
    return share(dw.double() @ r, to_double(torch.stack(expected)), 10 * TOLERANCES["float32"])


def _pull(function: Any, inputs: Inputs, w: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, w = inputs["x"].to(dtype).requires_grad_(), w.detach().requires_grad_()
    y = function(x, w)
    return (y.detach(), *torch.autograd.grad(y, (x, w), inputs["dy"].to(dtype)))


def train(setting: Setting, m: int, c: int, bits: int | None, gated: bool) -> Case:
    """Forward, dX and dW of the layer as it trains: latent float weights, rounded in the call."""
    w = normal(2, setting, D, c // D, c // D)
    dense = expand(reference_codes(w))
    mine = work.cayley_dickson_linear(m, c, c, "float32", products=products_of(m, c, setting), bits=32, passes=3)
    linear = torch.nn.functional.linear
    providers = [
        Provider("dense float32", lambda i: _pull(linear, i, dense, torch.float32), check=dense_check(dense, 1e-4)),
        Provider(
            "dense bfloat16",
            lambda i: _pull(linear, i, dense.bfloat16(), torch.bfloat16),
            None,
            work.dense_linear(m, c, c, "bfloat16", 3),
            check=dense_check(dense, 8e-2),
        ),
    ]
    layer = lambda f, i: _pull(lambda x, v: f(x, v, activation_bits=bits), i, w, torch.float32)  # noqa: E731  # one idea
    gate = GATES[bits] if gated else None
    providers += own(setting, "cayley_dickson_bit_linear", layer, mine, gate)
    activations = "int8" if bits else "float32"
    return Case(
        op="cayley_dickson",
        name=f"cayley_dickson/train/M{m}-C{c}/{activations}",
        shape={"M": m, "K": c, "N": c, "D": D},
        dtype=activations,
        work=work.dense_linear(m, c, c, "float32", 3),
        fresh=lambda seed: {"x": normal(seed, setting, m, c), "dy": normal(seed + 1, setting, m, c)},
        check=gradient_check(w, bits),
        providers=tuple(providers),
    )


def reference_codes(w: Tensor) -> Tensor:
    """The ternary codes of w by the definition, as float32 on its device."""
    return torch.from_numpy(reference.ternary(to_double(w))[0]).to(w.device, torch.float32)


def dense_check(dense: Tensor, tolerance: float) -> Check:
    """The same three checks for the dense layer."""

    def check(inputs: Inputs, output: Any, seed: int) -> float:
        y, dx, dw = output
        rows = draw_rows(seed, y.shape[0])
        wide = dense.double()
        r = torch.randn(dense.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        r = r.to(dense.device)
        expected = inputs["dy"].double().t() @ (inputs["x"].double() @ r)
        return max(
            share(y[rows], to_double(inputs["x"][rows].double() @ wide.t()), tolerance),
            share(dx[rows], to_double(inputs["dy"][rows].double() @ wide), tolerance),
            share(dw.double() @ r, to_double(expected), 10 * tolerance),
        )

    return check


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m, c = (256, 1024) if setting.quick else (4096, 4096) if setting.device == "cuda" else (1024, 4096)
    yield forward(setting, m, c, "float32")
    yield integer(setting, m, c)
    for bits in (None, 8):
        yield train(setting, m, c, bits, gated=not setting.quick and setting.device == "cpu")
    yield forward(setting, 1, c, "float32")
    if not setting.quick:
        yield forward(setting, m, c, "bfloat16")
    yield from without_triton(setting, "cayley_dickson/*")
