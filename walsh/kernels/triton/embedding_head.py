# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# mypy: disable-error-code="no-any-return, import-untyped"
# ruff: noqa: ARG001
# Fake implementations take the arguments of their operation, whose schema describes them.
"""Heads tied to an embedding, plain and hashed (SPEC.md, section *embedding*).

    logits = x table^T;     logits_t = sum_i importance[t, i] (x . E_i[indices[t, i]])       x [..., C], logits [..., V]

A hashed head multiplies x with each small table first, then picks every token's products: a table [V, C] never exists.
Its gradients add what the tokens of each small row receive, in the order of the tokens: no atomics.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from walsh.kernels.triton._check import accumulate_dtype, require_features, require_float, require_shape, rows
from walsh.kernels.triton._embedding import combine_kernel
from walsh.kernels.triton._launch import cdiv, interpreting, launch, next_power_of_two, require_device
from walsh.kernels.triton._ops import operation
from walsh.kernels.triton.embedding import check_hash, row_dots, segment_sum, segments
from walsh.kernels.triton.gemm import Operand, matrix_product, rowwise


def _fake_head(x, table):
    return x.new_empty((*x.shape[:-1], table.shape[0]))


@operation("lm_head", _fake_head)
def _lm_head(x: Tensor, table: Tensor) -> Tensor:
    require_device(x, table)
    logits = _fake_head(x, table)
    count, (vocabulary, cols) = rows(x), table.shape
    matrix_product(
        rowwise(x), Operand(table, 0, *table.stride()), (count, vocabulary, cols), logits.view(count, vocabulary)
    )
    return logits


def _fake_head_backward(dlogits, x, table):
    return x.new_empty(x.shape), table.new_empty(table.shape)


@operation("lm_head_backward", _fake_head_backward)
def _lm_head_backward(dlogits: Tensor, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    dx, dtable = _fake_head_backward(dlogits, x, table)
    count, (vocabulary, cols) = rows(x), table.shape
    upstream, source = rowwise(dlogits), rowwise(x)
    across = Operand(table, 0, table.stride(1), table.stride(0))
    matrix_product(upstream, across, (count, cols, vocabulary), dx.view(count, cols))
    down = Operand(upstream.tensor, 0, 1, vocabulary)
    matrix_product(down, Operand(source.tensor, 0, 1, cols), (vocabulary, cols, count), dtable)
    return dx, dtable


def _setup_head(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate_head(ctx, dlogits):
    return _lm_head_backward(dlogits, *ctx.saved_tensors)


_lm_head.differentiate(_differentiate_head, _setup_head)


def check_head(x: Tensor, table: Tensor) -> None:
    """Raise unless x [..., C] fits a table [V, C]."""
    require_shape("table", table, (None, None), "[V, C]")
    require_float("x", x)
    require_features("x", x, table.shape[1], "C")


def lm_head(x: Tensor, table: Tensor) -> Tensor:
    """Logits of every token: x table^T.

    Args:
        x: float [..., C].
        table: float [V, C].

    Returns:
        logits [..., V] in the dtype of x.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. BackendError: no machine for Triton.
    """
    require_float("table", table)
    check_head(x, table)
    result: Tensor = _lm_head(x, table)
    return result


def _fake_hash_head(x, tables, importance, indices):
    return x.new_empty((*x.shape[:-1], importance.shape[0]))


@operation("hash_lm_head", _fake_hash_head)
def _hash_head(x: Tensor, tables: list[Tensor], importance: Tensor, indices: Tensor) -> Tensor:
    require_device(x, importance, indices, *tables)
    logits = _fake_hash_head(x, tables, importance, indices)
    products = [_products(x, table) for table in tables]
    return combine(products, indices, importance.contiguous(), logits)


def _products(x: Tensor, table: Tensor) -> Tensor:
    """Products of x with every row of one small table, [rows of x, P_i], wide."""
    count, (size, cols) = rows(x), table.shape
    out = x.new_empty((count, size), dtype=accumulate_dtype(x, table))
    return matrix_product(rowwise(x), Operand(table, 0, *table.stride()), (count, size, cols), out)


def combine(products: Sequence[Tensor], indices: Tensor, importance: Tensor, logits: Tensor) -> Tensor:
    """Launch :func:`combine_kernel` once per table, left to right."""
    count, vocabulary = rows(logits), logits.shape[-1]
    block = min(next_power_of_two(vocabulary), 1 << 14 if interpreting() else 1024)
    wide = torch.empty_like(logits, dtype=products[0].dtype) if len(products) > 1 else logits
    for which, product in enumerate(products):
        launch(
            combine_kernel,
            (cdiv(vocabulary, block), count),
            product,
            indices,
            importance,
            wide if which else None,
            logits if which == len(products) - 1 else wide,
            vocabulary,
            product.shape[1],
            len(products),
            which,
            fusion=False,
            FIRST=which == 0,
            BLOCK=block,
        )
    return logits


def _fake_hash_head_backward(dlogits, x, tables, importance, indices):
    dtables = [table.new_empty(table.shape) for table in tables]
    return x.new_empty(x.shape), dtables, importance.new_empty(importance.shape)


@operation("hash_lm_head_backward", _fake_hash_head_backward)
def _hash_head_backward(
    dlogits: Tensor, x: Tensor, tables: list[Tensor], importance: Tensor, indices: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Gradients of x, of every table and of the importance."""
    dx, dtables, dimportance = _fake_hash_head_backward(dlogits, x, tables, importance, indices)
    count, cols, vocabulary = rows(x), x.shape[-1], importance.shape[0]
    upstream, source = rowwise(dlogits), rowwise(x)
    wide = x.new_empty((count, cols), dtype=accumulate_dtype(x, *tables))
    for i, (table, dtable) in enumerate(zip(tables, dtables, strict=True)):
        size = table.shape[0]
        where = indices[:, i].contiguous()
        # What each row of the small table receives: the tokens that use it, weighted. [P_i, rows of x], so columns are
        # rows of x.
        received = x.new_empty((size, count), dtype=wide.dtype)
        by_token = Operand(upstream.tensor, 0, 1, vocabulary)
        target = Operand(received, 0, count, 1)
        segment_sum(by_token, count, segments(where, size), target, importance[:, i].contiguous())
        matrix_product(Operand(received, 0, count, 1), Operand(source.tensor, 0, 1, cols), (size, cols, count), dtable)
        across = Operand(table, 0, table.stride(1), table.stride(0))
        matrix_product(Operand(received, 0, 1, count), across, (count, cols, size), wide, add=i > 0)
        products = _products(x, table)
        dots = importance.new_empty((vocabulary,), dtype=wide.dtype)
        row_dots(by_token, Operand(products, 0, 1, size), count, dots, None, where)
        dimportance[:, i] = dots.to(importance.dtype)
    dx.view(count, cols).copy_(wide)
    return dx, dtables, dimportance


def _setup_hash_head(ctx, inputs, output):
    x, tables, importance, indices = inputs
    ctx.save_for_backward(x, importance, indices, *tables)


def _differentiate_hash_head(ctx, dlogits):
    x, importance, indices, *tables = ctx.saved_tensors
    dx, dtables, dimportance = _hash_head_backward(dlogits, x, tables, importance, indices)
    return dx, dtables, dimportance, None


_hash_head.differentiate(_differentiate_hash_head, _setup_hash_head)


def hash_lm_head(x: Tensor, tables: Sequence[Tensor], importance: Tensor, indices: Tensor | None = None) -> Tensor:
    """The tied head of a hash embedding, without its scale.

    Args:
        x: float [..., C].
        tables: float [P_i, C] each.
        importance: float [V, tables].
        indices: integer [V, tables]; those of ``hash_indices`` if absent.

    Returns:
        logits [..., V] in the dtype of x: one product with each small table, then a gather; never a [V, C] table.

    Raises:
        As :func:`hash_embedding`.
    """
    indices = check_hash(tables, importance, indices)
    for i, table in enumerate(tables):
        require_float(f"tables.{i}", table)
        check_head(x, table)
    result: Tensor = _hash_head(x, list(tables), importance, indices)
    return result
