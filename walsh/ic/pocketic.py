"""A client of the PocketIC server, by its public HTTP interface: start it, make an instance, install, call.

    POST /instances                                      -> {"Created": {"instance_id": N, "topology": {...}}}
    POST /instances/N/update/submit_ingress_message      -> {"Ok": {"effective_principal": ..., "message_id": ...}}
    POST /instances/N/update/await_ingress_message       -> {"Ok": reply in base64} or {"Err": ...}
    POST /instances/N/read/query                         -> likewise

A server that is at work answers 409, one that works on this request 202 with an operation to ask for. Whether a given
version of the server speaks exactly this is found out by asking it: whatever it says otherwise is a BackendError.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from walsh.errors import BackendError
from walsh.ic.candid import Interface
from walsh.ic.errors import RejectCode, RejectError
from walsh.ic.replica.principal import MANAGEMENT, to_text

VARIABLE = "POCKET_IC_BIN"
HOW = (
    f"set {VARIABLE} to a PocketIC server (the `pocket-ic` program of github.com/dfinity/pocketic/releases, "
    "version 7 or later); no receipt is claimed without one"
)
_MANAGEMENT = """service : {
  provisional_create_canister_with_cycles : (record {
    amount : opt nat; settings : opt record { controllers : opt vec principal }
  }) -> (record { canister_id : principal });
  install_code : (record {
    mode : variant { install; reinstall }; canister_id : principal; wasm_module : blob; arg : blob }) -> ();
}"""
_CYCLES = 1_000_000_000_000_000


def find_server() -> Path:
    """The server that ``POCKET_IC_BIN`` names.

    Raises:
        BackendError: if there is none.
    """
    named = os.environ.get(VARIABLE, "")
    if not named:
        raise BackendError(f"no PocketIC server: {HOW}")
    if not os.access(named, os.X_OK) or not Path(named).is_file():
        raise BackendError(f"{VARIABLE}={named} is no program that can be run: {HOW}")
    return Path(named)


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Server:
    """A running server, started for this process and ended with ``close``.

    Args:
        program: see :func:`find_server`.
        patience: seconds until it must have named its port.

    Raises:
        BackendError: if it does not start.
    """

    def __init__(self, program: Path, patience: float = 30) -> None:
        self._folder = tempfile.TemporaryDirectory()
        port_file = Path(self._folder.name) / "port"
        command = [str(program), "--port-file", str(port_file), "--ttl", "300"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + patience
        while not (port_file.exists() and port_file.read_text().strip().isdigit()):
            if (code := self._process.poll()) is not None:
                self.close()
                raise BackendError(f"{program.name} ended with exit code {code} before it named a port: {HOW}")
            if time.monotonic() > ends:
                self.close()
                raise BackendError(f"{program.name} named no port within {patience:g} s: {HOW}")
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{int(port_file.read_text())}"

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


class PocketIc:
    """One instance with an application subnet.

    Args:
        url: of the server.
        patience: seconds until an operation must have ended.

    Raises:
        BackendError: if the server does not do what it is asked.
    """

    def __init__(self, url: str, patience: float = 300) -> None:
        self.url, self.patience = url, patience
        self._management = Interface(_MANAGEMENT)
        subnet = {"state_config": "New", "instruction_config": "Production", "dts_flag": "Enabled"}
        none: dict[str, Any] = dict.fromkeys(("nns", "sns", "ii", "fiduciary", "bitcoin"))
        subnets = none | {"system": [], "verified_application": [], "application": [subnet]}
        body = {"subnet_config_set": subnets, "state_dir": None, "nonmainnet_features": False}
        created = self._post("/instances", body)
        try:
            self.path = f"/instances/{int(created['Created']['instance_id'])}"
        except (KeyError, TypeError, ValueError):
            raise BackendError(f"the PocketIC server made no instance: {_short(created)}") from None

    # -- the wire

    def _request(self, path: str, body: Any, method: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", "processing-timeout-ms": "300000"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.patience) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        except OSError as error:
            raise BackendError(f"the PocketIC server does not answer: {error}") from error
        try:
            return status, json.loads(content) if content.strip() else None
        except ValueError:
            return status, content.decode(errors="replace")

    def _post(self, path: str, body: Any) -> Any:
        ends = time.monotonic() + self.patience
        status, found = self._request(path, body, "POST")
        while status in {202, 409}:
            if time.monotonic() > ends:
                raise BackendError(f"the PocketIC server did not end {path} within {self.patience:g} s")
            time.sleep(0.02)
            if status == 202 and isinstance(found, dict) and "op_id" in found:
                asked = f"/read_graph/{found['state_label']}/{found['op_id']}"
                new, answer = self._request(asked, None, "GET")
                if new == 200:
                    return answer
            else:
                status, found = self._request(path, body, "POST")
        if status not in {200, 201}:
            raise BackendError(f"the PocketIC server answered {path} with {status}: {_short(found)}")
        return found

    # -- calls

    def _call(self, sender: bytes, canister: bytes, method: str, argument: bytes, effective: Any) -> dict[str, Any]:
        return {
            "sender": _b64(sender),
            "canister_id": _b64(canister),
            "method": method,
            "payload": _b64(argument),
            "effective_principal": effective,
        }

    def update(self, canister: bytes, method: str, argument: bytes, sender: bytes, effective: Any = None) -> bytes:
        """Send an update and wait for its reply.

        Raises:
            RejectError: if it is rejected.
        """
        effective = {"CanisterId": _b64(canister)} if effective is None else effective
        body = self._call(sender, canister, method, argument, effective)
        submitted = _ok(self._post(f"{self.path}/update/submit_ingress_message", body))
        return _bytes(_ok(self._post(f"{self.path}/update/await_ingress_message", submitted)))

    def query(self, canister: bytes, method: str, argument: bytes, sender: bytes) -> bytes:
        """Send a query.

        Raises:
            RejectError: if it is rejected.
        """
        body = self._call(sender, canister, method, argument, {"CanisterId": _b64(canister)})
        return _bytes(_ok(self._post(f"{self.path}/read/query", body)))

    def install(self, module: bytes, argument: bytes, sender: bytes) -> bytes:
        """Create a canister that ``sender`` controls, install a module, and return its principal."""
        create = "provisional_create_canister_with_cycles"
        controllers = [{"controllers": [[to_text(sender)]]}]
        asked = self._management.encode_arguments(create, {"amount": [_CYCLES], "settings": controllers})
        made = self.update(MANAGEMENT, create, asked, sender, "None")
        canister = self._management.decode_results(create, made)[0]["canister_id"]
        raw = canister if isinstance(canister, bytes) else _principal(str(canister))
        packed = gzip.compress(module, mtime=0)  # an ingress message has 2 MiB; the replica unpacks it
        code = {"mode": {"install": None}, "canister_id": to_text(raw), "wasm_module": packed, "arg": argument}
        asked = self._management.encode_arguments("install_code", code)
        self.update(MANAGEMENT, "install_code", asked, sender, {"CanisterId": _b64(raw)})
        return raw

    def close(self) -> None:
        """Delete the instance."""
        self._request(self.path, None, "DELETE")


def _principal(text: str) -> bytes:
    letters = text.replace("-", "").upper()
    return base64.b32decode(letters + "=" * (-len(letters) % 8))[4:]


def _short(value: Any) -> str:
    return str(value)[:300]


def _ok(found: Any) -> Any:
    """What stands in ``Ok``."""
    if isinstance(found, dict) and "Ok" in found:
        return found["Ok"]
    if isinstance(found, dict) and "Err" in found:
        raise RejectError(RejectCode.CANISTER_ERROR, _short(found["Err"]))
    raise BackendError(f"the PocketIC server answered neither Ok nor Err: {_short(found)}")


def _bytes(found: Any) -> bytes:
    """A reply: base64, or in older servers ``{"Reply": bytes or base64}``."""
    if isinstance(found, dict) and "Reject" in found:
        raise RejectError(RejectCode.CANISTER_REJECT, _short(found["Reject"]))
    inner = found["Reply"] if isinstance(found, dict) and "Reply" in found else found
    if isinstance(inner, list):
        return bytes(inner)
    if isinstance(inner, str):
        return base64.b64decode(inner)
    raise BackendError(f"the PocketIC server's reply is of no known form: {_short(found)}")
