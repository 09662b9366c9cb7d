"""A canister that one can call on this machine: the replica in miniature behind HTTP on localhost.

    GET  /health, /metrics, /        what the canister answers to http_request
    POST /call {"method": "health", "args": [], "caller": "alice"}
         -> {"reply": [...], "kind": "query", "instructions": 12345, "cycles": 0}

``args`` is a list in JSON, or textual Candid in one string. A round passes every second, so timers run. One request is
served at a time: there is one canister, and it works on one message at a time on the platform too.
"""

from __future__ import annotations

import base64
import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from walsh.ic.canister.client import Client, interface
from walsh.ic.errors import CandidError, RejectError
from walsh.ic.replica import ANONYMOUS, user_id
from walsh.ic.textual import fitted, from_json, parse, to_json

LARGEST = 8 << 20
"""Bytes of a request's body at most; a message of the platform has 2 MiB, and JSON is longer than Candid."""


def principal_of(caller: str | None) -> bytes | None:
    """Who calls: None is the controller, ``anonymous`` nobody, ``{xxxxx-...}`` a principal, any other name a user.

    Raises:
        CandidError: for text that looks like a principal and is not one.
    """
    if caller is None or caller == "controller":
        return None
    if caller == "anonymous":
        return ANONYMOUS
    letters = caller.replace("-", "")
    if "-" in caller and caller == caller.lower():
        try:
            return base64.b32decode(letters.upper() + "=" * (-len(letters) % 8))[4:]
        except ValueError as error:
            raise CandidError(f"caller {caller!r} is no principal: {error}; names have no hyphen") from error
    return user_id(caller)


def call(client: Client, request: Any) -> dict[str, Any]:
    """Answer one POST /call.

    Raises:
        CandidError: for a request of another form, an unknown method, or arguments that do not fit it.
        RejectError: if the platform rejects the call.
    """
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        raise CandidError('the body is not {"method": TEXT, "args": [...], "caller": TEXT}')
    args = request.get("args", [])
    if not isinstance(args, str | list):
        raise CandidError(f"args {args!r}: expected a list, or textual Candid in a string")
    values = parse(args) if isinstance(args, str) else [from_json(value) for value in args]
    name, sender = request["method"], principal_of(request.get("caller"))
    method = interface().method(name)
    query = method.is_query
    if len(values) == len(method.arguments):
        values = [fitted(kind, value) for kind, value in zip(method.arguments, values, strict=True)]
    argument = interface().encode_arguments(name, *values)
    replica, before = client.replica, client.canister.cycles
    replica.receipts.clear()
    send = client.canister.query if query else client.canister.update
    reply = interface().decode_results(name, send(name, argument, sender))
    own = [receipt.instructions for receipt in replica.receipts if receipt.method == name]
    return {
        "reply": to_json(reply),
        "kind": "query" if query else "update",
        "instructions": own[-1],
        "cycles": before - client.canister.cycles,
    }


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, status: int, value: Any) -> None:
        self._answer(status, json.dumps(value).encode() + b"\n", [("content-type", "application/json")])

    def do_GET(self) -> None:
        """Let the canister answer."""
        headers = list(self.headers.items())
        request = {"method": self.command, "url": self.path, "headers": headers, "body": b""}
        try:
            found = self.server.client.call("http_request", request)
        except (RejectError, CandidError) as error:
            self._json(502, {"error": str(error)})
            return
        self._answer(found["status_code"], bytes(found["body"]), _pairs(found["headers"]))

    def do_HEAD(self) -> None:
        """The same without the body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Call a method."""
        size = self.headers.get("content-length", "")
        if self.path != "/call" or not size.isdigit() or int(size) > LARGEST:
            self.close_connection = True  # the body stays unread
            expected = f"POST /call with a content-length of at most {LARGEST}"
            self._json(404 if self.path != "/call" else 413, {"error": f"{self.path}: expected {expected}"})
            return
        try:
            request = json.loads(self.rfile.read(int(size)))
            self._json(200, call(self.server.client, request))
        except RejectError as error:
            self._json(422, {"error": error.message, "reject_code": int(error.code)})
        except (CandidError, ValueError) as error:
            self._json(400, {"error": str(error)})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's signature
        """Say nothing."""


def _pairs(headers: Any) -> list[tuple[str, str]]:
    """Header fields of a Candid record with two unnamed fields, as this library decodes it."""
    return [tuple(field.values()) if isinstance(field, dict) else tuple(field) for field in headers]


class Server(HTTPServer):
    """Serves one canister.

    Args:
        client: its controller.
        port: on localhost; 0 for any that is free.
    """

    def __init__(self, client: Client, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.client, self._last = client, time.monotonic()
        client.replica.time_ns = max(client.replica.time_ns, time.time_ns())

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def service_actions(self) -> None:
        """Let a round pass for every second, without catching up on those in which nobody waited."""
        if time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            self.client.replica.tick()
