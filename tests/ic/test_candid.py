"""Candid through the interface of a service, against bytes written by hand from the specification."""

import pytest

from walsh.ic.candid import Interface
from walsh.ic.errors import CandidError

DID = """
type Error = variant { NotFound; Quota : record { used : nat64; allowed : nat64 } };
type Result = variant { Ok : record { id : nat64; text : text }; Err : Error };
service : (nat32) -> {
  add : (nat8, nat8) -> (nat8);
  get : (nat64) -> (Result) query;
  put : (blob, opt text) -> ();
  all : () -> (vec record { name : text; size : nat });
}
"""


@pytest.fixture(scope="module")
def interface() -> Interface:
    return Interface(DID)


def test_methods_are_read(interface: Interface) -> None:
    assert sorted(interface.methods) == ["add", "all", "get", "put"]
    assert [name for name, method in interface.methods.items() if method.is_query] == ["get"]
    assert len(interface.init) == 1


def test_bytes_are_the_specifications(interface: Interface) -> None:
    # Magic, no types, two values of nat8 (code 0x7b), 2 and 40.
    assert interface.encode_arguments("add", 2, 40) == b"DIDL\0\x02\x7b\x7b\x02\x28"
    assert interface.decode_results("add", b"DIDL\0\x01\x7b\x2a") == [42]
    # Types: a vector of nat8 and an option of text (0x71).
    written = interface.encode_arguments("put", b"\1\2\3", ["ab"])
    assert written[:5] == b"DIDL\2"
    assert written.endswith(b"\x03\1\2\3\1\2ab")
    assert interface.decode_results("put", b"DIDL\0\0") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("get", {"Ok": {"id": 7, "text": "eight"}}),
        ("get", {"Err": {"NotFound": None}}),
        ("get", {"Err": {"Quota": {"used": 2**64 - 1, "allowed": 0}}}),
        ("all", [{"name": "a", "size": 2**90}, {"name": "", "size": 0}]),
    ],
)
def test_values_come_back(interface: Interface, name: str, value: object) -> None:
    from walsh.ic.candid import encode

    data = encode(interface.method(name).results, (value,))
    assert interface.decode_results(name, data) == [value]


@pytest.mark.parametrize(
    "data", [b"", b"DIDL", b"DIDX\0\0", b"DIDL\0\x01\x7b", b"DIDL\0\x01\x71\x05ab", b"DIDL\x01\x6d"]
)
def test_damaged_bytes_are_refused(interface: Interface, data: bytes) -> None:
    with pytest.raises(CandidError):
        interface.decode_results("add", data)


def test_mistakes_are_named(interface: Interface) -> None:
    with pytest.raises(CandidError, match="expected 2"):
        interface.encode_arguments("add", 2)
    with pytest.raises(CandidError, match="expected one of add, all"):
        interface.encode_arguments("nope")
    with pytest.raises(CandidError, match="do not fit"):
        interface.encode_arguments("add", "two", 3)
    with pytest.raises(CandidError, match="not Candid"):
        Interface("service : { this is no interface }")
