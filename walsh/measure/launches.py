"""How many Triton kernels each operation launches: exact, without a GPU, from calls on tensors without content."""

from __future__ import annotations

import importlib.util
from typing import Any

SECTION = "triton launches"
"""Where these counts are committed."""


class _Tally(dict[str, Any]):
    """A record of launches that also counts repeated ones."""

    total = 0

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.total += 1
        return super().setdefault(key, default)


def count_triton_launches() -> dict[str, int]:
    """Launches by operation, for the shapes that ``walsh.kernels.triton.compile`` compiles; nothing without Triton."""
    if importlib.util.find_spec("triton") is None:
        return {}
    from walsh.kernels.triton import _cases, _launch  # here, because Triton is optional

    found = {}
    for name, call in _cases.cases(full=False):
        tally = _Tally()
        _launch._STATE.recorders.append(tally)
        try:
            call()
        finally:
            _launch._STATE.recorders.remove(tally)
        found[f"{name} | launches"] = tally.total
    return found
