"""Published schemas and canonical JSON.

``conformance/schema/*.json`` forbid unknown keys: a misspelt key is an error, never a default. Canonical JSON is sorted
keys, one space of indentation, LF, ASCII and a trailing newline, so that a file has one form and a diff shows content.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no type information

from walsh.errors import VectorError

_PACKAGE = Path(__file__).resolve().parents[1]


def locate_data(vectors: Path | None = None) -> Path:
    """The folder that holds ``manifest.json``, ``vectors/``, ``policy.json`` and ``schema/``.

    Args:
        vectors: a folder chosen by the user; otherwise the package data of a wheel, else the checkout's.

    Raises:
        VectorError: if there is none.
    """
    if vectors is not None:
        if not vectors.is_dir():
            raise VectorError(f"vectors {str(vectors)!r}: not a directory; give the folder that holds manifest.json")
        return vectors
    for candidate in (_PACKAGE / "_conformance", _PACKAGE.parent / "conformance"):
        if candidate.is_dir():
            return candidate
    raise VectorError("conformance data is not installed; give it with --vectors DIR")


@cache
def _validator(name: str) -> Any:
    # Always the schemas that came with this code: those beside foreign vectors could have been relaxed with them.
    path = locate_data() / "schema" / f"{name}.schema.json"
    schema = json.loads(path.read_text("utf-8"))
    return jsonschema.Draft202012Validator(schema)


def check(name: str, document: Any, where: str) -> None:
    """Hold a document to ``schema/<name>.schema.json``.

    Raises:
        VectorError: naming the place in the document and what was expected there.
    """
    error = jsonschema.exceptions.best_match(_validator(name).iter_errors(document))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the document"
        message = error.message if len(error.message) < 300 else error.message[:300] + "..."
        raise VectorError(f"{where}: at {place}: {message}")


def dump_canonical(document: Any) -> bytes:
    """The one form in which a document is stored.

    Raises:
        ValueError: for NaN or infinity, which JSON has not; see ``walsh.suite.vectors.decode_params``.
    """
    return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return mapping


def load_canonical(data: bytes, where: str) -> Any:
    """Parse canonical JSON.

    Raises:
        VectorError: if the bytes are not JSON, or not in canonical form.
    """
    try:
        document = json.loads(data.decode("ascii"), object_pairs_hook=_no_duplicates)
        canonical = dump_canonical(document) == data
    except ValueError as error:
        raise VectorError(f"{where}: not JSON: {error}") from None
    if not canonical:
        raise VectorError(f"{where}: not canonical JSON; rewrite it with walsh.suite.schema.dump_canonical")
    return document
