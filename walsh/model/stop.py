"""Stop texts: a stream of text that ends before the first of them.

A stop text may be spread over tokens: what could become one is held back until it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from walsh.errors import ParameterError


class StopFilter:
    """Passes text on up to a stop text.

    Args:
        stop: texts that end a sequence.

    Attributes:
        ended: whether one was met.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if not all(stop):
            raise ParameterError("a stop text is empty: expected at least one character")
        self._stop = stop
        self._held = ""
        self.ended = False

    def push(self, text: str) -> str:
        """What can be shown now."""
        if self.ended:
            return ""
        self._held += text
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self.ended = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back in vain."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that stop begins with."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
