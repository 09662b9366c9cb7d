r"""Candid's textual values, as the platform's tools take them, and JSON: to the values of :mod:`walsh.ic.candid`.

    (variant { Text = "Once" }, 5 : nat32, null, opt 3, vec { 1; 2 }, record { a = true }, blob "\00\ff")

Annotations of types are read and ignored: the interface knows the types. In JSON a blob is ``{"base64": "..."}``.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from walsh.ic.errors import CandidError

_TOKEN = re.compile(
    r"""\s+|//[^\n]*|(?P<string>"(?:[^"\\]|\\.)*")|(?P<hex>0x[0-9a-fA-F_]+)"""
    r"""|(?P<number>[+-]?\d[\d_]*(?:\.[\d_]*)?(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)|(?P<mark>[(){};,=:])""",
    re.ASCII,
)
_ESCAPES = {"n": 10, "r": 13, "t": 9, '"': 34, "'": 39, "\\": 92}
_WORDS = {"null": None, "true": True, "false": False}


def _unescape(text: str) -> bytes:
    r"""Bytes of a quoted string: ``\xx`` is a byte, ``\u{...}`` a character."""
    out, at = bytearray(), 0
    while at < len(text):
        if text[at] != "\\":
            out += text[at].encode()
            at += 1
        elif text[at + 1] in _ESCAPES:
            out.append(_ESCAPES[text[at + 1]])
            at += 2
        elif found := re.compile(r"u\{([0-9a-fA-F_]+)\}").match(text, at + 1):
            out += chr(int(found[1], 16)).encode()
            at = found.end()
        elif found := re.compile(r"[0-9a-fA-F]{2}").match(text, at + 1):
            out.append(int(found[0], 16))
            at = found.end()
        else:
            raise CandidError(
                f"escape {text[at : at + 2]!r} in a string: expected \\n, \\\\, \\u{{...}} or two hex digits"
            )
    return bytes(out)


class _Parser:
    """Reads one argument sequence, token by token."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise CandidError(f"character {text[at]!r} at {at} of textual Candid; expected a value")
            if found.lastgroup:
                self.tokens.append((found.lastgroup, found[0]))
            at = found.end()
        self.at = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end")

    def next(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, mark: str) -> None:
        kind, text = self.next()
        if (kind, text) != ("mark", mark):
            raise CandidError(f"{text!r} in textual Candid: expected {mark!r}")

    def skip(self, mark: str) -> bool:
        if self.peek() == ("mark", mark):
            self.at += 1
            return True
        return False

    def arguments(self) -> list[Any]:
        self.expect("(")
        found = self.items(")", ",", self.value)
        if self.peek()[0] != "end":
            raise CandidError(f"{self.peek()[1]!r} after the arguments: expected nothing")
        return found

    def items(self, end: str, separator: str, read: Any) -> list[Any]:
        found = []
        while not self.skip(end):
            found.append(read())
            if not self.skip(separator):
                self.expect(end)
                break
        return found

    def value(self) -> Any:
        found = self.bare()
        if self.skip(":"):
            kind, text = self.next()
            if kind != "word":
                raise CandidError(f"{text!r} after ':': expected a type's name")
            if text.startswith("float") and isinstance(found, int):
                found = float(found)
        return found

    def bare(self) -> Any:
        kind, text = self.next()
        if kind == "string":
            return _unescape(text[1:-1]).decode("utf-8", errors="replace")
        if kind == "hex":
            return int(text, 16)
        if kind == "number":
            plain = text.replace("_", "")
            return float(plain) if set(plain) & set(".eE") else int(plain)
        if kind == "word" and text in _WORDS:
            # null is an opt that is not there, as far as values of canisters go; see `arguments_of` for the others.
            return _WORDS[text] if text != "null" else []
        if kind == "word":
            return self.composed(text)
        raise CandidError(f"{text!r} in textual Candid: expected a value")

    def composed(self, word: str) -> Any:
        if word == "opt":
            return [self.bare()]
        if word in {"blob", "principal"}:
            kind, text = self.next()
            if kind != "string":
                raise CandidError(f"{text!r} after {word}: expected a quoted string")
            content = _unescape(text[1:-1])
            return content if word == "blob" else content.decode()
        if word == "vec":
            self.expect("{")
            return self.items("}", ";", self.value)
        if word == "record":
            self.expect("{")
            return dict(self.items("}", ";", self.field))
        if word == "variant":
            self.expect("{")
            key, value = self.field()
            self.skip(";")
            self.expect("}")
            return {key: None if value == [] else value}
        raise CandidError(f"{word!r} in textual Candid: expected a value such as opt, vec, record, variant or a number")

    def field(self) -> tuple[str, Any]:
        kind, text = self.next()
        if kind not in {"word", "string", "number"}:
            raise CandidError(f"{text!r} in a record or variant: expected a field's name")
        name = _unescape(text[1:-1]).decode() if kind == "string" else text
        return name, self.value() if self.skip("=") else []


def parse(text: str) -> list[Any]:
    """Arguments in textual Candid; ``null`` becomes an ``opt`` that is not there.

    Raises:
        CandidError: for anything else.

    >>> parse('(7 : nat64, variant { Text = "Hi" }, null)')
    [7, {'Text': 'Hi'}, []]
    """
    return _Parser(text).arguments()


def from_json(value: Any) -> Any:
    """Python values of JSON ones: ``{"base64": ...}`` is a blob, ``null`` as in a variant.

    Raises:
        CandidError: for text that is not base64.
    """
    if isinstance(value, dict):
        if set(value) == {"base64"}:
            try:
                return base64.b64decode(value["base64"], validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise CandidError(f"base64 {value['base64']!r}: {error}") from error
        return {key: from_json(item) for key, item in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value


def to_json(value: Any) -> Any:
    """What JSON can write of a Candid value."""
    if isinstance(value, bytes | bytearray):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def fitted(kind: Any, value: Any) -> Any:
    """A value as its type wants it: fields of ``opt`` that are not given become none, a bare value of one becomes one.

    Args:
        kind: a type of :mod:`walsh.ic.candid`.
        value: what was written.
    """
    name = type(kind).__name__
    if name == "RecClass":
        return fitted(kind._type, value)
    if name == "OptClass":
        if value is None or value == []:
            return []
        return [fitted(kind._type, value[0] if isinstance(value, list) and len(value) == 1 else value)]
    if name == "VecClass" and isinstance(value, list):
        return [fitted(kind._type, item) for item in value]
    if name == "FloatClass" and isinstance(value, int):
        return float(value)
    if name in {"RecordClass", "VariantClass"} and isinstance(value, dict):
        fields = dict(kind._field_map.values())
        unknown = value.keys() - fields.keys()
        if unknown:
            raise CandidError(f"field {sorted(unknown)[0]!r}: expected one of {', '.join(sorted(fields))}")
        if name == "VariantClass":
            return {key: fitted(fields[key], item) for key, item in value.items()}
        absent: dict[str, Any] = {key: [] for key, field in fields.items() if type(field).__name__ == "OptClass"}
        return absent | {key: fitted(fields[key], item) for key, item in value.items()}
    return value
