"""Candid, the platform's interface language: text of a ``.did`` file to functions from values to bytes and back.

A thin layer over the maintained library ``icp-py-core``, which parses ``.did`` text and encodes values. It adds typed
errors. Values are plain Python: records are dictionaries by field name, variants dictionaries with one entry, ``opt``
a list of none or one, ``blob`` bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from walsh.errors import BackendError
from walsh.ic.errors import CandidError

_FAILURES = (struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError)
"""What the library raises for values and bytes that do not fit."""


def _library(module: str) -> Any:
    """A module of icp-py-core, imported when first needed: counting instructions does without it."""
    try:
        return import_module(f"icp_candid.{module}")
    except ImportError as error:
        raise BackendError("Candid needs icp-py-core: install walsh[ic]") from error


@dataclass(frozen=True)
class Method:
    """A method's types and modes (``query``, ``oneway``)."""

    name: str
    arguments: tuple[Any, ...]
    results: tuple[Any, ...]
    modes: tuple[str, ...]

    @property
    def is_query(self) -> bool:
        """Whether it is called without consensus."""
        return "query" in self.modes


class Interface:
    """A service described in Candid.

    Args:
        did: text of a ``.did`` file.

    Raises:
        CandidError: if the text is not Candid.
        BackendError: if icp-py-core is not installed.
    """

    def __init__(self, did: str) -> None:
        try:
            parsed = _library("did_loader").DIDLoader().load_did_source(did)
        except (ValueError, KeyError, TypeError) as error:
            raise CandidError(f"the interface is not Candid: {error}") from error
        self.init: tuple[Any, ...] = tuple(parsed["arguments"])
        self.methods: dict[str, Method] = {
            name: Method(name, tuple(found.argTypes), tuple(found.retTypes), tuple(found.annotations))
            for name, found in parsed["methods"].items()
        }

    def method(self, name: str) -> Method:
        """A method by name.

        Raises:
            CandidError: if the service has none of that name.
        """
        if name not in self.methods:
            raise CandidError(f"method {name!r}: expected one of {', '.join(sorted(self.methods))}")
        return self.methods[name]

    def encode_arguments(self, name: str, *values: Any) -> bytes:
        """Arguments of a method as bytes."""
        return encode(self.method(name).arguments, values)

    def decode_results(self, name: str, data: bytes) -> list[Any]:
        """Results of a method from bytes."""
        return decode(self.method(name).results, data)


def encode(types: tuple[Any, ...], values: tuple[Any, ...]) -> bytes:
    """Values as Candid bytes.

    Args:
        types: the library's types, such as an :class:`Interface` holds.
        values: one Python value for each.

    Raises:
        CandidError: if there are more or fewer values than types, or one does not fit.
    """
    if len(types) != len(values):
        raise CandidError(f"{len(values)} values: expected {len(types)}")
    params = [{"type": kind, "value": value} for kind, value in zip(types, values, strict=True)]
    try:
        return bytes(_library("candid").encode(params))
    except _FAILURES as error:
        raise CandidError(f"values {values!r} do not fit their types: {error}") from error


def decode(types: tuple[Any, ...], data: bytes) -> list[Any]:
    """Candid bytes as Python values.

    Raises:
        CandidError: for bytes that are no Candid, or values of other types.
    """
    try:
        found = _library("candid").decode(data, list(types))
    except _FAILURES as error:
        raise CandidError(f"{len(data)} bytes are not Candid of these types: {error}") from error
    return [item["value"] for item in found][: len(types)]
