"""Packings of ternary tensors and of int4 rows: codes to bytes and back, and the choice between them.

    two_bits        code q + 1 in two bits, four to a byte, least significant first            2 bits a weight
    base3           five trits q + 1 to a byte, the first the least significant digit          1.6 bits
    bitmask         one bit per weight, then one sign bit per non-zero                         1 + (1 - p0) bits
    base3_deflate   base3 through zlib, Huffman codes only                                     near the entropy
    int4            rows of codes in -7 .. 7, stored as code + 8, the even feature in the low half    4 bits

All run over the flattened (row-major) tensor. Padding codes are zero weights. A byte of base3 is a symbol of five
weights, so that Huffman's whole bits cost little: close to the entropy at every share of zeros.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walsh.errors import DTypeError, FormatError, ParameterError, ShapeError

Codes = NDArray[np.int8]
Bytes = NDArray[np.uint8]

TERNARY = ("base3_deflate", "base3", "bitmask", "two_bits")
"""Packings of ternary tensors, in the order in which ties are decided."""

SPEED = ("two_bits", "base3", "bitmask", "base3_deflate")
"""The same, fastest decoder first."""

_POWERS = np.array([1, 3, 9, 27, 81], dtype=np.uint8)
_TRITS = ((np.arange(243)[:, None] // _POWERS) % 3 - 1).astype(np.int8)  # [243, 5]
_PAIRS = ((np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3).astype(np.int8)  # [256, 4]


def _padded(codes: Codes, multiple: int) -> NDArray[np.uint8]:
    """Codes + 1, flat, with zero weights up to a multiple."""
    digits = np.ones(-(-codes.size // multiple) * multiple, dtype=np.uint8)
    digits[: codes.size] = (codes.ravel() + np.int8(1)).view(np.uint8)
    return digits.reshape(-1, multiple)


def _pack_two_bits(codes: Codes) -> Bytes:
    digits = _padded(codes, 4)
    shifted = digits << np.array([0, 2, 4, 6], dtype=np.uint8)
    packed: Bytes = np.bitwise_or.reduce(shifted, axis=1)
    return packed


def _pack_base3(codes: Codes) -> Bytes:
    digits = _padded(codes, 5)
    packed = digits[:, 4].copy()
    for column in (3, 2, 1, 0):  # Horner's rule stays within a byte: 242 at most
        packed *= 3
        packed += digits[:, column]
    return packed


def _pack_bitmask(codes: Codes) -> Bytes:
    flat = codes.ravel()
    occupied = flat != 0
    return np.concatenate(
        [np.packbits(occupied, bitorder="little"), np.packbits(flat[occupied] > 0, bitorder="little")]
    )


def _pack_deflated(codes: Codes) -> Bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(stream.compress(_pack_base3(codes).tobytes()) + stream.flush(), dtype=np.uint8)


def require_ternary(codes: Codes) -> Codes:
    """``codes``, which must be int8 in {-1, 0, 1}.

    Raises:
        DTypeError, ParameterError: if not.
    """
    if codes.dtype != np.int8:
        raise DTypeError(f"codes have dtype {codes.dtype}: expected int8; convert them first")
    if codes.size and (int(codes.min()) < -1 or int(codes.max()) > 1):
        bad = codes[(codes < -1) | (codes > 1)][0]
        raise ParameterError(f"codes hold {bad}: expected -1, 0 or 1; round them with `ternary`")
    return codes


def pack(codes: Codes, packing: str) -> Bytes:
    """Codes as bytes.

    Args:
        codes: int8 [...] in {-1, 0, 1}; for ``int4`` [..., K] in -7 .. 7, K even.
        packing: one of ``TERNARY``, or ``int4``.

    Returns:
        uint8 [bytes].

    Raises:
        ParameterError: an unknown packing, or codes outside its range.
        DTypeError, ShapeError: codes of another dtype, an odd K.
    """
    if packing == "int4":
        return _pack_int4(codes)
    packers = {
        "two_bits": _pack_two_bits,
        "base3": _pack_base3,
        "bitmask": _pack_bitmask,
        "base3_deflate": _pack_deflated,
    }
    if packing not in packers:
        raise ParameterError(f"packing {packing!r}: expected one of {', '.join([*packers, 'int4'])}")
    return packers[packing](require_ternary(codes))


def unpack(stored: Bytes, packing: str, shape: Sequence[int]) -> Codes:
    """The inverse of :func:`pack`.

    Args:
        stored: uint8 [bytes].
        packing: how it was packed.
        shape: of the codes.

    Returns:
        int8 of this shape.

    Raises:
        FormatError: bytes that break the packing: a wrong number of them, a code that is none, padding that is not zero
            weights, a damaged stream, an unknown packing.
    """
    size = int(np.prod(shape, dtype=np.int64))
    unpackers = {
        "two_bits": _unpack_two_bits,
        "base3": _unpack_base3,
        "bitmask": _unpack_bitmask,
        "base3_deflate": _unpack_deflated,
        "int4": _unpack_int4,
    }
    if packing not in unpackers:
        raise FormatError(f"packing {packing!r}: expected one of {', '.join(unpackers)}")
    return unpackers[packing](stored, size).reshape(shape)


def _expect(stored: Bytes, expected: int, what: str) -> None:
    if stored.size != expected:
        raise FormatError(f"{stored.size} bytes of {what}: expected {expected}")


def _without_padding(codes: Codes, size: int) -> Codes:
    if codes[size:].any():
        raise FormatError("padding codes are not zero weights; the tensor is damaged or of another shape")
    return codes[:size]


def _unpack_two_bits(stored: Bytes, size: int) -> Codes:
    _expect(stored, -(-size // 4), "two-bit codes")
    codes = _PAIRS[stored].ravel() - np.int8(1)
    if (codes == 2).any():
        raise FormatError("packed weights hold code 3: expected 0, 1 or 2")
    return _without_padding(codes, size)


def _unpack_base3(stored: Bytes, size: int) -> Codes:
    _expect(stored, -(-size // 5), "base-3 codes")
    if stored.size and int(stored.max()) > 242:
        raise FormatError(f"byte {int(stored.max())} in base-3 codes: five trits end at 242")
    return _without_padding(_TRITS[stored].ravel(), size)


def _unpack_bitmask(stored: Bytes, size: int) -> Codes:
    mask_bytes = -(-size // 8)
    if stored.size < mask_bytes:
        raise FormatError(f"{stored.size} bytes of bitmask: expected a mask of {mask_bytes}")
    bits = np.unpackbits(stored[:mask_bytes], bitorder="little")
    signs = np.unpackbits(stored[mask_bytes:], bitorder="little")
    count = int(bits.sum(dtype=np.int64))
    _expect(stored[mask_bytes:], -(-count // 8), "signs")
    if bits[size:].any() or signs[count:].any():
        raise FormatError("a padding bit of the bitmask is set")
    codes = np.zeros(size, dtype=np.int8)
    codes[bits[:size].view(np.bool_)] = signs[:count].view(np.int8) * np.int8(2) - np.int8(1)
    return codes


def inflate(stored: bytes, size: int) -> bytes:
    """A zlib stream of exactly this many bytes.

    Raises:
        FormatError: if the stream is damaged, or longer or shorter than that; never more than ``size`` + 1 are made.
    """
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(stored, size + 1)
    except zlib.error as error:
        raise FormatError(f"damaged stream: {error}") from None
    # A stream of the right length may still owe its checksum.
    if len(content) == size and not stream.eof:
        try:
            content += stream.decompress(stream.unconsumed_tail, 1)
        except zlib.error as error:
            raise FormatError(f"damaged stream: {error}") from None
    if len(content) != size or not stream.eof or stream.unused_data or stream.unconsumed_tail:
        raise FormatError(f"a stream that is not of exactly {size} bytes")
    return content


def _unpack_deflated(stored: Bytes, size: int) -> Codes:
    content = inflate(stored.tobytes(), -(-size // 5))
    return _unpack_base3(np.frombuffer(content, dtype=np.uint8), size)


def _pack_int4(codes: Codes) -> Bytes:
    if codes.dtype != np.int8:
        raise DTypeError(f"codes have dtype {codes.dtype}: expected int8; convert them first")
    if codes.ndim == 0 or codes.shape[-1] % 2:
        raise ShapeError(f"int4 rows of shape {list(codes.shape)}: expected an even last axis")
    if codes.size and (int(codes.min()) < -7 or int(codes.max()) > 7):
        raise ParameterError(f"codes span {codes.min()} .. {codes.max()}: int4 rows hold -7 .. 7")
    halves = (codes + np.int8(8)).astype(np.uint8).reshape(-1, 2)
    packed: Bytes = np.bitwise_or.reduce(halves << np.array([0, 4], dtype=np.uint8), axis=1)
    return packed


def _unpack_int4(stored: Bytes, size: int) -> Codes:
    _expect(stored, size // 2 if size % 2 == 0 else -1, "int4 codes")
    halves = np.stack([stored & 15, stored >> 4], axis=-1).ravel()
    if not halves.all():
        raise FormatError("an int4 row holds code -8: expected -7 .. 7")
    return halves.astype(np.int8) - np.int8(8)


def fits_int4(codes: NDArray[Any]) -> bool:
    """Whether rows of codes can be stored in four bits without loss."""
    return (
        codes.ndim == 2
        and codes.shape[1] % 2 == 0
        and codes.size > 0
        and int(np.abs(codes.astype(np.int16)).max()) <= 7
    )


def compare(codes: Codes, prefer: str = "size") -> tuple[str, Bytes, dict[str, int]]:
    """The best packing of a ternary tensor, and what it was compared with.

    Args:
        codes: int8 [...] in {-1, 0, 1}.
        prefer: ``size``, or ``speed`` of decoding, which needs no comparison.

    Returns:
        (packing, bytes, size in bytes of every packing that was tried).

    Raises:
        ParameterError: another preference, or codes that are not ternary.
    """
    if prefer == "speed":
        return SPEED[0], pack(codes, SPEED[0]), {}
    if prefer != "size":
        raise ParameterError(f"prefer {prefer!r}: expected size or speed")
    packed = {packing: pack(codes, packing) for packing in TERNARY}
    best = min(packed, key=lambda packing: (packed[packing].size, SPEED.index(packing)))
    return best, packed[best], {packing: found.size for packing, found in packed.items()}


def choose(codes: Codes, prefer: str = "size") -> tuple[str, Bytes]:
    """(packing, bytes) of the best packing; arguments and errors as :func:`compare`."""
    return compare(codes, prefer)[:2]
