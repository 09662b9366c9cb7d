"""Gradients: of every operation the slope of its values, by central differences; straight through where it rounds."""

from typing import Any

import numpy as np
import pytest
from definitions import RNG, close, codes, dense_cayley_dickson, dense_hadamard, normal, rounded, slope, ternary_codes
from smooth_calls import SMOOTH

from walsh import algebra, reference
from walsh.suite.catalog import CALLS

STRAIGHT_THROUGH = {"ternary_ste", "fake_quantize_activations", "cayley_dickson_bit_linear", "hadamard_bit_linear"}


@pytest.mark.parametrize(("name", "args", "params"), SMOOTH)
def test_gradient_is_the_slope(name: str, args: list[Any], params: dict[str, Any]) -> None:
    call, function = CALLS[f"{name}.backward"], getattr(reference, name)
    upstream = RNG.standard_normal(np.shape(function(*args, **params)))
    gradients = getattr(reference, f"{name}_backward")(*args, upstream, **params)
    assert len(gradients) == len(call.outputs)
    for output, gradient in zip(call.outputs, gradients, strict=True):
        at = call.args.index(output[1:])

        def moved(value: Any, at: int = at) -> Any:
            return function(*args[:at], value, *args[at + 1 :], **params)

        if args[at] is None:
            assert gradient is None
        elif isinstance(args[at], list):
            assert isinstance(gradient, list)
            for i, (member, of_member) in enumerate(zip(args[at], gradient, strict=True)):
                rest = args[at]
                close(of_member, slope(lambda t, i=i, r=rest, m=moved: m([*r[:i], t, *r[i + 1 :]]), member, upstream))
        else:
            close(gradient, slope(moved, args[at], upstream))


def test_every_gradient_of_the_catalogue_is_tested() -> None:
    named = {call.function for call in CALLS.values() if call.kind == "backward"}
    assert named == {name for name, _, _ in SMOOTH} | STRAIGHT_THROUGH | {"forward"}


def test_every_ordinary_call_of_the_catalogue_exists() -> None:
    for call in CALLS.values():
        if call.kind != "strict":
            suffix = "_backward" if call.kind == "backward" else ""
            assert call.function + suffix in reference.__all__


def test_straight_through_passes_the_gradient() -> None:
    w, dq = normal(3, 4), normal(3, 4)
    close(reference.ternary_ste_backward(w, dq)[0], dq)
    (clipped,) = reference.ternary_ste_backward(w, dq, ste_clip=0.5)
    assert (clipped == np.where(abs(w) <= 0.5, dq, 0)).all()
    assert (clipped == 0).any()
    edge = np.array([0.5, -0.5, np.nextafter(0.5, 1)])
    assert reference.ternary_ste_backward(edge, np.ones(3), ste_clip=0.5)[0].tolist() == [1, 1, 0]
    close(reference.fake_quantize_activations_backward(w, dq)[0], dq)


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("ste_clip", [None, 0.7])
def test_cayley_dickson_bit_linear_is_straight_through(bits: int | None, ste_clip: float | None) -> None:
    x, w, beta, dy = normal(3, 16), normal(8, 3, 2), normal(3), normal(3, 24)
    q, v = ternary_codes(w), rounded(x) if bits else x
    close(reference.cayley_dickson_bit_linear(x, w, beta, bits), dense_cayley_dickson(v, q, beta), 1e-12)
    dx, dw, dbeta = reference.cayley_dickson_bit_linear_backward(x, w, beta, dy, bits, ste_clip=ste_clip)
    # Rounding as a constant that is added is the straight-through estimator, and smooth.
    close(dx, slope(lambda x_: dense_cayley_dickson(x_ + (v - x), q, beta), x, dy))
    inside = np.ones_like(w) if ste_clip is None else abs(w) <= ste_clip
    close(dw, inside * slope(lambda w_: dense_cayley_dickson(v, w_ + (q - w), beta), w, dy))
    close(dbeta, slope(lambda b: dense_cayley_dickson(v, q, b), beta, dy))


@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize("ste_clip", [None, 0.7])
def test_hadamard_bit_linear_is_straight_through(bits: int | None, ste_clip: float | None) -> None:
    x, w, alpha, beta, dy = normal(3, 8), normal(4, 3, 2), normal(4, 2), normal(4, 3), normal(3, 12)
    h = algebra.sylvester(4) / 2
    v = np.einsum("gh,mhk->mgk", h, alpha * x.reshape(3, 4, 2))
    added = rounded(v.reshape(3, 8)).reshape(v.shape) - v if bits else 0.0
    q = ternary_codes(w)
    y = reference.hadamard_bit_linear(x, w, alpha, beta, bits)
    close(y, dense_hadamard(x, q, alpha, beta, added), 1e-12)
    gradients = reference.hadamard_bit_linear_backward(x, w, alpha, beta, dy, bits, ste_clip=ste_clip)
    inside = np.ones_like(w) if ste_clip is None else abs(w) <= ste_clip
    expected = (
        slope(lambda x_: dense_hadamard(x_, q, alpha, beta, added), x, dy),
        inside * slope(lambda w_: dense_hadamard(x, w_ + (q - w), alpha, beta, added), w, dy),
        slope(lambda a: dense_hadamard(x, q, a, beta, added), alpha, dy),
        slope(lambda b: dense_hadamard(x, q, alpha, b, added), beta, dy),
    )
    for gradient, one in zip(gradients, expected, strict=True):
        close(gradient, one)


@pytest.mark.parametrize("layer", ["cayley_dickson_linear", "cayley_dickson_bit_linear"])
def test_integer_weights_have_no_gradient(layer: str) -> None:
    x, q, dy = normal(3, 16), codes(8, 3, 2), normal(3, 24)
    extra = [None] if layer == "cayley_dickson_linear" else []
    backward = getattr(reference, f"{layer}_backward")
    dx, dw, dbeta = backward(x, q, None, *extra, dy)
    assert dw is None
    assert dbeta is None
    packed = reference.pack_ternary(q)
    close(backward(x, packed, None, *extra, dy)[0], dx)
