"""Serve a Python backend over the process protocol: ``python -m walsh.suite.serve BACKEND [--device DEVICE]``.

An example of the protocol's other side, and a way to run a Python backend where a crash cannot hurt the runner.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any

import click

from walsh.errors import WalshError
from walsh.suite.backend import Backend, OutputMismatch, Skip
from walsh.suite.backends import load_backend
from walsh.suite.guard import GuardedOutput, WatchedInputs, misbehaviour
from walsh.suite.protocol import decode_tensor, encode_tensor
from walsh.suite.runner import error_names
from walsh.suite.schema import check
from walsh.suite.vectors import Output, decode_params


def serve(backend: Backend, requests: Iterable[str], replies: IO[str]) -> None:
    """Answer requests until ``close`` or the end of input.

    Raises:
        VectorError: for a line that breaks the protocol.
    """
    for line in requests:
        request = json.loads(line)
        check("message", request, "request")
        if request["message"] == "close":
            return
        reply = (
            {"description": dict(backend.describe())} if request["message"] == "describe" else _run(backend, request)
        )
        replies.write(json.dumps(reply, allow_nan=False) + "\n")
        replies.flush()


def _run(backend: Backend, request: Mapping[str, Any]) -> dict[str, Any]:
    """One case. Errors are told, not raised: the runner judges them."""
    number = request["id"]
    try:
        watched = WatchedInputs({name: decode_tensor(spec) for name, spec in request["inputs"].items()}, strided=False)
        outputs = {
            name: GuardedOutput(Output(spec["dtype"], tuple(spec["shape"])), number % 2)
            for name, spec in request["outputs"].items()
        }
        out = {name: output.array for name, output in outputs.items()}
        answer = _guarded_run(backend, request, watched, outputs)
    except Exception as error:
        names = error_names(error)
        return {"id": number, "error": {"class": names[0], "message": str(error), "bases": names[1:]}}
    if isinstance(answer, Skip):
        return {"id": number, "skip": {"reason": answer.reason, "link": answer.link}}
    return {"id": number, "outputs": {name: encode_tensor(array) for name, array in out.items()}}


def _guarded_run(
    backend: Backend, request: Mapping[str, Any], watched: WatchedInputs, outputs: Mapping[str, GuardedOutput]
) -> Skip | None:
    """Run between guards: the runner on the other side of the pipe cannot see this memory."""
    out = {name: output.array for name, output in outputs.items()}
    try:
        answer = backend.run(request["op"], decode_params(request["params"]), watched.arrays, out)
    except WalshError as error:
        written = [name for name, output in outputs.items() if not output.unwritten().all()]
        if written and error.phase != "run":
            raise OutputMismatch(f"wrote to {written[0]} before it raised {type(error).__name__}") from error
        raise
    problem = misbehaviour(watched, outputs)
    if problem:
        raise OutputMismatch(problem)
    return answer


@click.command()
@click.argument("name", metavar="BACKEND")
@click.option("--device", help="Such as cuda; the backend's default if absent.")
def main(name: str, device: str | None) -> None:
    """Serve BACKEND (reference, torch, pkg.mod:Class) as JSON lines on stdin and stdout."""
    # What a library prints must not end up among the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    try:
        backend = load_backend(name, device)
        try:
            serve(backend, sys.stdin, replies)
        finally:
            backend.close()
    except WalshError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(4) from None


if __name__ == "__main__":
    main()
