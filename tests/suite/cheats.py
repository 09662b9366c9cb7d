"""Backends that try to pass without doing the work: each answers ``hadamard_transform`` of two numbers in its own way.

Every one of them must fail, and the message must name what it did: see ``test_cheats.py``.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
import time
from pathlib import Path

import numpy as np

from walsh.suite.backend import deliver


class Cheat:
    """The right answer, for derived classes to spoil."""

    def describe(self):
        return {"name": type(self).__name__, "version": "1", "calls": ["hadamard_transform"]}

    def answer(self, inputs, out):
        x = inputs["x"]
        if x.shape[-1] != 2:
            raise ValueError("expected two numbers")
        out["y"][..., 0], out["y"][..., 1] = x[..., 0] + x[..., 1], x[..., 0] - x[..., 1]

    def run(self, op, params, inputs, out):
        self.answer(inputs, out)

    def close(self):
        pass


class ReturnsNaN(Cheat):
    def run(self, op, params, inputs, out):
        out["y"].fill(np.nan if out["y"].dtype.kind == "f" else 0)


class ReturnsAConstant(Cheat):
    def run(self, op, params, inputs, out):
        out["y"].fill(1)


class ReturnsItsInput(Cheat):
    def run(self, op, params, inputs, out):
        out["y"][...] = inputs["x"]


class NeverWritesTheLastRow(Cheat):
    def run(self, op, params, inputs, out):
        x = inputs["x"][:-1]
        out["y"][:-1, 0], out["y"][:-1, 1] = x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]


class WritesNothing(Cheat):
    def run(self, op, params, inputs, out):
        pass


class CachesByShape(Cheat):
    """The first answer for a shape is the answer for that shape."""

    def __init__(self):
        self.seen = {}

    def run(self, op, params, inputs, out):
        self.answer(inputs, out)
        key = (inputs["x"].shape, inputs["x"].dtype)
        out["y"][...] = self.seen.setdefault(key, out["y"].copy())


class CachesByAddress(Cheat):
    """The first answer for a buffer is the answer for that buffer, as CUDA graphs and benchmark loops tempt one to."""

    def __init__(self):
        self.seen = {}

    def run(self, op, params, inputs, out):
        self.answer(inputs, out)
        x = inputs["x"]
        out["y"][...] = self.seen.setdefault((x.ctypes.data, x.shape, x.dtype), out["y"].copy())


class ClobbersItsInput(Cheat):
    def run(self, op, params, inputs, out):
        self.answer(inputs, out)
        inputs["x"][...] = out["y"]


class ZeroesItsInput(Cheat):
    def run(self, op, params, inputs, out):
        self.answer(inputs, out)
        inputs["x"][...] = 0


class WritesOutsideItsOutput(Cheat):
    offset = -1

    def run(self, op, params, inputs, out):
        self.answer(inputs, out)
        y = base = out["y"]
        while base.base is not None:
            base = base.base
        start = (y.ctypes.data - base.ctypes.data) // y.itemsize
        base.view(y.dtype)[start + self.offset] = 7


class WritesPastItsEnd(WritesOutsideItsOutput):
    offset = 6


class WalksTheStack(Cheat):
    """Finds the runner's case in a caller's frame and hands back what it expects."""

    def run(self, op, params, inputs, out):
        for frame in inspect.stack():
            case = frame.frame.f_locals.get("case")
            if case is not None and isinstance(case.expected, dict):
                deliver({name: value.value() for name, value in case.expected.items()}, out)
                return
        self.answer(inputs, out)


class SearchesTheHeap(Cheat):
    def run(self, op, params, inputs, out):
        expected = [thing for thing in gc.get_objects() if type(thing).__name__ == "Expected"]
        assert expected
        self.answer(inputs, out)


class ReadsTheVectors(Cheat):
    """Opens the files that hold the answers; in a test their folder is known by ``folder``."""

    folder = Path()

    def run(self, op, params, inputs, out):
        self.answer(inputs, out)
        (self.folder / "vectors" / "hadamard" / "exact.json").read_bytes()


class LoadsTheSuite(Cheat):
    folder = Path()

    def run(self, op, params, inputs, out):
        from walsh.suite.vectors import load_suite

        self.answer(inputs, out)
        load_suite(self.folder, min_cases=1)


class WorksLater(Cheat):
    """Returns at once and lets a thread do the work when the clock has stopped.

    The thread waits for `release`, not for a time, so that a loaded machine cannot let it win the race.
    """

    def __init__(self):
        self.pending = []

    def run(self, op, params, inputs, out):
        if inputs["x"].shape[-1] != 2:
            raise ValueError("expected two numbers")
        copy, released = {"x": inputs["x"].copy()}, threading.Event()
        thread = threading.Thread(target=lambda: (released.wait(), self.answer(copy, out)))
        thread.start()
        self.pending.append((released, thread))

    def release(self):
        """Let the work that is left be done, and wait for it."""
        for released, thread in self.pending:
            released.set()
            thread.join()
        self.pending.clear()

    def close(self):
        self.release()


class FinishesLater(WorksLater):
    """A first guess at once, the rest when the clock has stopped."""

    def run(self, op, params, inputs, out):
        out["y"].fill(0)
        super().run(op, params, inputs, out)


class StopsTheClock(Cheat):
    def run(self, op, params, inputs, out):
        time.perf_counter = lambda: 0.0
        self.answer(inputs, out)


class BribesTheJudge(Cheat):
    def run(self, op, params, inputs, out):
        from walsh.suite import runner

        runner.compare = lambda *_: None
        self.answer(inputs, out)


class RewritesTheJudge(Cheat):
    def run(self, op, params, inputs, out):
        from walsh.suite import comparer

        comparer.compare.__code__ = (lambda name, actual, output, expected, budget: None).__code__
        self.answer(inputs, out)


class CallsTheReference(Cheat):
    """Does not do the work itself; the import came before the run."""

    def __init__(self):
        from walsh.reference import hadamard_transform

        self.transform = hadamard_transform

    def run(self, op, params, inputs, out):
        deliver({"y": self.transform(inputs["x"], normalize=False)}, out, cast=True)


class CallsTheReferenceSoftly(CallsTheReference):
    """Likewise, and does the work itself where it is caught."""

    def run(self, op, params, inputs, out):
        try:
            super().run(op, params, inputs, out)
        except Exception:
            self.answer(inputs, out)


class ImportsKernels(Cheat):
    """Other kernels, imported while running where the backend itself is looked at less."""

    def run(self, op, params, inputs, out):
        with contextlib.suppress(ImportError):
            import walsh.kernels.anything  # noqa: F401  # the import is the deed
        self.answer(inputs, out)
