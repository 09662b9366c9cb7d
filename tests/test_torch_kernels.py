"""The ordinary PyTorch kernels against formulas written out here and against the NumPy references."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor  # noqa: E402  # after the skip
from torch.autograd import gradcheck  # noqa: E402  # after the skip
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402  # after the skip

from walsh import errors, reference  # noqa: E402  # after the skip
from walsh.algebra import cayley_dickson_signs, sylvester  # noqa: E402  # after the skip
from walsh.kernels import torch as kernels  # noqa: E402  # after the skip
from walsh.kernels.torch import convolution  # noqa: E402  # after the skip
from walsh.kernels.torch.forward import check_weights  # noqa: E402  # after the skip
from walsh.model.config import WalshConfig  # noqa: E402  # after the skip
from walsh.model.transformer import Walsh  # noqa: E402  # after the skip
from walsh.reference.config import complete_config, weight_shapes  # noqa: E402  # after the skip
from walsh.reference.forward import forward_backward as reference_forward_backward  # noqa: E402  # after the skip

METHODS = ("auto", "direct", "expanded", "fast")
DIMENSIONS = (1, 2, 4, 8, 16)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def leaf(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()


def strided(x: Tensor) -> Tensor:
    """The same values with a step of 2 along the last axis and the first axis last in memory."""
    wide = torch.full((*x.shape[1:], x.shape[0], 2), math.nan, dtype=x.dtype) if x.ndim else x
    view = wide[..., 0].movedim(-1, 0)
    return view.copy_(x.detach())


def plain_cayley_dickson(x: Tensor, w: Tensor, beta: Tensor | None = None) -> Tensor:
    d, n, k = w.shape
    signs = cayley_dickson_signs(d)
    blocks = x.reshape(*x.shape[:-1], d, k)
    rows = [sum(int(signs[i, j]) * (blocks[..., j, :] @ w[i ^ j].T) for j in range(d)) for i in range(d)]
    y = torch.stack(rows, dim=-2)
    return (y if beta is None else y * beta).reshape(*x.shape[:-1], d * n)


def plain_hadamard(x: Tensor, w: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    n, width, k = w.shape
    h = torch.tensor(sylvester(n)).to(w.dtype) / math.sqrt(n)
    u = x.reshape(*x.shape[:-1], n, k)
    v = h @ (u if alpha is None else u * alpha)
    y = h @ torch.einsum("...gk,gnk->...gn", v, w)
    return (y if beta is None else y * beta).reshape(*x.shape[:-1], n * width)


def unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def close(found: Tensor, expected: Any, magnitude: Any = None, steps: float = 8) -> None:
    """Each element within ``steps`` units of its dtype, of the sum of absolute products where given."""
    expected = torch.as_tensor(np.asarray(expected.detach() if isinstance(expected, Tensor) else expected)).double()
    assert found.shape == expected.shape
    bound = steps * unit(found.dtype) * (expected.abs() if magnitude is None else torch.as_tensor(magnitude).double())
    assert ((found.double() - expected).abs() <= bound + 1e-30).all()


# --- gradients


def test_gradients_of_cayley_dickson_linear() -> None:
    for d, method in itertools.product(DIMENSIONS, METHODS):
        x, w, beta = leaf(2, d * 2), leaf(d, 3, 2), leaf(3)
        assert gradcheck(lambda *a, m=method: kernels.cayley_dickson_linear(*a, method=m), (x, w, beta))
        assert gradcheck(lambda *a, m=method: kernels.cayley_dickson_linear(*a, method=m), (x, w))


def test_gradient_of_beta_at_zero() -> None:
    x, w = leaf(4, 16), leaf(8, 3, 2)
    beta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(kernels.cayley_dickson_linear, (x, w, beta))
    beta = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda b: kernels.hadamard_linear(x, w, None, b), (beta,))


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_gradients_of_hadamard(n: int) -> None:
    assert gradcheck(kernels.hadamard_linear, (leaf(2, 2 * n), leaf(n, 3, 2), leaf(n, 2), leaf(n, 3)))
    assert gradcheck(lambda x: kernels.hadamard_transform(x), (leaf(3, n),))
    assert gradcheck(lambda x: kernels.hadamard_transform(x, normalize=False), (leaf(3, n),))


@pytest.mark.parametrize(
    ("algebra", "n"), [("complex", 2), ("quaternion", 4), ("octonion", 8), ("sedenion", 16), ("hadamard", 4)]
)
def test_gradients_of_head_mixer(algebra: str, n: int) -> None:
    x, w, beta = leaf(2, 2 * n, 2), leaf(n, 2, 2), leaf(2)
    assert gradcheck(lambda *a: kernels.head_mixer(*a, algebra=algebra), (x, w, beta))
    assert gradcheck(lambda *a: kernels.head_mixer(*a, algebra=algebra), (x, w))


def test_gradients_of_pointwise_operations() -> None:
    assert gradcheck(kernels.rms_norm, (leaf(2, 3, 5), leaf(5)))
    assert gradcheck(kernels.rms_norm, (leaf(5), leaf(5)))
    assert gradcheck(kernels.rope, (leaf(2, 3, 2, 4),))
    assert gradcheck(lambda x: kernels.rope(x, torch.tensor([[5, 0, 9], [1, 1, 70000]])), (leaf(2, 3, 2, 4),))
    assert gradcheck(kernels.swiglu, (leaf(3, 4), leaf(3, 4)))


def test_gradients_of_attention() -> None:
    q, k, v = leaf(2, 4, 3, 2), leaf(2, 4, 3, 2), leaf(2, 4, 3, 2)
    assert gradcheck(kernels.attention, (q, k, v))
    longer = leaf(2, 6, 3, 2), leaf(2, 6, 3, 2)
    assert gradcheck(kernels.attention, (q, *longer))
    positions = torch.tensor([[0, -1, 5, 2], [-1, -1, 3, 3]])
    assert gradcheck(lambda *a: kernels.attention(*a, positions), (q, *longer))


def test_gradients_of_embeddings_and_heads() -> None:
    ids = torch.tensor([[0, 3, 3], [4, 1, 0]])
    assert gradcheck(lambda t: kernels.embedding(ids, t), (leaf(5, 3),))
    tables, importance = [leaf(4, 3), leaf(2, 3)], leaf(5, 2)
    indices = torch.tensor([[0, 1], [3, 0], [3, 1], [2, 0], [0, 0]])
    assert gradcheck(lambda a, b, i: kernels.hash_embedding(ids, [a, b], i, indices, 1.5), (*tables, importance))
    assert gradcheck(lambda x, a, b, i: kernels.hash_lm_head(x, [a, b], i, indices), (leaf(2, 3), *tables, importance))
    assert gradcheck(kernels.lm_head, (leaf(2, 3), leaf(5, 3)))


def test_gradients_of_cross_entropy() -> None:
    targets = torch.tensor([[0, -1, 6], [3, 3, -1]])
    assert gradcheck(lambda x: kernels.cross_entropy(x, targets), (leaf(2, 3, 7),))
    for chunk_size in (1, 3, 100):
        assert gradcheck(
            lambda x, t, c=chunk_size: kernels.linear_cross_entropy(x, t, targets, chunk_size=c),
            (leaf(2, 3, 4), leaf(7, 4)),
        )


def test_only_the_wanted_gradients_are_made() -> None:
    for wanted in range(3):
        leaves = [leaf(4, 16).detach(), leaf(8, 3, 2).detach(), leaf(3).detach()]
        leaves[wanted].requires_grad_()
        (gradient,) = torch.autograd.grad(kernels.cayley_dickson_linear(*leaves).sum(), leaves[wanted])
        whole = [x.detach().requires_grad_() for x in leaves]
        expected = torch.autograd.grad(plain_cayley_dickson(*whole).sum(), whole)[wanted]
        torch.testing.assert_close(gradient, expected)


# --- ternary


def test_ternary_codes_equal_the_reference_at_their_edges() -> None:
    for dtype in DTYPES:
        w = torch.randn(64, 65).to(dtype)
        for rule in ("absmean", "round"):
            q, gamma = kernels.ternary(w, rule)
            expected, expected_gamma = reference.ternary(w.double().numpy(), rule)
            assert q.dtype == torch.int8
            assert (q.numpy() == expected).all()
            assert float(gamma) == pytest.approx(float(expected_gamma), rel=1e-6)
    half = torch.tensor([0.5, -0.5, 1.5, math.nextafter(0.5, 1), -math.nextafter(0.5, 1)], dtype=torch.float64)
    assert kernels.ternary(half, "round")[0].tolist() == [0, 0, 1, 1, -1]


def test_ternary_straight_through() -> None:
    w = torch.tensor([-3.0, -0.2, 0.5, 1.0, 2.0], requires_grad=True)
    dq = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (dw,) = torch.autograd.grad(kernels.ternary_ste(w), w, dq)
    assert dw.tolist() == dq.tolist()
    (dw,) = torch.autograd.grad(kernels.ternary_ste(w, ste_clip=1.0), w, dq)
    assert dw.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


@pytest.mark.parametrize("k", [0, 1, 3, 4, 5, 130])
def test_packing_equals_the_reference_and_has_an_inverse(k: int) -> None:
    q = torch.randint(-1, 2, (2, 3, k), dtype=torch.int8)
    packed = kernels.pack_ternary(q)
    assert (packed.numpy() == reference.pack_ternary(q.numpy())).all()
    assert torch.equal(kernels.unpack_ternary(packed, k), q)
    mask, signs = kernels.bitmask_encode(q)
    assert torch.equal(kernels.bitmask_decode(mask, signs, q.shape), q)
    expected = np.packbits(q.numpy().ravel() != 0, bitorder="little")
    assert (mask.numpy() == expected).all()
    nonzero = q.numpy().ravel()[q.numpy().ravel() != 0]
    assert (signs.numpy() == np.packbits(nonzero > 0, bitorder="little")).all()


def test_damaged_bytes_are_refused() -> None:
    for packed, k in ((torch.tensor([3], dtype=torch.uint8), 4), (torch.tensor([0], dtype=torch.uint8), 1)):
        with pytest.raises(errors.FormatError):
            kernels.unpack_ternary(packed, k)
    byte = torch.tensor([1], dtype=torch.uint8)
    for mask, signs, size in ((byte, byte[:0], 1), (byte, byte, 9), (byte * 2, byte, 1), (byte, byte * 2, 1)):
        with pytest.raises(errors.FormatError):
            kernels.bitmask_decode(mask, signs, (size,))


# --- activations and the integer path


def test_activations_equal_the_reference() -> None:
    x = torch.randn(3, 4, 37, dtype=torch.float64)
    x[0, 0] = 0
    x[0, 1, 3], x[0, 2, 5] = math.nan, math.inf
    a, scale = kernels.quantize_activations(x)
    expected, expected_scale = reference.quantize_activations(x.numpy())
    assert (a.numpy() == expected).all()
    np.testing.assert_array_equal(scale.numpy(), expected_scale)
    v = kernels.fake_quantize_activations(x)
    np.testing.assert_array_equal(v.numpy(), reference.fake_quantize_activations(x.numpy()))
    assert kernels.quantize_activations(x.float())[1].dtype == torch.float32
    y = leaf(2, 5)
    (dx,) = torch.autograd.grad(kernels.fake_quantize_activations(y), y, torch.full((2, 5), 3.0, dtype=y.dtype))
    assert (dx == 3).all()


@pytest.mark.parametrize("d", DIMENSIONS)
def test_integer_cayley_dickson_is_exact(d: int) -> None:
    for rows in (1, 70):
        a = torch.randint(-128, 128, (rows, d * 6), dtype=torch.int8)
        a[0] = -128
        q = torch.randint(-1, 2, (d, 5, 6), dtype=torch.int8)
        total = kernels.cayley_dickson_linear(a, q)
        assert total.dtype == torch.int32
        assert (total == plain_cayley_dickson(a.long(), q.long())).all()
        assert torch.equal(kernels.cayley_dickson_linear(a, kernels.pack_ternary(q)), total)
        scale, beta = torch.rand(rows, 1) + 1, torch.randn(5)
        y = kernels.cayley_dickson_linear(a, q, beta, scale)
        assert y.dtype == torch.float32
        assert torch.equal(y, ((total.float() / scale).view(rows, d, 5) * beta).view(rows, -1))


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("ste_clip", [None, 0.7])
def test_bit_linear_is_the_straight_through_layer(bits: int | None, ste_clip: float | None) -> None:
    for hadamard, n in itertools.product((False, True), (2, 8)):
        x, w, beta = leaf(3, 2, n * 5), leaf(n, 4, 5), leaf(n, 4) if hadamard else leaf(4)
        alpha = leaf(n, 5) if hadamard else None
        v, q = x, kernels.ternary_ste(w, ste_clip=ste_clip)
        if hadamard:
            y = kernels.hadamard_bit_linear(x, w, alpha, beta, bits, ste_clip=ste_clip)
            h = torch.tensor(sylvester(n)).double() / math.sqrt(n)
            v = (h @ (x.view(3, 2, n, 5) * alpha)).flatten(-2)
            v = v if bits is None else kernels.fake_quantize_activations(v)
            z = torch.einsum("...gk,gnk->...gn", v.unflatten(-1, (n, 5)), q)
            expected = ((h @ z) * beta).flatten(-2)
        else:
            y = kernels.cayley_dickson_bit_linear(x, w, beta, bits, ste_clip=ste_clip)
            v = v if bits is None else kernels.fake_quantize_activations(v)
            expected = plain_cayley_dickson(v, q, beta)
        torch.testing.assert_close(y, expected)
        inputs = [t for t in (x, w, alpha, beta) if t is not None]
        dy = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy))


def test_bit_linear_takes_integer_weights_as_they_are() -> None:
    x, beta = leaf(3, 8 * 6), leaf(4)
    q = torch.randint(-1, 2, (8, 4, 6), dtype=torch.int8)
    for bits in (8, None):
        y = kernels.cayley_dickson_bit_linear(x, q, beta, bits)
        assert torch.equal(kernels.cayley_dickson_bit_linear(x, kernels.pack_ternary(q), beta, bits), y)
        v = x if bits is None else kernels.fake_quantize_activations(x)
        expected = plain_cayley_dickson(v, q.double(), beta)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), (x, beta)), torch.autograd.grad(expected.sum(), (x, beta))
        )
        y = kernels.hadamard_bit_linear(x, q, None, None, bits)
        assert torch.equal(kernels.hadamard_bit_linear(x, kernels.pack_ternary(q), None, None, bits), y)


@pytest.mark.parametrize("layer", ["cayley_dickson_bit_linear", "hadamard_bit_linear"])
def test_a_row_with_nan_stays_nan_through_integers_and_alone(layer: str) -> None:
    for value in (math.nan, math.inf, -math.inf):
        x, w = torch.randn(3, 16), torch.randn(8, 4, 2)
        clean = getattr(kernels, layer)(x, w)
        x[1, 7] = value
        y = getattr(kernels, layer)(x, w)
        assert torch.isnan(y[1]).all()
        assert torch.equal(y[[0, 2]], clean[[0, 2]])


# --- every method, dtype, stride and emptiness


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_methods_agree(d: int, method: str) -> None:
    for m, n, k in ((1, 1, 1), (5, 3, 2), (70, 65, 64)):
        x, w, beta = (
            leaf(m, d * k, dtype=torch.float32),
            leaf(d, n, k, dtype=torch.float32),
            leaf(n, dtype=torch.float32),
        )
        y = kernels.cayley_dickson_linear(x, w, beta, method=method)
        wide = [t.detach().double().requires_grad_() for t in (x, w, beta)]
        expected = plain_cayley_dickson(*wide)
        dy = torch.randn_like(y)
        found = (y, *torch.autograd.grad(y, (x, w, beta), dy))
        wanted = (expected, *torch.autograd.grad(expected, wide, dy.double()))
        for f, e in zip(found, wanted, strict=True):
            assert float((f - e).detach().abs().max()) <= 1e-5 * float(e.detach().abs().max())


def test_fast_method_is_exact_on_integers() -> None:
    for d in DIMENSIONS:
        x, w = torch.randint(-8, 9, (9, d, 7)).float(), torch.randint(-1, 2, (d, 6, 7)).float()
        found = convolution.product(x, w, "fast").reshape(9, -1)
        assert torch.equal(found, plain_cayley_dickson(x.reshape(9, -1), w))


CASES: dict[str, Callable[[torch.dtype], tuple[Callable[..., Tensor], list[Tensor], Callable[..., Tensor]]]] = {
    "cayley_dickson": lambda dt: (
        kernels.cayley_dickson_linear,
        [leaf(2, 3, 24, dtype=dt), leaf(8, 4, 3, dtype=dt), leaf(4, dtype=dt)],
        plain_cayley_dickson,
    ),
    "hadamard": lambda dt: (
        kernels.hadamard_linear,
        [leaf(2, 3, 24, dtype=dt), leaf(8, 4, 3, dtype=dt), leaf(8, 3, dtype=dt), leaf(8, 4, dtype=dt)],
        plain_hadamard,
    ),
    "head_mixer": lambda dt: (
        kernels.head_mixer,
        [leaf(2, 16, 3, dtype=dt), leaf(8, 3, 3, dtype=dt), leaf(3, dtype=dt)],
        lambda x, w, b: plain_cayley_dickson(x.reshape(2, 2, 24), w.transpose(1, 2), b).reshape(2, 16, 3),
    ),
    "rms_norm": lambda dt: (
        kernels.rms_norm,
        [leaf(2, 3, 24, dtype=dt), leaf(24, dtype=dt)],
        lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w,
    ),
    "attention": lambda dt: (
        kernels.attention,
        [leaf(2, 5, 3, 4, dtype=dt), leaf(2, 5, 3, 4, dtype=dt), leaf(2, 5, 3, 4, dtype=dt)],
        lambda q, k, v: torch.einsum(
            "bhts,bshd->bthd",
            (torch.einsum("bthd,bshd->bhts", q, k) / 2 + torch.full((5, 5), -math.inf).triu(1)).softmax(-1),
            v,
        ),
    ),
    "swiglu": lambda dt: (
        kernels.swiglu,
        [leaf(4, 5, dtype=dt), leaf(4, 5, dtype=dt)],
        lambda g, u: g / (1 + torch.exp(-g)) * u,
    ),
    "lm_head": lambda dt: (
        kernels.lm_head,
        [leaf(4, 5, dtype=dt), leaf(7, 5, dtype=dt)],
        lambda x, t: x @ t.T,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_dtype_and_stride(name: str, dtype: torch.dtype) -> None:
    function, leaves, formula = CASES[name](dtype)
    y = function(*leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = formula(*wide)
    dy = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, leaves, dy))
    wanted = (expected, *torch.autograd.grad(expected, wide, dy.double()))
    for f, e in zip(found, wanted, strict=True):
        assert f.dtype == dtype
        # Half a unit for the one rounding; what is left is float32 error on sums of some dozen terms.
        least = 0.501 * unit(dtype) * e.abs() + 100 * max(unit(torch.float32), 0) * e.abs().max()
        if dtype in (torch.bfloat16, torch.float16):
            assert ((f.double() - e).abs() <= least).all()
        else:
            assert bool(((f - e).abs() <= 50 * unit(dtype) * e.abs().max()).all())
    views = [strided(t).requires_grad_() for t in leaves]
    again = function(*views)
    torch.testing.assert_close(again, y, rtol=2 * unit(dtype), atol=unit(torch.float32) * 32)
    for f, e in zip(torch.autograd.grad(again, views, dy), found[1:], strict=True):
        torch.testing.assert_close(f, e, rtol=2 * unit(dtype), atol=unit(torch.float32) * 256)


@pytest.mark.parametrize("method", METHODS)
def test_empty_leading_axes(method: str) -> None:
    for lead in ((0,), (2, 0), (0, 3)):
        x, w, beta = leaf(*lead, 16), leaf(8, 3, 2), leaf(3)
        for y in (
            kernels.cayley_dickson_linear(x, w, beta, method=method),
            kernels.cayley_dickson_bit_linear(x, w, beta, method=method),
            kernels.hadamard_bit_linear(x, w),
            kernels.hadamard_linear(x, w),
        ):
            assert y.shape == (*lead, 24)
            dx, dw = torch.autograd.grad(y.sum(), (x, w))
            assert dx.shape == x.shape
            assert (dw == 0).all()
    assert kernels.rms_norm(torch.ones(0, 4), torch.ones(4)).shape == (0, 4)
    assert kernels.rope(torch.ones(2, 0, 3, 4)).shape == (2, 0, 3, 4)
    assert kernels.swiglu(torch.ones(0), torch.ones(0)).shape == (0,)
    assert kernels.head_mixer(torch.ones(0, 8, 2), torch.ones(8, 2, 2)).shape == (0, 8, 2)
    assert kernels.embedding(torch.zeros(0, 3, dtype=torch.int64), torch.ones(4, 2)).shape == (0, 3, 2)
    q = torch.ones(2, 1, 3, 4)
    assert (kernels.attention(q, q[:, :0], q[:, :0]) == 0).all()


def test_hadamard_transform_is_the_matrix_and_exact_on_integers() -> None:
    for n in (1, 2, 4, 32):
        x = torch.randint(-1000, 1000, (3, n))
        y = kernels.hadamard_transform(x, normalize=False)
        assert y.dtype == torch.int32
        assert (y.numpy() == x.numpy() @ sylvester(n).astype(np.int64)).all()
        z = torch.randn(3, n, dtype=torch.float64)
        np.testing.assert_array_equal(kernels.hadamard_transform(z).numpy(), reference.hadamard_transform(z.numpy()))


@pytest.mark.parametrize(("rows", "n"), [(5000, 32), (4100, 64), (2100, 128), (70, 4096), (3, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_transform_is_rounded_once(rows: int, n: int, dtype: torch.dtype) -> None:
    """In whichever pieces and products it is formed; sums of these whole numbers are exact in any order."""
    x = torch.randint(-7, 8, (rows, n))
    h = torch.tensor(sylvester(n)).double()
    expected = ((x.double() @ h).float() * (1 / math.sqrt(n))).to(dtype)
    assert torch.equal(kernels.hadamard_transform(x.to(dtype)), expected)
    turned = x.to(dtype).t().contiguous().t()
    assert torch.equal(kernels.hadamard_transform(turned), expected)
    plain = kernels.hadamard_transform(x.to(dtype), normalize=False)
    assert torch.equal(plain, (x.double() @ h).to(dtype))


def test_a_product_that_rounds_twice_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("walsh.kernels.torch.hadamard_transform")
    x = torch.randint(-7, 8, (5000, 32)).bfloat16()
    expected = kernels.hadamard_transform(x)
    monkeypatch.setattr(module, "_rounds_once", lambda _: False)
    assert torch.equal(kernels.hadamard_transform(x), expected)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_one_product", lambda x, factor: (x @ module._matrix(x.shape[1], x)) * factor)
    assert not module._rounds_once.__wrapped__(32)


# --- attention and its cache


def test_what_is_not_seen_cannot_leak() -> None:
    q, k, v = (torch.randn(1, 4, 2, 4) for _ in range(3))
    clean = kernels.attention(q, k, v)
    for poisoned in (k, v):
        poisoned[0, 2] = math.nan
    o = kernels.attention(q, k, v)
    torch.testing.assert_close(o[:, :2], clean[:, :2])
    assert torch.isnan(o[:, 2:]).all()
    leaves = [t.requires_grad_() for t in (q, k, v)]
    for positions in ([0, 1, 1, 1], [1, 0, -1, 1]):
        for gradient in torch.autograd.grad(kernels.attention(*leaves, torch.tensor(positions)).sum(), leaves):
            assert torch.isfinite(gradient).all()


def test_attention_at_explicit_positions_is_softmax_over_what_is_seen() -> None:
    q, k, v = torch.randn(2, 3, 2, 4), torch.randn(2, 6, 2, 4), torch.randn(2, 6, 2, 4)
    positions = torch.tensor([[5, -1, 0], [2, 2, -1]])
    o = kernels.attention(q, k, v, positions)
    for b, t in itertools.product(range(2), range(3)):
        s = int(positions[b, t]) + 1
        if s == 0:
            assert (o[b, t] == 0).all()
            continue
        p = (torch.einsum("hd,shd->hs", q[b, t], k[b, :s]) / 2).softmax(-1)
        torch.testing.assert_close(o[b, t], torch.einsum("hs,shd->hd", p, v[b, :s]))


def test_cache_in_any_split_equals_one_append() -> None:
    k, v = torch.randn(2, 6, 2, 3), torch.randn(2, 6, 2, 3)
    whole = kernels.KVCache(2, 6, 2, 3)
    assert whole.append(k, v).tolist() == [list(range(6))] * 2
    for cut in range(7):
        split = kernels.KVCache(2, 6, 2, 3)
        split.append(k[:, :cut], v[:, :cut])
        split.append(k[:, cut:], v[:, cut:])
        assert torch.equal(split.keys, whole.keys)
        assert torch.equal(split.values, whole.values)
        assert torch.equal(split.lengths, whole.lengths)


def test_cache_keeps_a_length_per_sequence() -> None:
    cache = kernels.KVCache(2, 4, 1, 2)
    ones = torch.ones(2, 3, 1, 2)
    assert cache.append(ones, ones, torch.tensor([3, 1])).tolist() == [[0, 1, 2], [0, -1, -1]]
    before = cache.keys.clone(), cache.lengths.clone()
    with pytest.raises(errors.CapacityError):
        cache.append(ones, ones, torch.tensor([2, 1]))
    assert torch.equal(cache.keys, before[0])
    assert torch.equal(cache.lengths, before[1])
    assert cache.append(2 * ones[:, :1], ones[:, :1]).tolist() == [[3], [1]]
    other = cache.fork([1, 1, 0])
    assert other.lengths.tolist() == [2, 2, 4]
    cache.reset([0])
    cache.truncate(torch.tensor([0, 1]))
    assert cache.lengths.tolist() == [0, 1]
    assert other.keys[2, :, 0, 0].tolist() == [1, 1, 1, 2]
    cache.reset()
    assert cache.lengths.tolist() == [0, 0]
    with pytest.raises(errors.RangeError):
        cache.truncate(torch.tensor([1, 0]))
    with pytest.raises(errors.RangeError):
        cache.fork([2])


def test_slots_that_nobody_sees_cannot_spoil_a_cache() -> None:
    cache = kernels.KVCache(2, 9, 3, 4)
    k, v, q = (torch.randn(2, 3, 3, 4) for _ in range(3))
    cache.append(k, v)
    cache.keys[:, 3:], cache.values[:, 3:] = math.nan, math.inf
    for positions in (torch.tensor([[2], [2]]), torch.tensor([[2], [0]]), torch.tensor([[2], [-1]])):
        found = cache.attend(q[:, :1], positions)
        for b, end in enumerate(positions[:, 0].tolist()):
            expected = plain_attention(q[b, 0], k[b, : end + 1], v[b, : end + 1])
            torch.testing.assert_close(found[b, 0], expected)
    # One of the two still sees a slot that the other must not.
    cache.keys[0, 2] = math.nan
    found = cache.attend(q[:, :1], torch.tensor([[1], [2]]))
    torch.testing.assert_close(found[0, 0], plain_attention(q[0, 0], k[0, :2], v[0, :2]))
    torch.testing.assert_close(found[1, 0], plain_attention(q[1, 0], k[1], v[1]))
    assert torch.isnan(cache.attend(q[:1].expand(2, 3, 3, 4)[:, :1], torch.tensor([[2], [2]]))[0]).all()


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [H, d] over k, v [S, H, d]; zeros over nothing."""
    return torch.einsum("hs,shd->hd", (torch.einsum("hd,shd->hs", q, k) / math.sqrt(q.shape[-1])).softmax(-1), v)


def test_whole_appends_equal_counted_ones() -> None:
    whole, counted = kernels.KVCache(2, 6, 2, 4), kernels.KVCache(2, 6, 2, 4)
    for tokens in (3, 1, 2):
        k, v = torch.randn(2, tokens, 2, 4), torch.randn(2, tokens, 2, 4)
        positions = whole.append(k, v)
        assert torch.equal(positions, counted.append(k, v, torch.full((2,), tokens)))
        assert positions.dtype == torch.int64
        positions += 1  # what is returned is nobody else's
    for name in ("keys", "values", "lengths"):
        assert torch.equal(getattr(whole, name), getattr(counted, name))
    with pytest.raises(errors.CapacityError):
        whole.append(k[:, :1], v[:, :1])
    kernels.KVCache(0, 6, 2, 4).append(k[:0], v[:0])


# --- embeddings and losses


def test_hash_embedding_and_its_head() -> None:
    vocabulary = 3000
    for count in (2, 3):
        ids = torch.arange(vocabulary)
        indices = kernels.hash_indices(ids, count)
        primes = (1021, 1019, 1013)
        expected = [ids % 1021, ids // 1021] if count == 2 else [ids % p for p in primes]
        assert torch.equal(indices, torch.stack(expected, -1))
        assert len({tuple(row) for row in indices.tolist()}) == vocabulary
        tables = [torch.randn(1021, 3, dtype=torch.float64) for _ in range(count)]
        importance = torch.randn(vocabulary, count, dtype=torch.float64)
        rows = sum(importance[:, i, None] * tables[i][indices[:, i]] for i in range(count))
        some = torch.tensor([[5, 2999], [1021, 0]])
        torch.testing.assert_close(kernels.hash_embedding(some, tables, importance, scale=2.0), 2 * rows[some])
        x = torch.randn(2, 3, dtype=torch.float64)
        torch.testing.assert_close(kernels.hash_lm_head(x, tables, importance), x @ rows.T)


def test_losses_without_targets_are_zero() -> None:
    x, table, logits = leaf(3, 4), leaf(7, 4), leaf(3, 7)
    targets = torch.full((3,), -1)
    for loss, leaves in (
        (kernels.linear_cross_entropy(x, table, targets), (x, table)),
        (kernels.cross_entropy(logits, targets), (logits,)),
    ):
        assert float(loss.detach()) == 0
        assert all((g == 0).all() for g in torch.autograd.grad(loss, leaves))


def test_linear_cross_entropy_is_cross_entropy_of_the_head() -> None:
    x, table = leaf(2, 5, 4), leaf(9, 4)
    targets = torch.tensor([[0, 8, -1, 3, 3], [-1, 2, 2, 1, 0]])
    logits = (x @ table.T).reshape(-1, 9)
    kept = targets.reshape(-1) >= 0
    picked = logits.log_softmax(-1)[kept, targets.reshape(-1)[kept]]
    expected = -picked.mean()
    for loss in (
        kernels.cross_entropy(kernels.lm_head(x, table), targets),
        kernels.linear_cross_entropy(x, table, targets, chunk_size=3),
    ):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(3 * loss, (x, table)),
            torch.autograd.grad(3 * expected, (x, table), retain_graph=True),
        )


class Largest(TorchDispatchMode):
    """Records the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf_ in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf_, Tensor):
                self.bytes = max(self.bytes, leaf_.untyped_storage().nbytes())
        return result


def test_linear_cross_entropy_never_holds_the_logits() -> None:
    tokens, vocabulary, c = 512, 1000, 8
    x, table = leaf(tokens, c, dtype=torch.float32), leaf(vocabulary, c, dtype=torch.float32)
    targets = torch.randint(0, vocabulary, (tokens,))
    logits = 4 * tokens * vocabulary
    with Largest() as chunked:
        kernels.linear_cross_entropy(x, table, targets, chunk_size=16).backward()
    assert chunked.bytes <= 4 * 16 * vocabulary
    with Largest() as whole:
        kernels.cross_entropy(kernels.lm_head(x, table), targets).backward()
    assert whole.bytes >= logits


def test_linear_cross_entropy_keeps_no_chunk_for_the_backward() -> None:
    saved: list[int] = []
    x, table = leaf(64, 8), leaf(1000, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        kernels.linear_cross_entropy(x, table, torch.zeros(64, dtype=torch.int64), chunk_size=8)
    assert sum(saved) == x.numel() + table.numel()


def test_swiglu_at_infinity() -> None:
    gate = torch.tensor([-math.inf, math.inf, -1e30, 1e30, 0.0], requires_grad=True)
    h = kernels.swiglu(gate, torch.ones(5))
    assert h.tolist() == [0, math.inf, 0, pytest.approx(1e30), 0]
    (dgate,) = torch.autograd.grad(h.sum(), gate)
    assert dgate.tolist() == [0, 1, 0, 1, 0.5]
    assert kernels.swiglu_hidden(512, 8) == 1368


def test_rope_turns_by_the_position() -> None:
    x = torch.zeros(1, 1, 4, dtype=torch.float64)
    x[..., 0::2] = 1
    y = kernels.rope(x, torch.tensor([123456])).ravel()
    angles = (123456.0, 123456.0 / 100)
    expected = [f(angle) for angle in angles for f in (math.cos, math.sin)]
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-10)


def test_default_positions_count_from_zero_whatever_was_asked_before() -> None:
    for tokens, theta, dtype in itertools.product((5, 3), (1e4, 1e2), (torch.float32, torch.float64, torch.bfloat16)):
        with torch.inference_mode():
            kernels.rope(torch.ones(tokens, 2, 4, dtype=dtype), theta=theta)
        x = leaf(2, tokens, 2, 4, dtype=dtype)
        y = kernels.rope(x, theta=theta)
        assert torch.equal(y, kernels.rope(x, torch.arange(tokens), theta))
        close(y, reference.rope(x.detach().double().numpy(), theta=theta), x.detach().double().norm())
        y.sum().backward()
        assert x.grad is not None


def test_rope_of_views_and_its_second_derivative() -> None:
    x = torch.randn(2 * 3 * 2 * 4 + 1)[1:].view(2, 3, 2, 4)
    expected = kernels.rope(x.clone())
    assert torch.equal(kernels.rope(x), expected)
    assert torch.equal(kernels.rope(strided(x)), expected)
    z = x.clone().requires_grad_()
    (dz,) = torch.autograd.grad(kernels.rope(z).square().sum() / 2, z, create_graph=True)
    torch.testing.assert_close(dz, z)  # a rotation keeps lengths
    (second,) = torch.autograd.grad(dz.sum(), z)
    torch.testing.assert_close(second, torch.ones_like(z))


@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_candidates_of_the_sampler_are_all_that_the_definition_keeps(levels: int) -> None:
    """Ties at every edge of the candidates, prefixes that end early, late and never."""
    logits = np.random.default_rng(levels).integers(-levels, levels, (3, 6000)) / np.float32(levels / 6)
    logits = logits.astype(np.float32)
    logits[0, ::7] = -0.0
    for top_k, top_p in ((1, 1.0), (50, 0.9), (1499, 1.0), (1501, 0.3), (0, 0.2), (0, 0.9), (0, 1.0)):
        for seed in range(3):
            given = {"temperature": 0.7, "top_k": top_k, "top_p": top_p, "seed": seed, "position": 5}
            expected = reference.sample(logits, **given)
            assert kernels.sample(torch.from_numpy(logits), **given).tolist() == expected.tolist()


# --- the model


def tiny(**changes: Any) -> dict[str, Any]:
    sizes = {"n_layer": 2, "n_head": 8, "n_embd": 32, "vocab_size": 11, "block_size": 6, "hadamard_size": 8}
    return {"algebra": "octonion", **sizes, **changes}


def make_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    return {name: leaf(*shape, scale=0.5) for name, shape in weight_shapes(config).items()}


CONFIGS = [
    tiny(),
    tiny(algebra="hadamard", head_mixing=True, tied_head=False, activation_bits=None),
    tiny(head_mixing=True, hash_embeddings=2, hash_scale=True, ste_clip=0.6),
    tiny(algebra="quaternion", ternary=False, hash_embeddings=3),
    tiny(algebra="dense", rule="round"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_forward_and_its_gradients_equal_the_reference(config: dict[str, Any]) -> None:
    weights = make_weights(config)
    ids, targets = torch.randint(0, 11, (2, 5)), torch.randint(-1, 11, (2, 5))
    arrays = {name: w.detach().numpy() for name, w in weights.items()}
    found: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    logits = kernels.forward(ids, weights, config, probes=found)
    np.testing.assert_allclose(
        logits.detach().numpy(), reference.forward(ids.numpy(), arrays, config, probes=expected), atol=1e-9
    )
    assert list(found) == ["x.0", "x.1", "x.2"]
    for name, probe in expected.items():
        np.testing.assert_allclose(found[name].detach().numpy(), probe, atol=1e-9)
    _, gradients = reference_forward_backward(ids.numpy(), arrays, targets.numpy(), config)
    kernels.cross_entropy(logits, targets).backward()
    assert set(gradients) == set(weights)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(weights[name].grad.numpy(), gradient, atol=1e-9, err_msg=name)


def test_forward_in_steps_over_a_cache_equals_one_pass() -> None:
    config = tiny(head_mixing=True)
    weights = {name: w.detach() for name, w in make_weights(config).items()}
    ids = torch.randint(0, 11, (2, 6))
    whole = kernels.forward(ids, weights, config)
    for cut in range(7):
        cache = [kernels.KVCache(2, 6, 8, 4, torch.float64) for _ in range(2)]
        parts = [kernels.forward(part, weights, config, cache) for part in (ids[:, :cut], ids[:, cut:])]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        with pytest.raises(errors.CapacityError):
            kernels.forward(ids[:, :1], weights, config, cache)
        assert cache[0].lengths.tolist() == [6, 6]


def test_forward_refuses_what_does_not_fit() -> None:
    config = tiny()
    weights = make_weights(config)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(errors.ParameterError):
        kernels.forward(ids, {k: w for k, w in weights.items() if k != "norm.weight"}, config)
    with pytest.raises(errors.ParameterError):
        kernels.forward(ids, weights | {"other": weights["norm.weight"]}, config)
    with pytest.raises(errors.ShapeError):
        kernels.forward(ids, weights | {"norm.weight": torch.ones(31)}, config)
    with pytest.raises(errors.ParameterError):
        kernels.forward(ids, weights, config | {"dropout": 0.1})
    with pytest.raises(errors.CapacityError):
        kernels.forward(torch.zeros(1, 7, dtype=torch.int64), weights, config)
    with pytest.raises(errors.RangeError):
        kernels.forward(ids + 11, weights, config)


# --- errors


ONE = torch.ones
BAD: list[tuple[type[errors.WalshError], Callable[[], object]]] = [
    (errors.NonFiniteError, lambda: kernels.ternary(torch.tensor([1.0, math.nan]))),
    (errors.NonFiniteError, lambda: kernels.ternary(torch.tensor([1.0, math.inf]), "round")),
    (errors.NonFiniteError, lambda: kernels.cayley_dickson_bit_linear(ONE(2, 8), ONE(8, 1, 1) * math.nan)),
    (errors.NonFiniteError, lambda: kernels.hadamard_bit_linear(ONE(2, 8), ONE(8, 1, 1) * math.nan)),
    (errors.ShapeError, lambda: kernels.ternary(ONE(0))),
    (errors.ParameterError, lambda: kernels.ternary(ONE(2), "mean")),
    (errors.ParameterError, lambda: kernels.ternary_ste(ONE(2), ste_clip=-1.0)),
    (errors.DTypeError, lambda: kernels.ternary(torch.ones(2, dtype=torch.int64))),
    (errors.ParameterError, lambda: kernels.pack_ternary(torch.full((4,), 2, dtype=torch.int8))),
    (errors.ShapeError, lambda: kernels.unpack_ternary(torch.zeros(2, dtype=torch.uint8), 4)),
    (errors.ShapeError, lambda: kernels.quantize_activations(ONE(2, 0))),
    (errors.ShapeError, lambda: kernels.cayley_dickson_linear(ONE(2, 9), ONE(8, 1, 1))),
    (errors.ShapeError, lambda: kernels.cayley_dickson_linear(ONE(2, 6), ONE(3, 1, 2))),
    (errors.ShapeError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1), ONE(2))),
    (errors.ParameterError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1), method="slow")),
    (errors.ParameterError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1), None, ONE(2, 1))),
    (errors.DTypeError, lambda: kernels.cayley_dickson_linear(ONE(2, 8).to(torch.int8), ONE(8, 3, 1))),
    (errors.ParameterError, lambda: kernels.cayley_dickson_linear(ONE(2, 8), ONE(8, 3, 1).to(torch.int8) * 2)),
    (errors.ParameterError, lambda: kernels.cayley_dickson_bit_linear(ONE(2, 8), ONE(8, 3, 1), None, 4)),
    (errors.ShapeError, lambda: kernels.hadamard_transform(ONE(2, 6))),
    (errors.ParameterError, lambda: kernels.hadamard_transform(torch.ones(4, dtype=torch.int32))),
    (errors.ShapeError, lambda: kernels.hadamard_linear(ONE(2, 8), ONE(8, 3, 1), ONE(8, 2))),
    (errors.ShapeError, lambda: kernels.head_mixer(ONE(2, 9, 2), ONE(8, 2, 2))),
    (errors.ShapeError, lambda: kernels.head_mixer(ONE(2, 8, 2), ONE(4, 2, 2))),
    (errors.ParameterError, lambda: kernels.head_mixer(ONE(2, 8, 2), ONE(8, 2, 2), None, "dual")),
    (errors.ShapeError, lambda: kernels.rms_norm(ONE(2, 3), ONE(4))),
    (errors.ParameterError, lambda: kernels.rms_norm(ONE(2, 3), ONE(3), -1.0)),
    (errors.ShapeError, lambda: kernels.rope(ONE(2, 1, 3))),
    (errors.RangeError, lambda: kernels.rope(ONE(2, 1, 4), torch.tensor([0, -1]))),
    (errors.RangeError, lambda: kernels.attention(*[ONE(1, 2, 1, 2)] * 3, torch.tensor([0, 2]))),
    (errors.RangeError, lambda: kernels.attention(*[ONE(1, 2, 1, 2)] * 3, torch.tensor([0, -2]))),
    (errors.ShapeError, lambda: kernels.attention(ONE(1, 2, 1, 2), ONE(1, 2, 1, 2), ONE(1, 3, 1, 2))),
    (errors.ShapeError, lambda: kernels.swiglu(ONE(2), ONE(3))),
    (errors.RangeError, lambda: kernels.embedding(torch.tensor([4]), ONE(4, 2))),
    (errors.RangeError, lambda: kernels.embedding(torch.tensor([-1]), ONE(4, 2))),
    (errors.ParameterError, lambda: kernels.hash_indices(torch.tensor([1]), 4)),
    (errors.RangeError, lambda: kernels.cross_entropy(ONE(2, 3), torch.tensor([0, 3]))),
    (errors.RangeError, lambda: kernels.linear_cross_entropy(ONE(2, 3), ONE(4, 3), torch.tensor([0, -2]))),
    (errors.ParameterError, lambda: kernels.linear_cross_entropy(ONE(2, 3), ONE(4, 3), torch.tensor([0, 1]), 0)),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_wrong_arguments_are_refused_by_class(index: int) -> None:
    error, call = BAD[index]
    with pytest.raises(error):
        call()


LAYERS: list[tuple[str, Callable[[], tuple[Any, ...]]]] = [
    ("cayley_dickson", lambda: (randn(3, 16), randn(8, 4, 2), randn(4), 8, "absmean", 0.7, "auto")),
    ("cayley_dickson", lambda: (randn(3, 16), randn(8, 4, 2), None, None, None, None, "fast")),
    ("hadamard", lambda: (randn(3, 16), randn(8, 4, 2), randn(8, 2), randn(8, 4), 8, "absmean", 0.7, True)),
    ("hadamard", lambda: (randn(3, 16), randn(8, 4, 2), None, None, None, None, None, False)),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_layers_are_operations_that_the_compiler_can_trust(index: int) -> None:
    name, arguments = LAYERS[index]
    torch.library.opcheck(getattr(torch.ops.walsh_torch, name).default, arguments())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # and makes one, in torch 2.11
@pytest.mark.parametrize("algebra", ["octonion", "hadamard"])
def test_a_block_is_one_graph(algebra: str) -> None:
    config = WalshConfig(algebra=algebra, n_layer=1, n_head=8, n_embd=64, vocab_size=11, hadamard_size=8)
    block = Walsh(config).blocks[0]
    seen: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        seen.append(len(graph.graph.nodes))
        return graph.forward

    x, positions = torch.randn(2, 5, 64, requires_grad=True), torch.arange(5)
    expected = block(x, positions)
    found = torch.compile(block, backend=count, fullgraph=True)(x, positions)
    assert len(seen) == 1
    torch.testing.assert_close(found, expected)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("wrong", [{"n_head": 8.0}, {"n_head": [8]}, {"tied_head": 1}])
def test_a_configuration_that_equals_a_right_one_is_not_taken_for_it(wrong: dict[str, object]) -> None:
    given = {"algebra": "octonion", "n_layer": 1, "n_head": 8, "n_embd": 32, "vocab_size": 50, "block_size": 16}
    config = complete_config(given)
    weights = {name: torch.zeros(shape) for name, shape in weight_shapes(config).items()}
    check_weights(weights, config)
    with pytest.raises(errors.ParameterError):
        check_weights(weights, {**config, **wrong})
