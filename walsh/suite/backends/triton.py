"""``walsh.kernels.triton`` as a backend: compiled on a GPU, in Triton's interpreter on a CPU.

On a CPU the interpreter must be asked for before Triton is imported (``TRITON_INTERPRET=1``); this adapter never turns
to another backend's kernels.
"""

from __future__ import annotations

from typing import Any, ClassVar

from walsh.suite.backends.torch import TorchBackend


class TritonBackend(TorchBackend):
    """The Triton package, by the adapter of the PyTorch one.

    Args:
        device: such as ``cpu`` (interpreter) or ``cuda``.

    Raises:
        BackendError: if Triton or the device is not there, or kernels cannot run on it.
    """

    name: ClassVar[str] = "triton"
    package: ClassVar[str] = "walsh.kernels.triton"

    def __init__(self, device: str | None = None) -> None:
        """Import the package, try the device, and see that kernels can run there."""
        super().__init__(device)
        import torch

        from walsh.kernels.triton._launch import require_device

        require_device(torch.empty(1, device=self._device))

    def describe(self) -> dict[str, Any]:
        """Name, versions and device; says so where the interpreter runs the kernels."""
        from importlib.metadata import version

        from walsh.kernels.triton._launch import INTERPRET

        described = super().describe()
        how = "interpreter" if INTERPRET else "compiled"
        return described | {"version": f"{described['version']}, triton {version('triton')}, {how}"}
