# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="no-any-return, assignment, var-annotated, misc, import-untyped"
# ruff: noqa: RUF005
# Triton traces kernels: arguments have no static type, tuples no unpacking, and only the taken branch is compiled.
"""Kernels of the Walsh-Hadamard transform: along the last axis, and along a strided one.

y_g = sum_h (-1)^popcount(g & h) x_h                    strides 1, 2, 4, ...; (a + b, a - b); the scale at the end
"""

import triton
import triton.language as tl

from walsh.kernels.triton._device import butterflies, narrow


@triton.jit
def transform_last_kernel(x, y, rows, N: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr):
    """The transform of ROWS contiguous rows of N; a program reads all of its tile before it writes, so y may be x."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    index = row.to(tl.int64)[:, None] * N + tl.arange(0, N)[None, :]
    v = tl.load(x + index, mask=row[:, None] < rows, other=0).to(ACC)
    v = tl.reshape(butterflies(tl.reshape(v, (ROWS * N,)), ROWS, N, 1), (ROWS, N))
    if NORM != 1.0:
        v = v * NORM
    tl.store(y + index, narrow(v, y.dtype.element_ty), mask=row[:, None] < rows)


@triton.jit
def transform_strided_kernel(
    x, y, count, inner, N: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """The transform along the middle axis of [outer, N, inner], count = outer * inner: a lane owns its N values."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    base = (lane // inner) * (inner * N) + lane % inner
    mask = lane < count
    values = ()
    for i in tl.static_range(N):
        values = values + (tl.load(x + base + i * inner, mask=mask, other=0).to(ACC),)
    for stage in tl.static_range(8):
        if (1 << stage) < N:
            for i in tl.static_range(N):
                if (i & (1 << stage)) == 0:
                    a = values[i]
                    b = values[i + (1 << stage)]
                    values = values[:i] + (a + b,) + values[i + 1 :]
                    values = values[: i + (1 << stage)] + (a - b,) + values[i + (1 << stage) + 1 :]
    for i in tl.static_range(N):
        v = values[i]
        if NORM != 1.0:
            v = v * NORM
        tl.store(y + base + i * inner, narrow(v, y.dtype.element_ty), mask=mask)
