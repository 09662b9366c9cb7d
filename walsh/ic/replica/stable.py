"""Stable memory: what survives an upgrade. Sparse pages of 64 KiB; a message writes to copies until it commits."""

from __future__ import annotations

from walsh.ic.costs import PagePolicy

PAGE = 65536


class StableMemory:
    """Bytes in pages, with the writes of the running message apart.

    Args:
        limit: bytes it may grow to.
        policy: the size of the pages whose first access and first write are charged.
    """

    def __init__(self, limit: int, policy: PagePolicy) -> None:
        self.limit, self.policy = limit, policy
        self._pages: dict[int, bytes] = {}
        self._size = 0
        self.begin()

    def begin(self) -> None:
        """Forget the running message's writes and accesses."""
        self._written: dict[int, bytearray] = {}
        self._grown = self._size
        self.accessed: set[int] = set()
        self.dirty: set[int] = set()

    def commit(self) -> None:
        """Keep the running message's writes."""
        self._pages |= {number: bytes(page) for number, page in self._written.items()}
        self._size = self._grown
        self.begin()

    def snapshot(self) -> tuple[dict[int, bytes], int]:
        """What is committed; pages are immutable, so this copies only their list."""
        return dict(self._pages), self._size

    def restore(self, snapshot: tuple[dict[int, bytes], int]) -> None:
        """Return to a snapshot."""
        self._pages, self._size = dict(snapshot[0]), snapshot[1]
        self.begin()

    @property
    def pages(self) -> int:
        """Size in pages of 64 KiB, as the running message sees it."""
        return self._grown

    def grow(self, pages: int) -> int:
        """Add pages; the size before, or -1 if there is no room."""
        before = self._grown
        if (before + pages) * PAGE > self.limit:
            return -1
        self._grown += pages
        return before

    def holds(self, offset: int, size: int) -> bool:
        """Whether this range lies inside."""
        return offset + size <= self._grown * PAGE

    def touch(self, offset: int, size: int, write: bool) -> tuple[int, int]:
        """Record an access; (pages accessed for the first time, pages written for the first time)."""
        if not size:
            return 0, 0
        unit = self.policy.page_bytes
        span = set(range(offset // unit, (offset + size - 1) // unit + 1))
        accessed = span - self.accessed
        written = span - self.dirty if write else set()
        self.accessed |= accessed
        self.dirty |= written
        return len(accessed), len(written)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of a range that lies inside."""
        parts = []
        while size:
            number, start = divmod(offset, PAGE)
            count = min(size, PAGE - start)
            page = self._written.get(number) or self._pages.get(number)
            parts.append(bytes(page[start : start + count]) if page is not None else bytes(count))
            offset, size = offset + count, size - count
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Write to a range that lies inside."""
        done = 0
        while done < len(data):
            number, start = divmod(offset + done, PAGE)
            count = min(len(data) - done, PAGE - start)
            if number not in self._written:
                self._written[number] = bytearray(self._pages.get(number, bytes(PAGE)))
            self._written[number][start : start + count] = data[done : done + count]
            done += count
