"""Models as files have them, whatever the format, and from one format to another.

folder        a checkpoint of ours, or a run that has one        weights in float, or codes
.walsh        strict weights (conformance/FORMAT.md)             codes and scales
SPIN          the published container (``walsh.codec.spin``)     codes and scales, norms in float16
.pt           a published PyTorch checkpoint                     weights in float

trained  = weights as ``forward`` takes them                     strict = weights as ``export`` makes them
trained -> strict rounds; strict -> trained does not: ternary codes stay codes, rows are codes times scale.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.codec import reader, spin
from walsh.codec.layout import WalshFile, strict_form
from walsh.codec.rows import four_bit_rows, table_stems
from walsh.data.tokenizers import Tokenizer, from_dict
from walsh.errors import DataError, FormatError, NonFiniteError, ParameterError
from walsh.model.config import WalshConfig
from walsh.model.published import check_settings, infer_config, published_config, published_names, rename, tokenizer_for
from walsh.reference.ternary import ternary

Array = NDArray[Any]
KINDS = ("checkpoint", "walsh", "spin", "published")


@dataclass(frozen=True)
class Source:
    """A model that was read.

    Attributes:
        kind: one of ``KINDS``.
        config: complete.
        tokenizer: None if the file has none.
        given: weights as ``forward`` takes them, of kinds that have them; ternary ones may be int8 codes.
        strict: strict weights, of kinds that have them.
        size: bytes of the model on disk, without optimizer state.
        file: what a .walsh file says besides.
    """

    kind: str
    config: WalshConfig
    tokenizer: Tokenizer | None
    given: dict[str, Array] | None
    strict: dict[str, Array] | None
    size: int
    file: WalshFile | None = None

    @functools.cached_property
    def trained(self) -> dict[str, Array]:
        """Weights as ``forward`` takes them, formed from the strict ones where the file has only those."""
        return self.given if self.given is not None else trained_form(self.strict or {})


def detect(path: Path) -> str:
    """Which of ``KINDS`` a path holds.

    Raises:
        DataError: if there is nothing there, or a folder without a checkpoint.
    """
    if path.is_dir():
        return "checkpoint"
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; give a checkpoint, a .walsh, SPIN or .pt file")
    with path.open("rb") as file:
        start = file.read(4)
    if start == spin.MAGIC:
        return "spin"
    if start[:2] in (b"PK", b"\x80\x02") or path.suffix in (".pt", ".pth"):  # a zip archive, or a pickle
        return "published"
    return "walsh"


def read_source(
    path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None, characters: str | None = None
) -> Source:
    """Read a model.

    Args:
        path: of a checkpoint's or run's folder, or of a file.
        settings: configuration keys that a published file lacks or has wrong.
        characters: of a published model whose vocabulary is characters.

    Raises:
        DataError: nothing is there. FormatError: bytes that break their format. ParameterError, ShapeError, DTypeError,
        NonFiniteError: weights that do not fit the configuration.
    """
    path = Path(path)
    kind = detect(path)
    if kind in ("checkpoint", "walsh"):
        for what, given in (("characters", characters), ("settings", settings)):
            if given:
                raise ParameterError(f"{what} {given!r} with {path}: a {kind} has its own; leave them out")
    check_settings(settings or {})
    if kind == "walsh":
        with naming(path):
            return from_walsh(_read(path))
    if kind == "spin":
        with naming(path):
            return from_spin(_read(path), settings, characters)
    # Only these two need PyTorch.
    from walsh.model.checkpoint import load_checkpoint
    from walsh.model.convert import convert
    from walsh.model.text import find_checkpoint, open_model

    if kind == "published":
        checkpoint, size = convert(path, settings, characters), path.stat().st_size
    else:
        folder = find_checkpoint(path)
        checkpoint = load_checkpoint(folder, optimizer=False)
        size = (folder / "model.safetensors").stat().st_size
    open_model(checkpoint)  # checks every weight against the configuration
    trained = {name: _numpy(tensor) for name, tensor in checkpoint.weights.items()}
    config = WalshConfig.from_dict(checkpoint.model)
    return Source(kind, config, from_dict(checkpoint.tokenizer), trained, None, size)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Format errors from inside name the file."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(str(error.strerror)) from None


def _numpy(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def from_walsh(content: bytes, verify: bool = True) -> Source:
    """A source from the bytes of a .walsh file; errors as ``walsh.codec.load``."""
    file = reader.load(content, verify)
    config = WalshConfig.from_dict(file.config)
    return Source("walsh", config, file.tokenizer, None, file.weights, file.size, file)


def trained_form(strict: Mapping[str, Array]) -> dict[str, Array]:
    """Weights as ``forward`` takes them: ternary codes as they are, the others float32."""
    result: dict[str, Array] = {}
    for name, weight in strict.items():
        stem, _, leaf = name.rpartition(".")
        if name == "rope.inv_freq" or leaf == "scale":
            continue
        if leaf != "codes":
            result[name] = weight
        elif f"{stem}.scale" in strict:
            scale = strict[f"{stem}.scale"]
            value = weight.astype(np.float32) * (scale if ".mixer" in stem else scale[:, None])
            result[stem if ".tables." in stem else f"{stem}.weight"] = value
        else:
            result[f"{stem}.weight"] = weight
    return result


def strict_form_of(source: Source, rows: int | None = None) -> dict[str, Array]:
    """Strict weights of a model.

    Args:
        source: the model.
        rows: bits of the codes in embedding and head: 8, 4, or None for what the file has (8 for trained weights).

    Raises:
        StrictError: weights that are not ternary. NonFiniteError, DTypeError, ShapeError, ParameterError: weights that
        cannot be rounded.
    """
    config = strict_form(source.config.to_dict())
    strict = source.strict
    if strict is None:
        from walsh.reference.strict import export

        strict = export(source.trained, config)
    if rows == 4:
        return four_bit_rows(strict, config, source.given)
    return dict(strict)


def without_unused_rows(source: Source) -> Source:
    """The model without the rows of embedding and head that no token has (vocabularies padded to a round number)."""
    tokenizer, config = source.tokenizer, source.config
    if tokenizer is None or tokenizer.vocab_size >= config.vocab_size:
        return source
    height = tokenizer.vocab_size

    def cut(weights: Mapping[str, Array]) -> dict[str, Array]:
        stems = [stem for stem in table_stems(config.to_dict()) if ".tables." not in stem]
        tall = {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "codes", "scale")}
        tall |= {"embedding.importance", "embedding.indices"}
        return {name: weight[:height] if name in tall else weight for name, weight in weights.items()}

    smaller = WalshConfig.from_dict({**config.to_dict(), "vocab_size": height})
    strict = None if source.strict is None else cut(source.strict)
    given = None if source.given is None else cut(source.given)
    return replace(source, config=smaller, given=given, strict=strict)


def _fit(name: str, value: Array, shape: tuple[int, ...] | None) -> Array:
    """Scales may be stored as one number, or with axes of length 1; everything else is checked where it is used."""
    if shape is None or not name.endswith((".alpha", ".beta")) or value.shape == shape:
        return value
    if value.size == 1:
        return np.broadcast_to(value.reshape(()), shape).copy()
    return value.reshape(shape) if value.squeeze().shape == shape else value


def from_spin(content: bytes, settings: Mapping[str, Any] | None = None, characters: str | None = None) -> Source:
    """A source from the bytes of a SPIN file.

    Codes of embeddings stay the codes that they are, each row with the tensor's one scale.

    Raises:
        FormatError: bytes that break the format. ParameterError, ShapeError, DTypeError, NonFiniteError: records that
        are not those of one model.
    """
    records, given, _ = spin.read_records(content)
    found = rename({record.name: record for record in records})
    if "embedding.weight" in found and "head.weight" in found:
        head, table = (found[name].weight for name in ("head.weight", "embedding.weight"))
        if head.shape == table.shape and (head == table).all():
            del found["head.weight"]
    trained = {name: record.weight for name, record in found.items()}
    indices = trained.get("embedding.indices")
    if indices is not None:
        trained["embedding.indices"] = indices.astype(np.int64)
        if indices.ndim == 2 and indices.shape[0] < indices.shape[1]:
            trained["embedding.indices"] = np.ascontiguousarray(trained["embedding.indices"].T)
    config = infer_config(trained, {**given, **(settings or {})})
    shapes = config.weight_shapes()
    trained = {name: _fit(name, value, shapes.get(name)) for name, value in trained.items()}
    for name, value in trained.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NonFiniteError(f"record of {name!r} holds NaN or infinity: no model can be run with it")
    tokenizer = tokenizer_for(config.vocab_size, characters)
    source = Source("spin", config, tokenizer, trained, None, len(content))
    strict = strict_form_of(source)
    for stem in table_stems(config.to_dict()):
        record = found[stem if ".tables." in stem else f"{stem}.weight"]
        if record.scale is not None and int(record.values.min()) >= -127 and record.scale >= 0:
            strict[f"{stem}.codes"] = record.values
            strict[f"{stem}.scale"] = np.full(record.values.shape[0], record.scale, dtype=np.float32)
    return replace(source, strict=strict)


_MARKERS = ((".mixer.weight", "H"), (".mixer.beta", "h"), (".alpha", "L"), (".beta", "S"), ("norm.weight", "N"))


def _marker(name: str) -> str:
    if name in ("embedding.weight", "head.weight"):
        return "E"
    if name.startswith("embedding."):
        return {"importance": "I", "indices": "J"}.get(name.removeprefix("embedding."), "A")
    return next((marker for end, marker in _MARKERS if name.endswith(end)), "B")


def to_spin(source: Source) -> bytes:
    """The published container, version 4, of a model: rows get one scale for all, norms and scales float16.

    Raises:
        ParameterError: a model that published code cannot be told of.
    """
    config = published_config(source.config)
    weights, markers = {}, {}
    for ours, theirs in published_names(source.config, "embedding.indices" in source.trained).items():
        value, marker = source.trained[ours], _marker(ours)
        if marker == "B" and value.dtype != np.int8:
            value = ternary(value, source.config.rule)[0]
        weights[theirs], markers[theirs] = value, marker
    return spin.dump(weights, config, markers)


def tokenizer_record(source: Source) -> dict[str, Any]:
    """The tokenizer as a checkpoint has it.

    Raises:
        ParameterError: a file without one, or with ranks that are not GPT-2's.
    """
    if source.tokenizer is None:
        raise ParameterError("the file has no tokenizer: a checkpoint needs one")
    record = source.tokenizer.to_dict()
    if record["kind"] == "gpt2" and source.tokenizer.end_token != 50256:
        raise ParameterError("the file's byte pairs are not GPT-2's: a checkpoint cannot hold them")
    return record
