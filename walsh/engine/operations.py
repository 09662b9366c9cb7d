"""The engine's single operations as NumPy functions, with the names and arguments of SPEC.md, *Strict arithmetic*.

What conformance runs. Arguments are checked here as the definition checks them (dtypes, shapes, ranges); sums, rounding
and everything else happens in the engine. ``scalar`` runs the engine's definitions instead of its kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.algebra import DIMENSIONS, is_power_of_two
from walsh.codec import dump
from walsh.engine.host import Array, Arrays, Instance
from walsh.engine.kv_cache import Int8KVCache
from walsh.engine.model import LAYOUTS, Engine, Sampling
from walsh.errors import CapacityError, DTypeError, ParameterError, ShapeError
from walsh.reference.strict import _check
from walsh.reference.strict.attention import query_positions
from walsh.reference.strict.forward import check_generation
from walsh.reference.strict.head_mixer import require_group
from walsh.reference.strict.sampling import check_logits, check_parameters
from walsh.reference.strict.weights import strict_config

Float32 = NDArray[np.float32]


def _unsigned(name: str, value: Any) -> NDArray[np.uint64]:
    """Integers of any size modulo 2^64."""
    array = np.asarray(value)
    if array.dtype.kind in "iu":
        return array.astype(np.uint64)
    if array.dtype == object and all(isinstance(v, int) for v in array.flat):
        return np.array([v & ((1 << 64) - 1) for v in array.flat], dtype=np.uint64).reshape(array.shape)
    raise DTypeError(f"{name} {value!r}: expected an integer or integers [B]")


def _signed(value: Any) -> int:
    """A number below 2^64 as wasmtime takes it."""
    return int(np.uint64(value).astype(np.int64))


class Operations:
    """Functions on one instance of the engine.

    Args:
        layout: of linear layers, one of ``LAYOUTS`` but ``auto``.
        scalar: run definitions, one number at a time, instead of kernels.
    """

    def __init__(self, layout: str = "fast", scalar: bool = False) -> None:
        self._instance = Instance()
        self._instance.call("use_scalar", int(scalar))
        self._layout = LAYOUTS.index(layout)

    @property
    def instance(self) -> Instance:
        """Where the operations run."""
        return self._instance

    def _float(self, name: str, x: Any) -> Float32:
        array = _check.typed(name, x, "float32")
        return np.ascontiguousarray(array) if array.ndim else array

    def quantize_activations(self, x: Array) -> tuple[NDArray[np.int8], Float32]:
        """X float32 [..., C] to (a int8 [..., C], r float32 [..., 1])."""
        x = _check.featured("x", self._float("x", x), None, "C")
        rows = x.size // x.shape[-1]
        with self._instance.arrays() as arrays:
            codes, worth = arrays.room(x.size), arrays.room(4 * rows)
            self._instance.call("op_quantize_activations", arrays.put(x), rows, x.shape[-1], codes, worth)
            return arrays.get(codes, x.shape, "int8"), arrays.get(worth, (*x.shape[:-1], 1), "float32")

    def cayley_dickson_linear(self, x: Array, codes: Array, beta: Array) -> Float32:
        """X [..., D*K], codes int8 [D, N, K], beta [N] to [..., D*N]."""
        x, beta = self._float("x", x), self._float("beta", beta)
        codes = _check.shaped("codes", _check.typed("codes", codes, "int8"), (None, None, None), "[D, N, K]")
        d, n, k = codes.shape
        if d not in DIMENSIONS.values():
            raise ShapeError(f"codes have {d} components: expected one of {sorted(DIMENSIONS.values())}")
        _check.featured("x", x, d * k, "D*K")
        _check.shaped("beta", beta, (n,), "[N]")
        tokens, shape = x.size // (d * k), (*x.shape[:-1], d * n)
        with self._instance.arrays() as arrays:
            y = arrays.room(4 * tokens * d * n)
            self._instance.call(
                "op_cayley_dickson_linear",
                *(arrays.put(x), tokens, arrays.put(codes), d, n, k, arrays.put(beta), self._layout, y),
            )
            return arrays.get(y, shape, "float32")

    def hadamard_transform(self, x: Array) -> Float32:
        """X [..., n] to [..., n]."""
        x = _check.featured("x", self._float("x", x), None, "n")
        n = x.shape[-1]
        with self._instance.arrays() as arrays:
            y = arrays.room(x.nbytes)
            self._instance.call("op_hadamard_transform", arrays.put(x), x.size // n, n, y)
            return arrays.get(y, x.shape, "float32")

    def hadamard_linear(self, x: Array, codes: Array, alpha: Array, beta: Array) -> Float32:
        """X [..., n*K], codes int8 [n, N, K], alpha [n, K], beta [n, N] to [..., n*N]."""
        x, alpha, beta = (self._float(name, v) for name, v in (("x", x), ("alpha", alpha), ("beta", beta)))
        codes = _check.shaped("codes", _check.typed("codes", codes, "int8"), (None, None, None), "[n, N, K]")
        size, n, k = codes.shape
        if not is_power_of_two(size):
            raise ShapeError(f"transform size {size}: expected a power of two")
        _check.featured("x", x, size * k, "n*K")
        _check.shaped("alpha", alpha, (size, k), "[n, K]")
        _check.shaped("beta", beta, (size, n), "[n, N]")
        tokens, packed = x.size // (size * k), int(LAYOUTS[self._layout] == "packed")
        with self._instance.arrays() as arrays:
            y = arrays.room(4 * tokens * size * n)
            given = (arrays.put(x), tokens, arrays.put(codes), size, n, k, arrays.put(alpha), arrays.put(beta))
            self._instance.call("op_hadamard_linear", *given, packed, y)
            return arrays.get(y, (*x.shape[:-1], size * n), "float32")

    def head_mixer(self, x: Array, codes: Array, scale: Array, beta: Array, algebra: str = "octonion") -> Float32:
        """X [..., H, d], codes int8 [n, d, d], scale [d], beta [d] to [..., H, d]."""
        x = _check.featured("x", self._float("x", x), None, "d")
        scale, beta = self._float("scale", scale), self._float("beta", beta)
        if x.ndim < 2:
            raise ShapeError(f"x has shape {list(x.shape)}: expected [..., H, d]")
        heads, d = x.shape[-2:]
        codes = _check.shaped("codes", _check.typed("codes", codes, "int8"), (None, d, d), "[n, d, d]")
        _check.shaped("scale", scale, (d,), "[d]")
        _check.shaped("beta", beta, (d,), "[d]")
        require_group(algebra, codes.shape[0], heads)
        tokens = x.size // max(heads * d, 1)
        with self._instance.arrays() as arrays:
            y = arrays.room(x.nbytes)
            given = (arrays.put(x), tokens, heads, d, arrays.put(codes), codes.shape[0])
            kind = int(algebra == "hadamard")
            if x.size:
                self._instance.call("op_head_mixer", *given, arrays.put(scale), arrays.put(beta), kind, y)
            return arrays.get(y, x.shape, "float32")

    def rms_norm(self, x: Array, weight: Array) -> Float32:
        """X [..., C], weight [C] to [..., C]."""
        x = _check.featured("x", self._float("x", x), None, "C")
        weight = _check.shaped("weight", self._float("weight", weight), (x.shape[-1],), "[C]")
        with self._instance.arrays() as arrays:
            y, c = arrays.room(x.nbytes), x.shape[-1]
            self._instance.call("op_rms_norm", arrays.put(x), x.size // c, c, arrays.put(weight), y)
            return arrays.get(y, x.shape, "float32")

    def rope(self, x: Array, inv_freq: Array, positions: Array) -> Float32:
        """X [..., T, H, d], inv_freq float64 [d/2], positions [T] or [..., T] to [..., T, H, d]."""
        x = self._float("x", x)
        if x.ndim < 3 or x.shape[-1] % 2:
            raise ShapeError(f"x has shape {list(x.shape)}: expected [..., T, H, d] with d even")
        heads, d = x.shape[-2:]
        inv_freq = _check.shaped("inv_freq", _check.typed("inv_freq", inv_freq, "float64"), (d // 2,), "[d/2]")
        positions = _check.typed("positions", positions, "integer")
        if positions.shape not in ((x.shape[-3],), x.shape[:-2]):
            raise ShapeError(f"positions have shape {list(positions.shape)}: expected [T] or [..., T]")
        _check.within("positions", positions, 0, 1 << 62, "use max(position, 0) for padding")
        where = np.broadcast_to(positions.astype(np.int64), x.shape[:-2])
        with self._instance.arrays() as arrays:
            y = arrays.put(x)
            self._instance.call("op_rope", y, where.size, heads, d, arrays.put(inv_freq), arrays.put(where))
            return arrays.get(y, x.shape, "float32")

    def attention(self, q: Array, k: Array, v: Array, positions: Array | None = None) -> Float32:
        """Q [B, T, H, d], k and v [B, S, H, d], positions [T] or [B, T] to [B, T, H, d]."""
        q, k, v = (self._float(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
        _check.featured("q", _check.shaped("q", q, (None, None, None, None), "[B, T, H, d]"), None, "d")
        batch, queries, heads, d = q.shape
        _check.shaped("k", k, (batch, None, heads, d), "[B, S, H, d]")
        _check.shaped("v", v, k.shape, "[B, S, H, d] of k")
        where = query_positions(positions, batch, queries, k.shape[1])
        o = np.zeros(q.shape, dtype=np.float32)
        for b in range(batch if q.size else 0):
            with self._instance.arrays() as arrays:
                out = arrays.room(o[b].nbytes)
                given = [arrays.put(x) for x in (q[b], k[b], v[b], where[b])]
                self._instance.call("op_attention", *given, queries, k.shape[1], heads, d, out)
                o[b] = arrays.get(out, o[b].shape, "float32")
        return o

    def swiglu(self, gate: Array, up: Array) -> Float32:
        """Gate and up [...] to [...]."""
        gate, up = self._float("gate", gate), self._float("up", up)
        _check.shaped("up", up, gate.shape, "the shape of gate")
        with self._instance.arrays() as arrays:
            h = arrays.put(gate)
            self._instance.call("op_swiglu", h, arrays.put(up), gate.size)
            return arrays.get(h, gate.shape, "float32")

    def exp(self, x: Array) -> Float32:
        """X [...] to e^x [...]."""
        x = self._float("x", x)
        with self._instance.arrays() as arrays:
            y = arrays.put(x)
            self._instance.call("op_exp", y, x.size)
            return arrays.get(y, x.shape, "float32")

    @staticmethod
    def _table(name: str, codes: Array, scale: Array) -> tuple[Array, Array]:
        codes = _check.shaped(name, _check.typed(name, codes, "int8"), (None, None), "[rows, C]")
        scale = _check.typed(f"scale of {name}", scale, "float32")
        return codes, _check.shaped(f"scale of {name}", scale, (codes.shape[0],), "[rows]")

    def embedding(self, ids: Array, codes: Array, scale: Array) -> Float32:
        """Ids [...], codes int8 [V, C], scale [V] to [..., C]."""
        codes, scale = self._table("codes", codes, scale)
        ids = _check.typed("ids", ids, "integer").astype(np.int64)
        v, c = codes.shape
        with self._instance.arrays() as arrays:
            e = arrays.room(4 * ids.size * c)
            self._instance.call(
                "op_embedding", arrays.put(ids), ids.size, arrays.put(codes), v, c, 8, arrays.put(scale), e
            )
            return arrays.get(e, (*ids.shape, c), "float32")

    def lm_head(self, x: Array, codes: Array, scale: Array) -> Float32:
        """X [..., C], codes int8 [V, C], scale [V] to [..., V]."""
        codes, scale = self._table("codes", codes, scale)
        v, c = codes.shape
        x = _check.featured("x", self._float("x", x), c, "C")
        with self._instance.arrays() as arrays:
            logits = arrays.room(4 * (x.size // c) * v)
            given = (arrays.put(x), x.size // c, arrays.put(codes), v, c, 8, arrays.put(scale))
            self._instance.call("op_lm_head", *given, logits)
            return arrays.get(logits, (*x.shape[:-1], v), "float32")

    def _hash_tables(
        self, arrays: Arrays, tables: Sequence[Array], scales: Sequence[Array], importance: Array, indices: Array | None
    ) -> tuple[tuple[int, ...], int, int]:
        """(the engine's arguments for them, C, V)."""
        if not tables or len(tables) != len(scales):
            raise ShapeError(f"{len(tables)} tables with {len(scales)} scales: expected one scale vector per table")
        pairs = [self._table(f"tables.{i}", *pair) for i, pair in enumerate(zip(tables, scales, strict=True))]
        c = pairs[0][0].shape[1]
        for i, (codes, _) in enumerate(pairs):
            _check.shaped(f"tables.{i}", codes, (None, c), "[P, C] with the C of tables.0")
        importance = _check.shaped(
            "importance", self._float("importance", importance), (None, len(pairs)), "[V, tables]"
        )
        where = 0
        if indices is not None:
            indices = _check.shaped(
                "indices", _check.typed("indices", indices, "integer"), importance.shape, "[V, tables]"
            )
            where = arrays.put(indices.astype(np.int64))
        codes_at = arrays.put(np.array([arrays.put(codes) for codes, _ in pairs], dtype=np.uint32))
        scales_at = arrays.put(np.array([arrays.put(scale) for _, scale in pairs], dtype=np.uint32))
        rows = arrays.put(np.array([len(codes) for codes, _ in pairs], dtype=np.uint32))
        given = (codes_at, scales_at, rows, len(pairs), c, arrays.put(importance), where, len(importance))
        return given, c, len(importance)

    def hash_embedding(
        self,
        ids: Array,
        tables: Sequence[Array],
        scales: Sequence[Array],
        importance: Array,
        indices: Array | None = None,
        scale: float = 1.0,
    ) -> Float32:
        """Ids [...], tables int8 [P_i, C] with scales [P_i], importance and indices [V, tables] to [..., C]."""
        with np.errstate(over="ignore"):
            factor = float(np.float32(scale))
        with self._instance.arrays() as arrays:
            given, c, _ = self._hash_tables(arrays, tables, scales, importance, indices)
            ids = _check.typed("ids", ids, "integer").astype(np.int64)
            e = arrays.room(4 * ids.size * c)
            self._instance.call("op_hash_embedding", arrays.put(ids), ids.size, *given, factor, e)
            return arrays.get(e, (*ids.shape, c), "float32")

    def hash_lm_head(
        self,
        x: Array,
        tables: Sequence[Array],
        scales: Sequence[Array],
        importance: Array,
        indices: Array | None = None,
    ) -> Float32:
        """X [..., C] and a hash embedding to [..., V]."""
        x = self._float("x", x)
        with self._instance.arrays() as arrays:
            given, c, v = self._hash_tables(arrays, tables, scales, importance, indices)
            _check.featured("x", x, c, "C")
            logits = arrays.room(4 * (x.size // c) * v)
            self._instance.call("op_hash_lm_head", arrays.put(x), x.size // c, *given, logits)
            return arrays.get(logits, (*x.shape[:-1], v), "float32")

    def hash_indices(self, ids: Array, tables: int) -> NDArray[np.int64]:
        """Ids [...] to indices [..., tables]."""
        ids = _check.typed("ids", ids, "integer").astype(np.int64)
        if isinstance(tables, bool) or tables not in (2, 3):
            raise ParameterError(f"tables {tables!r}: expected 2 or 3")
        with self._instance.arrays() as arrays:
            indices = arrays.room(8 * ids.size * tables)
            self._instance.call("op_hash_indices", arrays.put(ids), ids.size, tables, indices)
            return arrays.get(indices, (*ids.shape, tables), "int64")

    def uniform(self, seed: Any, position: Any) -> Float32:
        """Seed and position, integers that broadcast, to float32 in [0, 1)."""
        pairs = np.broadcast(_unsigned("seed", seed), _unsigned("position", position))
        values = [self._instance.call("op_uniform", _signed(s), _signed(p)) for s, p in pairs]
        return np.array(values, dtype=np.float32).reshape(pairs.shape)

    def sample(
        self,
        logits: Array,
        history: Array | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: Any = 0,
        position: Any = 0,
    ) -> NDArray[np.int64]:
        """Logits [B, V], history [B, P] to ids [B]."""
        logits, history = check_logits(logits, history)
        check_parameters(temperature, top_k, top_p, repetition_penalty)
        batch, v = logits.shape
        seeds, positions = np.broadcast_arrays(_unsigned("seed", seed), _unsigned("position", position))
        if seeds.shape not in ((), (batch,)):
            raise ShapeError(f"seed and position give shape {list(seeds.shape)}: expected integers or [B] = [{batch}]")
        seeds, positions = np.broadcast_to(seeds, (batch,)), np.broadcast_to(positions, (batch,))
        heat, kept, mass, penalty, _ = Sampling(temperature, top_k, top_p, repetition_penalty).arguments()
        ids = np.empty(batch, dtype=np.int64)
        for b in range(batch):
            with self._instance.arrays() as arrays:
                past = arrays.put(history[b].astype(np.int64))
                given = (arrays.put(logits[b]), v, past, history.shape[1], heat, kept, mass, penalty)
                ids[b] = self._instance.call("op_sample", *given, _signed(seeds[b]), _signed(positions[b]))
        return ids

    def bitmask_encode(self, q: Array) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Q int8 [...] to (mask, signs), uint8."""
        q = _check.typed("q", q, "int8")
        with self._instance.arrays() as arrays:
            size = self._instance.call("op_bitmask_encode", arrays.put(q), q.size)
        found = np.frombuffer(self._instance.result(size), dtype=np.uint8)
        return found[: -(-q.size // 8)], found[-(-q.size // 8) :]

    def bitmask_decode(self, mask: Array, signs: Array, shape: Sequence[int]) -> NDArray[np.int8]:
        """Mask and signs, uint8, to q int8 of a shape."""
        mask, signs = _check.typed("mask", mask, "uint8"), _check.typed("signs", signs, "uint8")
        size = int(np.prod(shape, dtype=np.int64))
        if mask.ndim != 1 or signs.ndim != 1:
            raise ShapeError(f"mask {list(mask.shape)}, signs {list(signs.shape)}: expected one axis each")
        with self._instance.arrays() as arrays:
            q = arrays.room(size)
            self._instance.call(
                "op_bitmask_decode", arrays.put(mask), mask.size, arrays.put(signs), signs.size, q, size
            )
            return arrays.get(q, tuple(shape), "int8")

    def pack_ternary(self, q: Array) -> NDArray[np.uint8]:
        """Q int8 [..., K] to uint8 [..., ceil(K/4)]."""
        q = _check.typed("q", q, "int8")
        if q.ndim == 0:
            raise ShapeError("q is a scalar: expected [..., K]")
        k, width = q.shape[-1], -(-q.shape[-1] // 4)
        rows = int(np.prod(q.shape[:-1], dtype=np.int64))
        with self._instance.arrays() as arrays:
            packed = arrays.room(rows * width)
            self._instance.call("op_pack_ternary", arrays.put(q), rows, k, packed)
            return arrays.get(packed, (*q.shape[:-1], width), "uint8")

    def unpack_ternary(self, packed: Array, k: int) -> NDArray[np.int8]:
        """Packed uint8 [..., ceil(k/4)] to q int8 [..., k]."""
        packed = _check.typed("packed", packed, "uint8")
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 0:
            raise ParameterError(f"k {k!r}: expected an integer from 0 up")
        if packed.ndim == 0 or packed.shape[-1] != -(-int(k) // 4):
            raise ShapeError(f"packed has shape {list(packed.shape)}: expected last axis {-(-int(k) // 4)} for k = {k}")
        rows = int(np.prod(packed.shape[:-1], dtype=np.int64))
        with self._instance.arrays() as arrays:
            q = arrays.room(rows * int(k))
            self._instance.call("op_unpack_ternary", arrays.put(packed), rows, int(k), q)
            return arrays.get(q, (*packed.shape[:-1], int(k)), "int8")

    def _load(self, weights: Mapping[str, Array], config: Mapping[str, Any]) -> Engine:
        layout = "auto" if LAYOUTS[self._layout] == "fast" else LAYOUTS[self._layout]
        return Engine(dump(weights, config, prefer="speed"), layout, verify=False, instance=self._instance)

    def forward(
        self,
        ids: Array,
        weights: Mapping[str, Array],
        config: Mapping[str, Any],
        probes: MutableMapping[str, Array] | None = None,
    ) -> Float32:
        """Ids [B, T] and strict weights to logits [B, T, V]; probes as in SPEC.md."""
        config = strict_config(config)
        engine = self._load(weights, config)
        try:
            ids = _check.shaped("ids", _check.typed("ids", ids, "integer"), (None, None), "[B, T]").astype(np.int64)
            batch, tokens = ids.shape
            if tokens > config["block_size"]:
                raise CapacityError(f"{tokens} tokens where {config['block_size']} fit: shorten the sequence")
            logits = np.zeros((batch, tokens, engine.vocab_size), dtype=np.float32)
            states = np.zeros((engine.n_layer + 1, batch, tokens, engine.n_embd), dtype=np.float32)
            for b in range(batch):
                session = engine.new_session(tokens)
                for t in range(tokens):
                    session.begin(int(ids[b, t]))
                    for layer in range(engine.n_layer + 1):
                        states[layer, b, t] = session.hidden
                        session.advance()
                    session.head()
                    logits[b, t] = session.logits
                session.close()
        finally:
            engine.close()
        if probes is not None:
            probes.update({f"x.{layer}": state for layer, state in enumerate(states)})
        return logits

    def generate(
        self,
        ids: Array,
        weights: Mapping[str, Array],
        config: Mapping[str, Any],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: Any = 0,
    ) -> NDArray[np.int64]:
        """Ids [T] or [B, T] to tokens [B, max_new_tokens]."""
        config = strict_config(config)
        check_parameters(temperature, top_k, top_p, repetition_penalty)
        prompts = np.atleast_2d(_check.typed("ids", ids, "integer")).astype(np.int64)
        engine = self._load(weights, config)
        try:
            check_generation(prompts.shape, config, max_new_tokens)
            tokens = np.empty((len(prompts), max_new_tokens), dtype=np.int64)
            seeds = np.broadcast_to(_unsigned("seed", seed), (len(prompts),))
            for b, prompt in enumerate(prompts):
                session = engine.new_session()
                session.prefill(prompt)
                sampling = Sampling(temperature, top_k, top_p, repetition_penalty, int(seeds[b]))
                tokens[b] = session.generate(max_new_tokens, sampling) if max_new_tokens else []
                session.close()
        finally:
            engine.close()
        return tokens

    def cache(self, batch: int, capacity: int, heads: int, head_dim: int) -> Int8KVCache:
        """A cache in the engine, of int8 codes."""
        return Int8KVCache(self._instance, [], capacity, heads, head_dim).grow(batch)
