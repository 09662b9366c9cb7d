"""The engine's operations in ordinary arithmetic, on float32, with the names and arguments of SPEC.md.

What a model with float activations is made of, one operation at a time, and the whole of it. Arguments are checked as
the definition checks them, by its own functions; everything else happens in the engine. What gradients or 16-bit dtypes
need is not here: the engine does inference.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.engine.host import Array
from walsh.engine.kv_cache import KVCache
from walsh.engine.ordinary_model import OrdinaryModel
from walsh.engine.ordinary_tables import Float32, Tables, float32
from walsh.errors import DTypeError, ParameterError, ShapeError
from walsh.reference._check import as_array, as_float, as_optional, is_float
from walsh.reference.attention import _check as check_attention
from walsh.reference.cayley_dickson import _check as check_cayley_dickson
from walsh.reference.hadamard import _check as check_hadamard
from walsh.reference.head_mixer import _check as check_mixer
from walsh.reference.rms_norm import _check as check_norm
from walsh.reference.rope import _check as check_rope
from walsh.reference.swiglu import _check as check_swiglu
from walsh.reference.ternary import require_rule


class Ordinary(Tables):
    """Functions on one instance of the engine; the classes of errors are those of ``walsh.reference``."""

    def _unpacked(self, x: Array, w: Array) -> Array:
        """Packed weights as codes where they fit x, others as they are."""
        x, w = as_array("x", x), as_array("w", w)
        if w.dtype != np.uint8 or w.ndim != 3 or x.ndim == 0 or w.shape[0] == 0 or x.shape[-1] % w.shape[0]:
            return w
        k = x.shape[-1] // w.shape[0]
        return self._operations.unpack_ternary(w, k) if w.shape[2] == -(-k // 4) else w

    def ternary(self, w: Array, rule: str = "absmean") -> tuple[NDArray[np.int8], Float32]:
        """W [...] to codes int8 [...] and gamma."""
        require_rule(rule)
        w = float32(as_float("w", w))
        if w.size == 0:
            raise ShapeError(f"w has shape {list(w.shape)}: expected at least one weight to take the mean of")
        with self._instance.arrays() as arrays:
            q, gamma = arrays.room(w.size), arrays.room(4)
            self._instance.call("float_ternary", arrays.put(w), w.size, int(rule == "absmean"), q, gamma)
            return arrays.get(q, w.shape, "int8"), arrays.get(gamma, (), "float32")

    def ternary_ste(self, w: Array, rule: str = "absmean", ste_clip: float | None = None) -> Float32:
        """W [...] to its codes as float32 [...]."""
        require_rule(rule, ste_clip)
        return self.ternary(w, rule)[0].astype(np.float32)

    def quantize_activations(self, x: Array) -> tuple[NDArray[np.int8], Float32]:
        """X [..., C] to codes int8 [..., C] and scale [..., 1]."""
        x = float32(as_float("x", x))
        if x.ndim == 0 or x.shape[-1] == 0:
            raise ShapeError(
                f"x has shape {list(x.shape)}: expected [..., C] with C at least 1, to take a maximum over"
            )
        with self._instance.arrays() as arrays:
            rows = x.size // x.shape[-1]
            a, scale = arrays.room(x.nbytes), arrays.room(4 * rows)
            self._instance.call("float_quantize", arrays.put(x), rows, x.shape[-1], a, scale)
            codes = arrays.get(a, x.shape, "float32").astype(np.int8)
            return codes, arrays.get(scale, (*x.shape[:-1], 1), "float32")

    def fake_quantize_activations(self, x: Array) -> Float32:
        """X [..., C] to what its codes stand for, [..., C]."""
        codes, scale = self.quantize_activations(x)
        return codes.astype(np.float32) / scale

    def _linear(
        self, x: Array, w: Array, alpha: Array | None, beta: Array | None, hadamard: bool, bits: int | None
    ) -> Float32:
        """X [m, n, K], w [n, N, K] to [m, n * N]."""
        (tokens, n, k), rows = x.shape, w.shape[1]
        with self._instance.arrays() as arrays:
            given = [0 if factor is None else arrays.put(float32(factor)) for factor in (alpha, beta)]
            y = arrays.room(4 * tokens * n * rows)
            inputs = arrays.put(float32(x)), tokens, arrays.put(float32(w))
            self._instance.call("float_linear", *inputs, n, rows, k, *given, int(hadamard), int(bits == 8), y)
            return arrays.get(y, (tokens, n * rows), "float32")

    def cayley_dickson_linear(
        self, x: Array, w: Array, beta: Array | None = None, x_scale: Array | None = None
    ) -> NDArray[Any]:
        """X [..., D*K] float or int8, w [D, N, K] float, int8 or packed, beta [N], x_scale [..., 1] to [..., D*N]."""
        blocks, weights, factor = check_cayley_dickson(x, self._unpacked(x, w), beta)
        if blocks.dtype == np.int8:
            return self._products(np.shape(x)[:-1], blocks, weights, factor, x_scale)
        if x_scale is not None:
            raise ParameterError("x_scale is given with float x: expected int8 codes of x, or no x_scale")
        y = self._linear(blocks, weights, None, factor, hadamard=False, bits=None)
        return y.reshape(*np.shape(x)[:-1], y.shape[1])

    def _products(
        self, leading: tuple[int, ...], blocks: Array, weights: Array, beta: Array | None, x_scale: Array | None
    ) -> NDArray[Any]:
        """Codes x [m, D, K], w [D, N, K]: int32 sums [..., D*N], or float32 with x_scale or beta."""
        if weights.dtype != np.int8:
            raise DTypeError("x is int8 and w is float: expected int8 or packed uint8 w; make it with `ternary`")
        scale = as_optional("x_scale", x_scale, (*leading, 1), "[..., 1], one scale per token of x,")
        (tokens, d, k), n = blocks.shape, weights.shape[1]
        dtype = "int32" if scale is None and beta is None else "float32"
        with self._instance.arrays() as arrays:
            factors = [0 if factor is None else arrays.put(float32(factor)) for factor in (scale, beta)]
            y = arrays.room(4 * tokens * d * n)
            given = arrays.put(blocks), tokens, arrays.put(weights), d, n, k
            self._instance.call("op_cayley_dickson_codes", *given, *factors, y)
            return arrays.get(y, (*leading, d * n), dtype)

    def cayley_dickson_bit_linear(
        self,
        x: Array,
        w: Array,
        beta: Array | None = None,
        activation_bits: int | None = 8,
        rule: str = "absmean",
        ste_clip: float | None = None,
    ) -> Float32:
        """The same with rounded weights and activations."""
        q = self._round(x, w, activation_bits, rule, ste_clip)
        blocks, weights, factor = check_cayley_dickson(as_float("x", x), q, beta)
        self._require_features(blocks, activation_bits)
        y = self._linear(blocks, weights, None, factor, hadamard=False, bits=activation_bits)
        return y.reshape(*np.shape(x)[:-1], y.shape[1])

    def _round(self, x: Array, w: Array, bits: object, rule: str, ste_clip: float | None) -> Array:
        """Codes of float weights; integer ones as they are."""
        require_rule(rule, ste_clip)
        as_float("x", x)
        if bits is not None and (isinstance(bits, bool) or bits != 8):
            raise ParameterError(f"activation_bits is {bits!r}: expected 8 or None")
        w = as_array("w", w)
        return self.ternary(w, rule)[0] if is_float(w) else self._unpacked(x, w)

    @staticmethod
    def _require_features(blocks: Array, bits: object) -> None:
        if bits is not None and blocks.shape[1] * blocks.shape[2] == 0:
            raise ShapeError(f"x has blocks {list(blocks.shape)}: expected features to take a maximum over")

    def hadamard_transform(self, x: Array, normalize: bool = True) -> NDArray[Any]:
        """X [..., n] to [..., n]; integer x to int32, with ``normalize`` False."""
        given = as_array("x", x)
        integer = given.dtype.kind in "iu"
        if not integer:
            given = as_float("x", given)
        if given.ndim == 0 or given.shape[-1] == 0:
            raise ShapeError(f"x has shape {list(given.shape)}: expected [..., n] with n a power of two; pad it")
        n = given.shape[-1]
        if integer:
            return self._integers(given.astype(np.int32), n, normalize)
        x = float32(given)
        with self._instance.arrays() as arrays:
            y = arrays.room(x.nbytes)
            self._instance.call("float_transform", arrays.put(x), x.size // n, n, int(normalize), y)
            return arrays.get(y, x.shape, "float32")

    def _integers(self, x: Array, n: int, normalize: bool) -> NDArray[np.int32]:
        if normalize:
            raise ParameterError("normalize is True for integer x: expected False, because only that stays exact")
        with self._instance.arrays() as arrays:
            y = arrays.put(x)
            self._instance.call("op_transform_integers", y, x.size // n, n)
            return arrays.get(y, x.shape, "int32")

    def hadamard_linear(self, x: Array, w: Array, alpha: Array | None = None, beta: Array | None = None) -> Float32:
        """X [..., n*K], w [n, N, K] float, int8 or packed, alpha [n, K], beta [n, N] to [..., n*N]."""
        blocks, weights, *_ = check_hadamard(x, self._unpacked(x, w), alpha, beta)
        y = self._linear(blocks, weights, alpha, beta, hadamard=True, bits=None)
        return y.reshape(*np.shape(x)[:-1], y.shape[1])

    def hadamard_bit_linear(
        self,
        x: Array,
        w: Array,
        alpha: Array | None = None,
        beta: Array | None = None,
        activation_bits: int | None = 8,
        rule: str = "absmean",
        ste_clip: float | None = None,
    ) -> Float32:
        """The same with rounded weights and activations, these after alpha and the first transform."""
        require_rule(rule, ste_clip)
        check_hadamard(x, self._unpacked(x, w), alpha, beta)
        blocks, weights, *_ = check_hadamard(x, self._round(x, w, activation_bits, rule, ste_clip), alpha, beta)
        self._require_features(blocks, activation_bits)
        y = self._linear(blocks, weights, alpha, beta, hadamard=True, bits=activation_bits)
        return y.reshape(*np.shape(x)[:-1], y.shape[1])

    def head_mixer(self, x: Array, w: Array, beta: Array | None = None, algebra: str = "octonion") -> Float32:
        """X [..., H, d], w [n, d, d], beta [d] to [..., H, d]."""
        groups, weights, _ = check_mixer(x, w, beta, algebra)
        tokens, n, d = groups.shape
        with self._instance.arrays() as arrays:
            y = arrays.room(4 * groups.size)
            factor = 0 if beta is None else arrays.put(float32(beta))
            given = arrays.put(float32(groups)), tokens, n, d, arrays.put(float32(weights)), n, factor
            if groups.size:
                self._instance.call("float_mixer", *given, int(algebra == "hadamard"), y)
            return arrays.get(y, np.shape(x), "float32")

    def rms_norm(self, x: Array, weight: Array, eps: float = 1e-6) -> Float32:
        """X [..., C], weight [C] to [..., C]."""
        checked, factors, _ = check_norm(x, weight, eps)
        if checked.size == 0:
            return np.empty(checked.shape, dtype=np.float32)
        c = checked.shape[-1]
        with self._instance.arrays() as arrays:
            y = arrays.room(4 * checked.size)
            given = arrays.put(float32(checked)), checked.size // c, c, arrays.put(float32(factors))
            self._instance.call("float_rms_norm", *given, float(eps), y)
            return arrays.get(y, checked.shape, "float32")

    def rope(self, x: Array, positions: Array | None = None, theta: float = 10000.0) -> Float32:
        """X [..., T, H, d], positions [T] or [..., T] to [..., T, H, d]."""
        checked, _ = check_rope(x, positions, theta)
        heads, d = checked.shape[-2:]
        where = np.arange(checked.shape[-3]) if positions is None else np.asarray(positions)
        where = np.broadcast_to(where.astype(np.int64), checked.shape[:-2])
        inv_freq = float(theta) ** (-2 * np.arange(d // 2) / d) if d else np.zeros(0)
        with self._instance.arrays() as arrays:
            y = arrays.put(float32(checked))
            self._instance.call("float_rope", y, where.size, heads, d, arrays.put(inv_freq), arrays.put(where))
            return arrays.get(y, checked.shape, "float32")

    def attention(self, q: Array, k: Array, v: Array, positions: Array | None = None) -> Float32:
        """Q [B, T, H, d], k and v [B, S, H, d], positions [T] or [B, T] to [B, T, H, d]."""
        queries, keys, values, where = check_attention(q, k, v, positions)
        batch, t, heads, d = queries.shape
        o = np.zeros(queries.shape, dtype=np.float32)
        for b in range(batch if queries.size else 0):
            with self._instance.arrays() as arrays:
                out = arrays.room(o[b].nbytes)
                given = [arrays.put(float32(x)) for x in (queries[b], keys[b], values[b])]
                positions_at = arrays.put(np.ascontiguousarray(where[b], dtype=np.int64))
                self._instance.call("float_attention", *given, positions_at, t, keys.shape[1], heads, d, out)
                o[b] = arrays.get(out, o[b].shape, "float32")
        return o

    def swiglu(self, gate: Array, up: Array) -> Float32:
        """Gate and up [...] to [...]."""
        left, right = check_swiglu(gate, up)
        with self._instance.arrays() as arrays:
            h = arrays.put(left.astype(np.float32))
            self._instance.call("float_swiglu", h, arrays.put(right.astype(np.float32)), left.size)
            return arrays.get(h, left.shape, "float32")

    def add(self, x: Array, y: Array) -> Float32:
        """X + y of one shape, as residuals are added."""
        with self._instance.arrays() as arrays:
            total = arrays.put(float32(x))
            self._instance.call("float_add", total, arrays.put(float32(y)), np.size(x))
            return arrays.get(total, np.shape(x), "float32")

    def cache(self, batch: int, capacity: int, heads: int, head_dim: int) -> KVCache:
        """A cache in the engine, of float32."""
        return KVCache(self._instance, [], capacity, heads, head_dim).grow(batch)

    def forward(
        self,
        ids: Array,
        weights: Mapping[str, Array],
        config: Mapping[str, Any],
        cache: Sequence[KVCache] | None = None,
        probes: MutableMapping[str, Array] | None = None,
    ) -> Float32:
        """Ids [B, T] and weights to logits [B, T, V]; cache and probes as in SPEC.md."""
        return OrdinaryModel(self, weights, config).forward(ids, cache, probes)
