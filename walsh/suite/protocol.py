"""The process protocol: one JSON object per line, UTF-8; requests on stdin, replies on stdout.

    {"message": "describe", "protocol": 1}                      -> {"description": {"name": ..., "version": ...}}
    {"message": "run", "id": 7, "op": ..., "params": {"call": ...},
     "inputs": {"x": {dtype, shape, base64}}, "outputs": {"y": {dtype, shape}}}
                                                                -> {"id": 7, "outputs": {"y": {dtype, shape, base64}}}
                                                                or {"id": 7, "skip": {"reason": ...}}
                                                                or {"id": 7, "error": {"class": ..., "message": ...}}
    {"message": "close"}                                        no reply; the process ends

Tensors are base64 or hex of the little-endian bytes in row-major order. Expected values are never sent. Parameters may
be the strings ``nan``, ``inf`` and ``-inf``. The schema is ``conformance/schema/message.schema.json``.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

from walsh.errors import VectorError, WalshError
from walsh.suite.tensors import Array, from_bytes, to_bytes

PROTOCOL = 1
"""Version of the protocol."""


class RemoteError(WalshError, RuntimeError):
    """An error that another process reported.

    Attributes:
        told_names: its class there and the classes it derives from.
    """

    def __init__(self, names: list[str], message: str) -> None:
        super().__init__(message)
        self.told_names = names


def encode_tensor(array: Array) -> dict[str, Any]:
    """``{dtype, shape, base64}``."""
    data = base64.b64encode(to_bytes(array)).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": data}


def decode_tensor(spec: Mapping[str, Any]) -> Array:
    """The array of ``{dtype, shape, base64}`` or ``{dtype, shape, hex}``.

    Raises:
        VectorError: if the data is neither, or of another length.
    """
    try:
        data = base64.b64decode(spec["base64"], validate=True) if "base64" in spec else bytes.fromhex(spec["hex"])
    except (KeyError, ValueError, binascii.Error) as error:
        raise VectorError(f"tensor data is neither base64 nor hex: {error}") from None
    return from_bytes(data, str(spec["dtype"]), tuple(spec["shape"]))


def encode_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`walsh.suite.vectors.decode_params`."""
    return {key: _encode_number(value) for key, value in params.items()}


def _encode_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
