"""The canister as a backend: strict forward passes and generation by its public methods, in the replica in miniature.

A model is uploaded, loaded and talked to as on the Internet Computer; nothing reaches into the canister. Work is cut
into messages of changing size, which must not change a bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh import __version__
from walsh import errors as walsh_errors
from walsh.codec import dump
from walsh.errors import (
    BackendError,
    CapacityError,
    DTypeError,
    ParameterError,
    RangeError,
    ShapeError,
    WalshError,
)
from walsh.ic.canister import Client, RefusedError, deploy
from walsh.ic.canister.module import read_record
from walsh.reference.strict.forward import check_generation
from walsh.reference.strict.sampling import check_parameters
from walsh.reference.strict.weights import strict_config
from walsh.suite.backend import Skip, deliver
from walsh.suite.backends.calling import invoke, split_params
from walsh.suite.tensors import Array

CALLS = ("forward.strict", "generate.strict")
"""What a canister does."""
BUDGETS = (None, 1, 2_000_000, 7_000_000)
"""Instructions of a message, in turns."""


def _class_of(refusal: RefusedError) -> WalshError:
    """The error of ``walsh.errors`` that a refusal stands for."""
    if refusal.kind == "Engine":
        kind = next(iter(refusal.detail["kind"]))
        found: type[WalshError] = getattr(walsh_errors, f"{kind}Error")
        return found(str(refusal.detail["message"]))
    if refusal.kind == "Capacity":
        return CapacityError(str(refusal))
    if refusal.kind == "InvalidArgument" and refusal.detail["field"] == "prompt":
        return RangeError(str(refusal))
    return ParameterError(str(refusal))


class CanisterBackend:
    """``forward.strict`` and ``generate.strict`` by the canister.

    Args:
        device: ``cpu``, or None.

    Raises:
        BackendError: for another device, or if wasmtime, Candid or the module is missing.
    """

    def __init__(self, device: str | None = None) -> None:
        if device not in (None, "cpu"):
            raise BackendError(f"canister: device {device!r}; the replica in miniature runs on cpu only")
        read_record()
        self._budgets = itertools.cycle(BUDGETS)

    def describe(self) -> dict[str, Any]:
        """Name, digest of the module, and the calls that it computes."""
        version = f"{__version__} (module {read_record()['sha256'][:12]})"
        return {"name": "canister", "version": version, "own": True, "device": "cpu", "calls": list(CALLS)}

    def run(
        self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        """Run one call; see :class:`walsh.suite.backend.Backend`."""
        del op  # the call says it
        call, keywords = split_params(params)
        if call.name not in CALLS:
            return Skip("a canister talks: single operations are the engine's, which it is built from (backend wasm)")
        function = self.forward if call.name == "forward.strict" else self.generate
        try:
            results = invoke(call, function, inputs, keywords, out)
        except RefusedError as refusal:
            raise _class_of(refusal) from refusal
        deliver({name: np.asarray(value) for name, value in results.items()}, out)
        return None

    def forward(
        self,
        ids: Array,
        weights: Mapping[str, Array],
        config: Mapping[str, Any],
        probes: MutableMapping[str, Array] | None = None,
    ) -> NDArray[np.float32]:
        """Ids [B, T] and strict weights to logits [B, T, V]; probes as in SPEC.md."""
        ids = _integers(ids)
        if ids.ndim != 2:
            raise ShapeError(f"ids has shape {list(ids.shape)}: expected [B, T]")
        client = deploy(dump(weights, strict_config(config)))
        [model] = client.call("health")["model"]
        if ids.shape[1] > model["block_size"]:
            raise CapacityError(f"{ids.shape[1]} tokens where {model['block_size']} fit: shorten the sequence")
        logits = np.zeros((*ids.shape, model["vocab_size"]), dtype=np.float32)
        states = np.zeros((model["n_layer"] + 1, *ids.shape, model["n_embd"]), dtype=np.float32)
        for b, row in enumerate(ids.tolist()):
            session = client.start()
            for t, token in enumerate(row):
                client.prefill(session, [token], next(self._budgets))
                while client.call("score", session, _option(next(self._budgets)))["rows"] < model["vocab_size"]:
                    pass
                logits[b, t] = np.frombuffer(client.call("logits", session), dtype="<f4")
            if probes is not None and row:
                self._probe(client, session, row, states[:, b])
            client.call("end", session)
        if probes is not None:
            probes.update({f"x.{layer}": state for layer, state in enumerate(states)})
        return logits

    @staticmethod
    def _probe(client: Client, session: int, tokens: list[int], states: NDArray[np.float32]) -> None:
        """Read tokens block by block; states [layers + 1, T, C] are the residual stream in between."""
        client.call("start_generation", session, {"Tokens": tokens}, 1)
        for t in range(len(tokens)):
            client.call("start_forward", session)
            states[0, t] = np.frombuffer(client.call("hidden", session), dtype="<f4")
            for state in states[1:]:
                client.call("process_layers", session, 1)
                state[t] = np.frombuffer(client.call("hidden", session), dtype="<f4")
            if len(states) == 1:
                client.call("process_layers", session, 1)  # no blocks, but the token has to pass them

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
        prompts = np.atleast_2d(_integers(ids))
        config = strict_config(config)
        check_parameters(temperature, top_k, top_p, repetition_penalty)
        check_generation(prompts.shape, config, max_new_tokens)
        client = deploy(dump(weights, config))
        seeds = np.broadcast_to(np.asarray(seed), (len(prompts),))
        tokens = np.empty((len(prompts), max_new_tokens), dtype=np.int64)
        for b, prompt in enumerate(prompts.tolist()):
            session = client.start(
                temperature=float(temperature),
                top_k=int(top_k),
                top_p=float(top_p),
                repetition_penalty=float(repetition_penalty),
                seed=int(seeds[b]) & ((1 << 64) - 1),
                stop_at_end=False,
            )
            client.prefill(session, prompt, next(self._budgets))
            tokens[b] = client.generate(session, max_new_tokens, next(self._budgets)).tokens if max_new_tokens else []
            client.call("end", session)
        return tokens

    def close(self) -> None:
        """Nothing to let go of but memory."""


def _integers(ids: Array) -> NDArray[np.int64]:
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise DTypeError(f"ids are {ids.dtype}: expected integers")
    if ids.size and ids.min() < 0:
        raise RangeError(f"id {ids.min()}: expected 0 and up")
    return ids.astype(np.int64)


def _option(value: int | None) -> list[int]:
    return [] if value is None else [value]
