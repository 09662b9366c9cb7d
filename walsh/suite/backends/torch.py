"""``walsh.kernels.torch`` as a backend, on a CPU or a GPU.

Gradients come from automatic differentiation: ``NAME.backward`` runs ``NAME`` and pulls the upstream gradient back to
the inputs whose gradients are asked for. Arrays share their memory and strides with the tensors, and on a GPU are
copied with their strides and back, so that a kernel that changes its inputs is seen to.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from walsh import __version__
from walsh.errors import BackendError
from walsh.suite.backend import OutputMismatch, Skip, deliver
from walsh.suite.backends.calling import cache_sizes, find_function, invoke, run_script, split_params
from walsh.suite.catalog import CALLS, Call
from walsh.suite.tensors import DTYPES, Array


def check_device(device: str | None, name: str) -> torch.device:
    """The device that was asked for, cpu by default.

    Raises:
        BackendError: if torch does not know it or cannot use it here.
    """
    try:
        chosen = torch.device(device or "cpu")
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"{name}: device {device!r} cannot be used here: {reason}") from None
    return chosen


def to_torch(array: Array, device: torch.device) -> torch.Tensor:
    """A tensor with the array's dtype and strides; on a CPU it shares the array's memory."""
    if array.dtype == DTYPES["bfloat16"]:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)


def to_numpy(value: Any) -> Array:
    """A tensor (or number) as a contiguous array."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    array: Array = tensor.numpy()
    return array


def differentiate(
    call: Call,
    run: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]],
    inputs: Mapping[str, torch.Tensor],
    wanted: Mapping[str, Array],
) -> dict[str, torch.Tensor] | Skip:
    """Gradients by automatic differentiation.

    Args:
        call: a ``.backward`` call.
        run: from inputs to outputs by flat name, differentiable.
        inputs: those of the call, upstream gradients among them.
        wanted: keyed by the outputs that are asked for, such as ``dx`` and ``dtables.0``.

    Returns:
        gradients by those names, zero where an input has no influence; a Skip if the outputs know no gradient.
    """
    ordinary = CALLS.get(call.name.removesuffix(".backward"))
    sources = {name: name[1:] for name in wanted if name != "loss"}
    lacking = [source for source in sources.values() if source not in inputs]
    if lacking:
        raise OutputMismatch(f"a gradient is asked for {lacking}, which the vector does not have")
    tensors = dict(inputs)
    for source in sources.values():
        tensors[source] = inputs[source].detach().requires_grad_()
    results = run(tensors)
    heads = ["loss"] if call.function == "forward" or ordinary is None else list(ordinary.outputs)
    outputs = [results[head] for head in heads]
    if not all(output.requires_grad for output in outputs):
        return Skip("returns tensors without gradient")
    upstream = None if heads == ["loss"] and "dloss" not in inputs else [inputs["d" + head] for head in heads]
    leaves = [tensors[source] for source in sources.values()]
    gradients = torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
    found = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for name, leaf, gradient in zip(sources, leaves, gradients, strict=True)
    }
    return found | ({"loss": results["loss"]} if "loss" in wanted else {})


class TorchBackend:
    """A package of PyTorch functions; another package of the same functions is a subclass with two attributes.

    Args:
        device: such as ``cpu`` or ``cuda``.

    Raises:
        BackendError: if the package or the device is not there.
    """

    name: ClassVar[str] = "torch"
    package: ClassVar[str] = "walsh.kernels.torch"

    def __init__(self, device: str | None = None) -> None:
        """Import the package and try the device."""
        self._device = check_device(device, self.name)
        self._package = importlib.import_module(self.package)

    def describe(self) -> dict[str, Any]:
        """Name, versions and device."""
        device = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else str(self._device)
        name = self.name if self._device.type == "cpu" else f"{self.name}-{self._device.type}"
        return {"name": name, "version": f"{__version__} (torch {torch.__version__})", "own": True, "device": device}

    def run(
        self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        """Run one call; see :class:`walsh.suite.backend.Backend`."""
        del op  # the call says it
        call, keywords = split_params(params)
        tensors = {name: to_torch(array, self._device) for name, array in inputs.items()}
        try:
            results = self._call(call, keywords, tensors, out)
        finally:
            if self._device.type != "cpu":
                self._copy_back(tensors, inputs)
        if isinstance(results, Skip):
            return results
        deliver({name: to_numpy(value) for name, value in results.items()}, out)
        return None

    def _call(
        self, call: Call, keywords: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], out: Mapping[str, Array]
    ) -> Mapping[str, Any] | Skip:
        if call.function == "kv_cache":
            with torch.no_grad():
                return self._run_cache(call.kind == "strict", keywords, tensors)
        function = find_function(call, self._package)
        if call.kind != "backward":
            with torch.no_grad():
                return invoke(call, function, tensors, keywords, out)
        if call.name == "forward.backward":
            return differentiate(call, lambda given: self._loss(given, keywords), tensors, out)
        ordinary = CALLS[call.name.removesuffix(".backward")]

        def run(given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
            arguments = {name: value for name, value in given.items() if name.partition(".")[0] in ordinary.args}
            return invoke(ordinary, function, arguments, keywords, {})

        return differentiate(call, run, tensors, out)

    def _loss(self, tensors: Mapping[str, torch.Tensor], keywords: Mapping[str, Any]) -> dict[str, Any]:
        package: Any = self._package
        forward = CALLS["forward"]
        arguments = {name: value for name, value in tensors.items() if name != "targets"}
        logits = invoke(forward, package.forward, arguments, keywords, {})["logits"]
        return {"loss": package.cross_entropy(logits, tensors["targets"])}

    def _run_cache(
        self, strict: bool, params: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, Any]:
        package: Any = self._package
        kind = package.strict.Int8KVCache if strict else package.KVCache
        attention = package.strict.attention if strict else package.attention
        sizes = cache_sizes(params, tensors)
        # A cache of tensors needs to know what kind; one of codes does not.
        key = next(tensor for name, tensor in tensors.items() if name.startswith("k."))
        cache = kind(*sizes, device=self._device) if strict else kind(*sizes, dtype=key.dtype, device=self._device)
        cache, outputs = run_script(
            cache,
            attention,
            params["script"],
            tensors,
            lambda values: torch.tensor(values, dtype=torch.int64, device=self._device),
        )
        results = {"lengths": cache.lengths, **outputs}
        if not strict:
            slots = torch.arange(cache.keys.shape[1], device=cache.keys.device)
            dead = (slots >= cache.lengths.to(slots.device)[:, None])[:, :, None, None]
            results |= {"keys": cache.keys.masked_fill(dead, 0), "values": cache.values.masked_fill(dead, 0)}
        return results

    @staticmethod
    def _copy_back(tensors: Mapping[str, torch.Tensor], inputs: Mapping[str, Array]) -> None:
        """Show the runner what became of its inputs on the device."""
        for name, tensor in tensors.items():
            inputs[name][...] = to_numpy(tensor)

    def close(self) -> None:
        """Nothing to let go of."""
