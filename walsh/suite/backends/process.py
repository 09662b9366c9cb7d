"""Any program that speaks the process protocol as a backend: ``--backend "cmd:./my-kernels --conformance"``.

A case that takes too long, or whose process dies or breaks the protocol, is an error; the process is killed with its
children and started again for the next case. After three deaths the adapter counts as broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from walsh.errors import BackendError, VectorError
from walsh.suite.backend import AdapterBroken, BackendDied, Skip, deliver
from walsh.suite.protocol import PROTOCOL, RemoteError, decode_tensor, encode_params, encode_tensor
from walsh.suite.schema import check
from walsh.suite.tensors import Array

MAX_DEATHS = 3
"""After so many the adapter is broken."""

_CHUNK = 1 << 16
_GRACE = 2.0


class ProcessBackend:
    """A program behind two pipes.

    Args:
        command: as a shell would split it; no shell runs it.
        timeout: seconds for one message and its reply.

    Raises:
        BackendError: if the program cannot be started.
    """

    def __init__(self, command: str, timeout: float = 60.0) -> None:
        """See the class; the first message starts the program."""
        try:
            self._arguments, self._timeout = shlex.split(command), timeout
        except ValueError as error:
            raise BackendError(f"cmd:{command}: {str(error).lower()}; quote the command as a shell would") from None
        if not self._arguments:
            raise BackendError("cmd: expected a command after the colon, such as cmd:./kernels")
        self._process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the backend; close() closes it
        self._deaths, self._next_id = 0, 0
        self._description: dict[str, Any] | None = None

    def describe(self) -> Mapping[str, Any]:
        """What the program says of itself.

        Raises:
            AdapterBroken: if it does not answer.
        """
        if self._description is None:
            try:
                reply = self._exchange({"message": "describe", "protocol": PROTOCOL}, "description")
            except BackendDied as error:
                raise AdapterBroken(f"{self._arguments[0]}: no description: {error}") from None
            # Over the protocol every tensor arrives contiguous, so a strided run would be the same run again.
            self._description = {**reply["description"], "strided": False}
        return self._description

    def run(
        self, op: str, params: Mapping[str, Any], inputs: Mapping[str, Array], out: Mapping[str, Array]
    ) -> Skip | None:
        """Send one case; see :class:`walsh.suite.backend.Backend`.

        Raises:
            RemoteError: with the class names that the program gave.
            BackendDied: if it hung, died or broke the protocol.
            AdapterBroken: at the third time.
        """
        self._next_id += 1
        request = {
            "message": "run",
            "id": self._next_id,
            "op": op,
            "params": encode_params(params),
            "inputs": {name: encode_tensor(array) for name, array in inputs.items()},
            "outputs": {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in out.items()},
        }
        reply = self._exchange(request, "id")
        if reply["id"] != self._next_id:
            raise self._die(f"answered id {reply['id']}, expected {self._next_id}")
        if "skip" in reply:
            return Skip(reply["skip"]["reason"], reply["skip"].get("link", ""))
        if "error" in reply:
            error = reply["error"]
            raise RemoteError([error["class"], *error.get("bases", ())], error["message"])
        try:
            results = {name: decode_tensor(spec) for name, spec in reply["outputs"].items()}
        except VectorError as problem:
            raise self._die(str(problem)) from None
        deliver(results, out)
        return None

    def close(self) -> None:
        """Ask the program to end, and see to it."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(BackendDied, OSError, subprocess.TimeoutExpired):
                self._send({"message": "close"}, time.monotonic() + _GRACE)
                process.wait(_GRACE)
        self._kill()
        self._errors.close()

    def _exchange(self, request: Mapping[str, Any], key: str) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        try:
            if self._process is None:
                self._start()
            self._send(request, deadline)
            line = self._receive(deadline)
        except (BrokenPipeError, ConnectionResetError):
            raise self._die(self._last_words("closed its input")) from None
        except TimeoutError:
            raise self._die(f"no reply within {self._timeout:g} s") from None
        except EOFError:
            raise self._die(self._last_words("closed its output")) from None
        try:
            reply = json.loads(line)
            check("message", reply, "reply")
            if key not in reply:
                raise VectorError(f"reply: has no {key!r}")
        except (ValueError, RecursionError) as error:
            raise self._die(f"broke the protocol: {error}: {line[:80]!r}") from None
        return dict(reply)

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # so that its children can be killed with it
            )
        except OSError as error:
            raise BackendError(f"cmd: cannot start {self._arguments[0]!r}: {error.strerror}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._received = b""
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)

    def _wait(self, event: int, deadline: float) -> int:
        """Wait until the pipe of this event is ready; its file descriptor."""
        assert self._process is not None
        pipe = self._process.stdin if event == selectors.EVENT_WRITE else self._process.stdout
        assert pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
        return pipe.fileno()

    def _send(self, request: Mapping[str, Any], deadline: float) -> None:
        left = memoryview(json.dumps(request, allow_nan=False).encode("ascii") + b"\n")
        while left:
            pipe = self._wait(selectors.EVENT_WRITE, deadline)
            left = left[os.write(pipe, left[:_CHUNK]) :]

    def _receive(self, deadline: float) -> bytes:
        pieces = [self._received]
        while b"\n" not in pieces[-1]:
            piece = os.read(self._wait(selectors.EVENT_READ, deadline), _CHUNK)
            if not piece:
                raise EOFError
            pieces.append(piece)
        line, _, self._received = b"".join(pieces).partition(b"\n")
        return line

    def _last_words(self, what: str) -> str:
        """How it ended, or which pipe it closed where it goes on, and the last line that it wrote to stderr.

        A program that ends closes both of its pipes: which of the two is noticed first depends on the load of the
        machine, and is not said.
        """
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        code = self._process.returncode
        how = what if code is None else f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 2000))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how}: {lines[-1]}" if lines else how

    def _die(self, reason: str) -> BackendDied | AdapterBroken:
        """Kill what is left and count; the error to raise."""
        self._kill()
        self._deaths += 1
        if self._deaths >= MAX_DEATHS:
            return AdapterBroken(f"died {self._deaths} times, the last time: {reason}")
        return BackendDied(reason)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # The group outlives its leader: children of a process that has ended are killed too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
