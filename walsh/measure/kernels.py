"""Which of walsh's kernel packages can be timed on a device, and which other packages are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from walsh.errors import WalshError
from walsh.measure.case import Absent, Inputs, Provider, Setting, Work
from walsh.measure.provenance import installed


@dataclass(frozen=True)
class Package:
    """One package of kernels.

    Attributes:
        label: as reports show it.
        backend: its name in the conformance suite.
        module: functions under the names of SPEC.md.
    """

    label: str
    backend: str
    module: Any


def packages(setting: Setting) -> Iterator[Package]:
    """Those that run on the device of the run; Triton's interpreter is no place to time anything."""
    yield Package("walsh torch", "torch", importlib.import_module("walsh.kernels.torch"))
    if setting.device == "cuda":
        try:
            yield Package("walsh triton", "triton", importlib.import_module("walsh.kernels.triton"))
        except (WalshError, ImportError):
            return


def own(
    setting: Setting,
    name: str,
    call: Callable[[Any, Inputs], Any],
    work: Work | None = None,
    least_ratio: float | None = None,
) -> list[Provider]:
    """Walsh's own providers of one function.

    Args:
        setting: of the run.
        name: of the function, as in SPEC.md; a dot leads into a submodule, such as ``strict.sample``.
        call: from the function and the inputs to the output.
        work: if it differs from the case's.
        least_ratio: gate of the PyTorch kernel.
    """

    def provider(package: Package) -> Provider:
        function = package.module
        for part in name.split("."):
            function = getattr(function, part)
        torch = package.backend == "torch"
        return Provider(
            package.label,
            lambda inputs: call(function, inputs),
            package.backend,
            work,
            exact_counts=torch and setting.device == "cpu",
            least_ratio=least_ratio if torch else None,
        )

    return [provider(package) for package in packages(setting)]


def without_triton(setting: Setting, case: str) -> list[Absent]:
    """Why the Triton kernels are not among the providers of a case, if they are not."""
    if any(package.backend == "triton" for package in packages(setting)):
        return []
    reason = "needs a GPU" if setting.device != "cuda" else "the package triton is not installed"
    return [Absent(case, "walsh triton", reason)]


def peer(case: str, provider: str, package: str, setting: Setting, gpu_only: bool = False) -> Absent | None:
    """None if another package can be timed, else its absence with the reason."""
    if installed(package) is None:
        return Absent(case, provider, f"the package {package} is not installed")
    if gpu_only and setting.device != "cuda":
        return Absent(case, provider, "needs a GPU")
    return None
