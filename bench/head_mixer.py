"""Mixing heads by the octonion product or the Hadamard transform, against plain PyTorch.

    y_i = beta * sum_j S[i, j] x_j W_{i xor j}         8 heads of d, W [8, d, d] full precision          x [M, 8, d]

The baseline is one GEMM on the signed expansion [8 d, 8 d]; 64 small products are what published code does, and what
its published speed-up of the mixer was measured against.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from walsh import reference
from walsh.kernels.torch.convolution import expand, sign_table
from walsh.measure import work
from walsh.measure.case import Absent, Case, Provider, Setting, Work
from walsh.measure.checks import TOLERANCES, normal, row_check, to_double
from walsh.measure.kernels import own, without_triton

HEADS = 8


def separate_products(x: Tensor, w: Tensor) -> Tensor:
    """64 products x_j W and their sums."""
    signs = sign_table(HEADS)
    return torch.stack(
        [sum((signs[i][j] * (x[:, j] @ w[i ^ j]) for j in range(1, HEADS)), x[:, 0] @ w[i]) for i in range(HEADS)], 1
    )


def octonion(setting: Setting, m: int, d: int) -> Case:
    w = normal(1, setting, HEADS, d, d)
    beta = normal(2, setting, d).abs() + 0.5
    dense = expand(w.transpose(1, 2).contiguous()) * beta.repeat(HEADS)[:, None]
    definition, scale = to_double(w), to_double(beta)
    plain = work.dense_linear(m, HEADS * d, HEADS * d, "float32")
    return Case(
        op="head_mixer",
        name=f"head_mixer/octonion/M{m}-d{d}/float32",
        shape={"M": m, "H": HEADS, "d": d},
        dtype="float32",
        work=work.head_mixer(m, d, "float32", HEADS, 30),
        fresh=lambda seed: {"x": normal(seed, setting, m, HEADS, d)},
        check=row_check(["x"], lambda x: reference.head_mixer(x, definition, scale), TOLERANCES["float32"]),
        providers=(
            Provider("dense GEMM", lambda i: (i["x"].flatten(1) @ dense.t()).view(m, HEADS, d), work=plain),
            Provider(
                "64 matmuls",
                lambda i: separate_products(i["x"], w) * beta,
                work=work.head_mixer(m, d, "float32", HEADS, 64),
            ),
            *own(setting, "head_mixer", lambda f, i: f(i["x"], w, beta)),
        ),
    )


def hadamard(setting: Setting, m: int, heads: int, d: int) -> Case:
    """Transform, one small product per head, transform; the baseline multiplies by H as a matrix."""
    w = normal(1, setting, heads, d, d)
    h = torch.from_numpy(reference.hadamard_transform(torch.eye(heads, dtype=torch.float64).numpy()))
    h = h.to(setting.device, torch.float32)
    definition = to_double(w)

    def plain(x: Tensor) -> Tensor:
        z = torch.einsum("gh,mhd->mgd", h, x)
        return torch.einsum("gh,mhd->mgd", h, torch.einsum("mgd,gde->mge", z, w))

    return Case(
        op="head_mixer",
        name=f"head_mixer/hadamard/M{m}-H{heads}-d{d}/float32",
        shape={"M": m, "H": heads, "d": d},
        dtype="float32",
        work=Work(2.0 * m * heads * d * (d + 2 * (heads.bit_length() - 1) / 2), 8.0 * m * heads * d),
        fresh=lambda seed: {"x": normal(seed, setting, m, heads, d)},
        check=row_check(["x"], lambda x: reference.head_mixer(x, definition, None, "hadamard"), TOLERANCES["float32"]),
        providers=(
            Provider("einsum", lambda i: plain(i["x"])),
            *own(setting, "head_mixer", lambda f, i: f(i["x"], w, None, algebra="hadamard")),
        ),
    )


def cases(setting: Setting) -> Iterable[Case | Absent]:
    m = 512 if setting.quick else 4096
    yield octonion(setting, m, 64)
    yield hadamard(setting, m, 32, 16)
    yield from without_triton(setting, "head_mixer/*")
