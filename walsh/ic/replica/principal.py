"""Principals: the bytes that name users and canisters, and their text form.

    text = groups of five of lowercase base32(crc32(bytes) || bytes), joined by "-"

A canister's bytes are its number (8 bytes, big endian) and ``0x01 0x01``; a user's are a hash and ``0x02``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

MANAGEMENT = b""
ANONYMOUS = b"\x04"


def canister_id(number: int) -> bytes:
    """Principal of the canister with this number."""
    return number.to_bytes(8, "big") + b"\x01\x01"


def user_id(name: str) -> bytes:
    """A user's principal, made from a name as if that were the public key."""
    return hashlib.sha224(name.encode()).digest() + b"\x02"


def to_text(principal: bytes) -> str:
    """Text form.

    >>> to_text(MANAGEMENT), to_text(ANONYMOUS)
    ('aaaaa-aa', '2vxsx-fae')
    """
    checked = binascii.crc32(principal).to_bytes(4, "big") + principal
    letters = base64.b32encode(checked).decode().lower().rstrip("=")
    return "-".join(letters[i : i + 5] for i in range(0, len(letters), 5))
