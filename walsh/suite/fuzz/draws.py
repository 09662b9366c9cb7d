"""Inputs that nobody listed: for each call a strategy of parameters and tensors, biased to edges.

Shapes are small and often 1; values come from a list of edges (zeros of both signs, ties, powers of two, epsilons,
subnormals) as often as from an interval. Where the definition rounds, inputs that lie within a thousandth of a tie are
given up: there two sound backends may differ by a code. Everything stays far from the largest number of its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from walsh import reference
from walsh.suite.generate.numbers import FLOATS, activations_are_clear, ternary_is_clear
from walsh.suite.tensors import DTYPES, Array, round_to

Draw = Callable[[st.SearchStrategy[Any]], Any]
Inputs = dict[str, Array]
Params = dict[str, Any]

_EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -2.5, 3.0, 127.0, -127.0, 2.0**-8, 1e-3, -1e-5, 1e-8, 2.0**-24, 6.0)
_MILD_EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, -2.5, 2.0**-8, 1e-3)


def _between(limit: float) -> st.SearchStrategy[float]:
    """Numbers up to this magnitude, none so small that products of a few underflow: the bound has no room for that."""
    return st.floats(-limit, limit, width=32).map(lambda value: value if abs(value) >= 2.0**-20 else 0.0)


_REALS = st.one_of(st.sampled_from(_EDGES), _between(4.0), st.integers(-9, 9).map(float))
_MILD = st.one_of(st.sampled_from(_MILD_EDGES), _between(3.0))
"""For what goes into an exponential, whose result must not underflow."""

_STRICT = st.one_of(
    st.sampled_from((*_EDGES, 2.0**-149, -(2.0**-130), 1e4, -3e5, 87.5, -88.0)), st.floats(-50.0, 50.0, width=32)
)
_ALGEBRAS = {"complex": 2, "quaternion": 4, "octonion": 8, "sedenion": 16}


@dataclass(frozen=True)
class Drawn:
    """One call: parameters and inputs."""

    params: Params
    inputs: Inputs


def tensor(draw: Draw, shape: tuple[int, ...], dtype: str, elements: st.SearchStrategy[float] = _REALS) -> Array:
    """A floating tensor, each element drawn and rounded once."""
    return round_to(draw(hnp.arrays(np.float64, shape, elements=elements)), DTYPES[dtype])


def integers(draw: Draw, shape: tuple[int, ...], low: int, high: int, dtype: str = "int64") -> Array:
    """Integers low .. high."""
    array: Array = draw(hnp.arrays(DTYPES[dtype], shape, elements=st.integers(low, high)))
    return array


def codes(draw: Draw, shape: tuple[int, ...]) -> Array:
    """Ternary codes."""
    return integers(draw, shape, -1, 1, "int8")


def size(draw: Draw, high: int = 3) -> int:
    """A length from 1 up, small ones first when shrinking."""
    return int(draw(st.integers(1, high)))


def lead(draw: Draw) -> tuple[int, ...]:
    """Leading axes: none, one or two, now and then an empty one."""
    return tuple(draw(st.sampled_from(((), (1,), (2,), (3,), (5,), (2, 2), (0,), (1, 3)))))


def dtype_of(draw: Draw) -> str:
    """One of the four floating dtypes."""
    return str(draw(st.sampled_from(FLOATS)))


def maybe(draw: Draw, inputs: Inputs, name: str, value: Callable[[], Array]) -> None:
    """Add an optional input half of the time."""
    if draw(st.booleans()):
        inputs[name] = value()


def _ternary(draw: Draw) -> Drawn:
    rule = draw(st.sampled_from(("absmean", "round")))
    w = tensor(draw, (*lead(draw), size(draw, 5)), dtype_of(draw))
    assume(w.size > 0)
    assume(rule == "round" or ternary_is_clear(w))
    return Drawn({"rule": rule}, {"w": w})


def _ternary_ste_backward(draw: Draw) -> Drawn:
    drawn = _ternary(draw)
    clip = draw(st.sampled_from((None, 0.0, 0.5, 1.0)))
    w = drawn.inputs["w"]
    return Drawn({**drawn.params, "ste_clip": clip}, {"w": w, "dq": tensor(draw, w.shape, w.dtype.name)})


def _pack(draw: Draw) -> Drawn:
    return Drawn({}, {"q": codes(draw, (*lead(draw), int(draw(st.integers(0, 17)))))})


def _unpack(draw: Draw) -> Drawn:
    q = codes(draw, (*lead(draw), int(draw(st.integers(0, 17)))))
    return Drawn({"k": q.shape[-1]}, {"packed": reference.pack_ternary(q)})


def _activations(draw: Draw) -> Drawn:
    x = tensor(draw, (*lead(draw), size(draw, 6)), dtype_of(draw))
    assume(activations_are_clear(x))
    return Drawn({}, {"x": x})


def _activations_strict(draw: Draw) -> Drawn:
    return Drawn({}, {"x": tensor(draw, (*lead(draw), size(draw, 6)), "float32", _STRICT)})


def _cayley_dickson(draw: Draw) -> Drawn:
    d, n, k = int(draw(st.sampled_from((1, 2, 4, 8, 16)))), size(draw), size(draw)
    dtype = dtype_of(draw)
    kind = draw(st.sampled_from(("float", "codes", "packed")))
    w = tensor(draw, (d, n, k), dtype) if kind == "float" else codes(draw, (d, n, k))
    inputs = {"x": tensor(draw, (*lead(draw), d * k), dtype), "w": reference.pack_ternary(w) if kind == "packed" else w}
    maybe(draw, inputs, "beta", lambda: tensor(draw, (n,), dtype))
    return Drawn({}, inputs)


def _cayley_dickson_backward(draw: Draw) -> Drawn:
    d, n, k = int(draw(st.sampled_from((1, 2, 4, 8, 16)))), size(draw), size(draw)
    dtype, tokens = dtype_of(draw), lead(draw)
    inputs = {"x": tensor(draw, (*tokens, d * k), dtype), "w": tensor(draw, (d, n, k), dtype)}
    maybe(draw, inputs, "beta", lambda: tensor(draw, (n,), dtype, st.sampled_from((1.0, -0.5, 2.0, 0.75))))
    inputs["dy"] = tensor(draw, (*tokens, d * n), dtype)
    return Drawn({}, inputs)


def _bit_params(draw: Draw) -> Params:
    return {
        "activation_bits": draw(st.sampled_from((8, None))),
        "rule": draw(st.sampled_from(("absmean", "round"))),
        "ste_clip": draw(st.sampled_from((None, 1.0))),
    }


def _cayley_dickson_bit(draw: Draw) -> Drawn:
    d, n, k = int(draw(st.sampled_from((1, 2, 4, 8)))), size(draw, 2), size(draw)
    params = _bit_params(draw)
    dtype = str(draw(st.sampled_from(("float32", "float64"))))
    x, w = tensor(draw, (*lead(draw), d * k), dtype), tensor(draw, (d, n, k), dtype)
    assume(params["activation_bits"] is None or activations_are_clear(x))
    assume(params["rule"] == "round" or ternary_is_clear(w))
    inputs = {"x": x, "w": w}
    maybe(draw, inputs, "beta", lambda: tensor(draw, (n,), dtype))
    return Drawn(params, inputs)


def _cayley_dickson_strict(draw: Draw) -> Drawn:
    d, n, k = int(draw(st.sampled_from((1, 2, 4, 8, 16)))), size(draw), size(draw)
    x = tensor(draw, (*lead(draw), d * k), "float32", _STRICT)
    return Drawn({}, {"x": x, "codes": codes(draw, (d, n, k)), "beta": tensor(draw, (n,), "float32")})


def _transform(draw: Draw) -> Drawn:
    n = 1 << int(draw(st.integers(0, 6)))
    x = tensor(draw, (*lead(draw), n), dtype_of(draw))
    return Drawn({"normalize": draw(st.booleans())}, {"x": x})


def _transform_backward(draw: Draw) -> Drawn:
    drawn = _transform(draw)
    x = drawn.inputs["x"]
    return Drawn(drawn.params, {"x": x, "dy": tensor(draw, x.shape, x.dtype.name)})


def _transform_strict(draw: Draw) -> Drawn:
    return Drawn({}, {"x": tensor(draw, (*lead(draw), 1 << int(draw(st.integers(0, 6)))), "float32", _STRICT)})


def _hadamard(draw: Draw) -> Drawn:
    n, width, k = 1 << int(draw(st.integers(0, 4))), size(draw), size(draw)
    dtype = dtype_of(draw)
    kind = draw(st.sampled_from(("float", "codes", "packed")))
    w = tensor(draw, (n, width, k), dtype) if kind == "float" else codes(draw, (n, width, k))
    inputs = {"x": tensor(draw, (*lead(draw), n * k), dtype), "w": reference.pack_ternary(w) if kind == "packed" else w}
    maybe(draw, inputs, "alpha", lambda: tensor(draw, (n, k), dtype))
    maybe(draw, inputs, "beta", lambda: tensor(draw, (n, width), dtype))
    return Drawn({}, inputs)


def _hadamard_backward(draw: Draw) -> Drawn:
    n, width, k = 1 << int(draw(st.integers(0, 3))), size(draw), size(draw)
    dtype, tokens = dtype_of(draw), lead(draw)
    inputs = {"x": tensor(draw, (*tokens, n * k), dtype), "w": tensor(draw, (n, width, k), dtype)}
    maybe(draw, inputs, "alpha", lambda: tensor(draw, (n, k), dtype))
    maybe(draw, inputs, "beta", lambda: tensor(draw, (n, width), dtype))
    inputs["dy"] = tensor(draw, (*tokens, n * width), dtype)
    return Drawn({}, inputs)


def _hadamard_bit(draw: Draw) -> Drawn:
    n, width, k = 1 << int(draw(st.integers(0, 3))), size(draw, 2), size(draw)
    params = _bit_params(draw)
    dtype = str(draw(st.sampled_from(("float32", "float64"))))
    x, w = tensor(draw, (*lead(draw), n * k), dtype), tensor(draw, (n, width, k), dtype)
    assume(params["rule"] == "round" or ternary_is_clear(w))
    blocks = x.astype(np.float64).reshape(*x.shape[:-1], n, k)
    v = reference.hadamard_transform(np.swapaxes(blocks, -1, -2))
    # A zero that only exact arithmetic finds would be a rounding error in float32, and another code.
    assume(params["activation_bits"] is None or activations_are_clear(v.reshape(*x.shape[:-1], n * k)))
    inputs = {"x": x, "w": w}
    maybe(draw, inputs, "beta", lambda: tensor(draw, (n, width), dtype))
    return Drawn(params, inputs)


def _hadamard_strict(draw: Draw) -> Drawn:
    n, width, k = 1 << int(draw(st.integers(0, 4))), size(draw), size(draw)
    return Drawn(
        {},
        {
            "x": tensor(draw, (*lead(draw), n * k), "float32", _STRICT),
            "codes": codes(draw, (n, width, k)),
            "alpha": tensor(draw, (n, k), "float32"),
            "beta": tensor(draw, (n, width), "float32"),
        },
    )


def _mixer_shape(draw: Draw) -> tuple[str, int, int, tuple[int, ...]]:
    algebra = str(draw(st.sampled_from((*_ALGEBRAS, "hadamard"))))
    n = _ALGEBRAS.get(algebra) or 1 << int(draw(st.integers(0, 3)))
    d = size(draw, 2)
    return algebra, n, d, (*lead(draw), n * size(draw, 2), d)


def _head_mixer(draw: Draw) -> Drawn:
    algebra, n, d, shape = _mixer_shape(draw)
    dtype = dtype_of(draw)
    inputs = {"x": tensor(draw, shape, dtype), "w": tensor(draw, (n, d, d), dtype)}
    maybe(draw, inputs, "beta", lambda: tensor(draw, (d,), dtype))
    return Drawn({"algebra": algebra}, inputs)


def _head_mixer_backward(draw: Draw) -> Drawn:
    drawn = _head_mixer(draw)
    x = drawn.inputs["x"]
    return Drawn(drawn.params, {**drawn.inputs, "dy": tensor(draw, x.shape, x.dtype.name)})


def _head_mixer_strict(draw: Draw) -> Drawn:
    algebra, n, d, shape = _mixer_shape(draw)
    return Drawn(
        {"algebra": algebra},
        {
            "x": tensor(draw, shape, "float32", _STRICT),
            "codes": integers(draw, (n, d, d), -128, 127, "int8"),
            "scale": tensor(draw, (d,), "float32"),
            "beta": tensor(draw, (d,), "float32"),
        },
    )


def _rms_norm(draw: Draw) -> Drawn:
    c, dtype = size(draw, 9), dtype_of(draw)
    params = {"eps": draw(st.sampled_from((1e-6, 1e-5, 1.0)))}
    return Drawn(params, {"x": tensor(draw, (*lead(draw), c), dtype), "weight": tensor(draw, (c,), dtype)})


def _rms_norm_backward(draw: Draw) -> Drawn:
    drawn = _rms_norm(draw)
    x = drawn.inputs["x"]
    return Drawn(drawn.params, {**drawn.inputs, "dy": tensor(draw, x.shape, x.dtype.name)})


def _rms_norm_strict(draw: Draw) -> Drawn:
    c = size(draw, 9)
    x = tensor(draw, (*lead(draw), c), "float32", _STRICT)
    return Drawn({}, {"x": x, "weight": tensor(draw, (c,), "float32")})


def _rope(draw: Draw) -> Drawn:
    t, h, d = size(draw), size(draw, 2), 2 * size(draw)
    inputs = {"x": tensor(draw, (*lead(draw), t, h, d), dtype_of(draw))}
    maybe(draw, inputs, "positions", lambda: integers(draw, (t,), 0, 5000))
    return Drawn({"theta": draw(st.sampled_from((10000.0, 500000.0, 2.0)))}, inputs)


def _rope_backward(draw: Draw) -> Drawn:
    drawn = _rope(draw)
    x = drawn.inputs["x"]
    return Drawn(drawn.params, {**drawn.inputs, "dy": tensor(draw, x.shape, x.dtype.name)})


def _rope_strict(draw: Draw) -> Drawn:
    t, h, d = size(draw), size(draw, 2), 2 * size(draw)
    frequencies = 10000.0 ** (-2 * np.arange(d // 2) / d)
    x = tensor(draw, (*lead(draw), t, h, d), "float32", _STRICT)
    return Drawn({}, {"x": x, "inv_freq": frequencies, "positions": integers(draw, (t,), 0, 90000)})


def _attention(draw: Draw) -> Drawn:
    b, t, h, d = size(draw, 2), size(draw), size(draw, 2), size(draw)
    s, dtype = t + int(draw(st.integers(0, 2))), dtype_of(draw)
    inputs = {name: tensor(draw, (b, n, h, d), dtype, _MILD) for name, n in (("q", t), ("k", s), ("v", s))}
    maybe(draw, inputs, "positions", lambda: integers(draw, (b, t), -1, s - 1))
    return Drawn({}, inputs)


def _attention_backward(draw: Draw) -> Drawn:
    drawn = _attention(draw)
    q = drawn.inputs["q"]
    return Drawn({}, {**drawn.inputs, "do": tensor(draw, q.shape, q.dtype.name)})


def _attention_strict(draw: Draw) -> Drawn:
    b, t, h, d = size(draw, 2), size(draw), size(draw, 2), size(draw)
    s = t + int(draw(st.integers(0, 2)))
    inputs = {name: tensor(draw, (b, n, h, d), "float32", _STRICT) for name, n in (("q", t), ("k", s), ("v", s))}
    maybe(draw, inputs, "positions", lambda: integers(draw, (b, t), -1, s - 1))
    return Drawn({}, inputs)


def _swiglu(draw: Draw) -> Drawn:
    shape, dtype = (*lead(draw), size(draw, 6)), dtype_of(draw)
    return Drawn({}, {"gate": tensor(draw, shape, dtype, _MILD), "up": tensor(draw, shape, dtype)})


def _swiglu_backward(draw: Draw) -> Drawn:
    drawn = _swiglu(draw)
    gate = drawn.inputs["gate"]
    return Drawn({}, {**drawn.inputs, "dh": tensor(draw, gate.shape, gate.dtype.name)})


def _swiglu_strict(draw: Draw) -> Drawn:
    shape = (*lead(draw), size(draw, 6))
    return Drawn({}, {name: tensor(draw, shape, "float32", _STRICT) for name in ("gate", "up")})


def _exp_strict(draw: Draw) -> Drawn:
    elements = st.one_of(_STRICT, st.floats(-100.0, 100.0, width=32), st.just(float("-inf")), st.just(float("inf")))
    return Drawn({}, {"x": tensor(draw, (size(draw, 8),), "float32", elements)})


def _embedding(draw: Draw) -> Drawn:
    v, c = size(draw, 5), size(draw, 4)
    return Drawn({}, {"ids": integers(draw, lead(draw), 0, v - 1), "table": tensor(draw, (v, c), dtype_of(draw))})


def _embedding_backward(draw: Draw) -> Drawn:
    drawn = _embedding(draw)
    ids, table = drawn.inputs["ids"], drawn.inputs["table"]
    return Drawn({}, {**drawn.inputs, "de": tensor(draw, (*ids.shape, table.shape[1]), table.dtype.name)})


def _hash_indices(draw: Draw) -> Drawn:
    edges = st.sampled_from((0, 1, 1020, 1021, 1019, 1013, 50256, 1021**2 - 1))
    ids: Array = draw(hnp.arrays(np.int64, lead(draw), elements=st.one_of(edges, st.integers(0, 60000))))
    return Drawn({"tables": draw(st.sampled_from((2, 3)))}, {"ids": ids})


def _hash_parts(draw: Draw, dtype: str) -> Inputs:
    count, v, c = int(draw(st.sampled_from((1, 2, 3)))), size(draw, 4), size(draw)
    heights = [size(draw, 4) for _ in range(count)]
    inputs = {f"tables.{i}": tensor(draw, (height, c), dtype) for i, height in enumerate(heights)}
    inputs["importance"] = tensor(draw, (v, count), dtype)
    columns = [integers(draw, (v,), 0, height - 1) for height in heights]
    return {**inputs, "indices": np.stack(columns, axis=-1)}


def _hash_embedding(draw: Draw) -> Drawn:
    parts = _hash_parts(draw, dtype_of(draw))
    params = {"scale": draw(st.sampled_from((1.0, 2.0, 0.75, -1.0)))}
    return Drawn(params, {"ids": integers(draw, lead(draw), 0, len(parts["importance"]) - 1), **parts})


def _hash_embedding_backward(draw: Draw) -> Drawn:
    drawn = _hash_embedding(draw)
    table = drawn.inputs["tables.0"]
    de = tensor(draw, (*drawn.inputs["ids"].shape, table.shape[1]), table.dtype.name)
    return Drawn(drawn.params, {**drawn.inputs, "de": de})


def _lm_head(draw: Draw) -> Drawn:
    v, c, dtype = size(draw, 5), size(draw, 4), dtype_of(draw)
    return Drawn({}, {"x": tensor(draw, (*lead(draw), c), dtype), "table": tensor(draw, (v, c), dtype)})


def _lm_head_backward(draw: Draw) -> Drawn:
    drawn = _lm_head(draw)
    x, table = drawn.inputs["x"], drawn.inputs["table"]
    return Drawn({}, {**drawn.inputs, "dlogits": tensor(draw, (*x.shape[:-1], len(table)), x.dtype.name)})


def _lm_head_strict(draw: Draw) -> Drawn:
    v, c = size(draw, 5), size(draw, 4)
    x = tensor(draw, (*lead(draw), c), "float32", _STRICT)
    return Drawn(
        {}, {"x": x, "codes": integers(draw, (v, c), -128, 127, "int8"), "scale": tensor(draw, (v,), "float32")}
    )


def _hash_lm_head(draw: Draw) -> Drawn:
    dtype = dtype_of(draw)
    parts = _hash_parts(draw, dtype)
    return Drawn({}, {"x": tensor(draw, (*lead(draw), parts["tables.0"].shape[1]), dtype), **parts})


def _cross_entropy(draw: Draw) -> Drawn:
    v, tokens = size(draw, 5), lead(draw)
    return Drawn(
        {}, {"logits": tensor(draw, (*tokens, v), dtype_of(draw), _MILD), "targets": integers(draw, tokens, -1, v - 1)}
    )


def _cross_entropy_backward(draw: Draw) -> Drawn:
    drawn = _cross_entropy(draw)
    dtype = drawn.inputs["logits"].dtype.name
    return Drawn({}, {**drawn.inputs, "dloss": tensor(draw, (), dtype, st.sampled_from((1.0, -2.0, 0.5)))})


def _linear_cross_entropy(draw: Draw) -> Drawn:
    v, c, tokens, dtype = size(draw, 5), size(draw), lead(draw), dtype_of(draw)
    inputs = {"x": tensor(draw, (*tokens, c), dtype, _MILD), "table": tensor(draw, (v, c), dtype, _MILD)}
    return Drawn({"chunk_size": size(draw, 4)}, {**inputs, "targets": integers(draw, tokens, -1, v - 1)})


def _linear_cross_entropy_backward(draw: Draw) -> Drawn:
    drawn = _linear_cross_entropy(draw)
    dtype = drawn.inputs["x"].dtype.name
    return Drawn(drawn.params, {**drawn.inputs, "dloss": tensor(draw, (), dtype, st.sampled_from((1.0, -2.0, 0.5)))})


_WORDS = st.one_of(st.sampled_from((0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63))), st.integers(-(2**63), 2**63 - 1))


def _uniform(draw: Draw) -> Drawn:
    n = size(draw, 4)
    return Drawn({}, {name: draw(hnp.arrays(np.int64, (n,), elements=_WORDS)) for name in ("seed", "position")})


def _sample(draw: Draw) -> Drawn:
    b, v = size(draw), size(draw, 7)
    params = {
        "temperature": draw(st.sampled_from((0.0, 0.5, 1.0, 3.0))),
        "top_k": draw(st.integers(0, v + 1)),
        "top_p": draw(st.sampled_from((1.0, 0.9, 0.5, 1e-6))),
        "repetition_penalty": draw(st.sampled_from((1.0, 1.5, 0.5))),
    }
    inputs = {
        "logits": tensor(draw, (b, v), "float32"),
        "history": integers(draw, (b, size(draw)), -1, v - 1),
        "seed": draw(hnp.arrays(np.int64, (b,), elements=_WORDS)),
        "position": integers(draw, (b,), 0, 4000),
    }
    return Drawn(params, inputs)


def _bitmask_encode(draw: Draw) -> Drawn:
    return Drawn({}, {"q": codes(draw, (*lead(draw), int(draw(st.integers(0, 20)))))})


def _bitmask_decode(draw: Draw) -> Drawn:
    q = codes(draw, (*lead(draw), int(draw(st.integers(0, 20)))))
    mask, signs = reference.bitmask_encode(q)
    return Drawn({"shape": list(q.shape)}, {"mask": mask, "signs": signs})


DRAWS: Mapping[str, Callable[[Draw], Drawn]] = {
    "ternary": _ternary,
    "ternary_ste.backward": _ternary_ste_backward,
    "pack_ternary": _pack,
    "unpack_ternary": _unpack,
    "quantize_activations": _activations,
    "fake_quantize_activations": _activations,
    "quantize_activations.strict": _activations_strict,
    "cayley_dickson_linear": _cayley_dickson,
    "cayley_dickson_linear.backward": _cayley_dickson_backward,
    "cayley_dickson_bit_linear": _cayley_dickson_bit,
    "cayley_dickson_linear.strict": _cayley_dickson_strict,
    "hadamard_transform": _transform,
    "hadamard_transform.backward": _transform_backward,
    "hadamard_transform.strict": _transform_strict,
    "hadamard_linear": _hadamard,
    "hadamard_linear.backward": _hadamard_backward,
    "hadamard_bit_linear": _hadamard_bit,
    "hadamard_linear.strict": _hadamard_strict,
    "head_mixer": _head_mixer,
    "head_mixer.backward": _head_mixer_backward,
    "head_mixer.strict": _head_mixer_strict,
    "rms_norm": _rms_norm,
    "rms_norm.backward": _rms_norm_backward,
    "rms_norm.strict": _rms_norm_strict,
    "rope": _rope,
    "rope.backward": _rope_backward,
    "rope.strict": _rope_strict,
    "attention": _attention,
    "attention.backward": _attention_backward,
    "attention.strict": _attention_strict,
    "swiglu": _swiglu,
    "swiglu.backward": _swiglu_backward,
    "swiglu.strict": _swiglu_strict,
    "exp.strict": _exp_strict,
    "embedding": _embedding,
    "embedding.backward": _embedding_backward,
    "hash_indices": _hash_indices,
    "hash_embedding": _hash_embedding,
    "hash_embedding.backward": _hash_embedding_backward,
    "lm_head": _lm_head,
    "lm_head.backward": _lm_head_backward,
    "lm_head.strict": _lm_head_strict,
    "hash_lm_head": _hash_lm_head,
    "cross_entropy": _cross_entropy,
    "cross_entropy.backward": _cross_entropy_backward,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_cross_entropy.backward": _linear_cross_entropy_backward,
    "uniform": _uniform,
    "sample": _sample,
    "bitmask_encode": _bitmask_encode,
    "bitmask_decode": _bitmask_decode,
}
"""What can be drawn, by call."""
