"""Fetching one file: resumable, retried, checked by digest, whole or not at all.

The bytes gather in ``NAME.partial`` beside the target. An interrupted download goes on from there with an HTTP range
request; the target appears by a rename, after its sha256 was found right. Where none is known beforehand, it is the one
that the server announces (hubs of large files do, in a header of their first answer).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from walsh.errors import DataError

if TYPE_CHECKING:
    import urllib3

CHUNK = 1 << 16
"""Bytes read at a time; at most these are lost when a connection breaks."""
ATTEMPTS = 5

Progress = Callable[[int, int | None], None]
"""Called with bytes so far and bytes in all (None if the server does not say)."""


def download(
    url: str,
    target: Path,
    sha256: str | None,
    progress: Progress | None = None,
    attempts: int = ATTEMPTS,
    pause: float = 1.0,
) -> Path:
    """Fetch ``url`` to ``target`` unless it is there already.

    Args:
        url: http or https.
        target: of the file; its folder is made if need be.
        sha256: hex digest that the content must have; None takes the one that the server announces, if it does.
        progress: told of every chunk.
        attempts: how often a broken connection or a wrong content is tried again.
        pause: seconds before the second attempt, doubled for each further one.

    Returns:
        target.

    Raises:
        DataError: if it cannot be fetched, or what arrives is not what the digest says; names the remedy.
    """
    if target.is_file() and (sha256 is None or file_digest(target) == sha256):
        return target
    try:
        import urllib3
    except ModuleNotFoundError:
        raise DataError("downloads need urllib3: pip install 'walsh[data]'") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    # Redirects and waiting between attempts are urllib3's; going on after a broken body is ours.
    retries = urllib3.Retry(total=8, connect=0, read=0, status=0, redirect=8)
    reason = "no attempt was made"
    with urllib3.PoolManager(retries=retries, timeout=urllib3.Timeout(connect=10.0, read=60.0)) as pool:
        for attempt in range(attempts):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            try:
                sha256 = sha256 or _announced_digest(pool, url)
                _fetch(pool, url, partial, progress)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            found = file_digest(partial)
            if sha256 is None or found == sha256:
                partial.replace(target)
                return target
            reason = f"sha256 {found[:12]}, expected {sha256[:12]}"
            partial.unlink()  # a wrong content cannot be resumed
    raise DataError(
        f"{url} could not be fetched in {attempts} attempts ({reason}). What arrived is kept and the next run goes on "
        f"from it. Offline: put the file at {target}, or use corpus pydoc, which needs no network"
    )


def _announced_digest(pool: urllib3.PoolManager, url: str) -> str | None:
    """The sha256 that the server gives for the content, before it redirects to where the content is."""
    response = pool.request("HEAD", url, redirect=False)
    digest = response.headers.get("X-Linked-Etag", "").strip('"').lower()
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else None


def _fetch(pool: urllib3.PoolManager, url: str, partial: Path, progress: Progress | None) -> None:
    """Append what is missing of ``url`` to ``partial``; an exception leaves it longer, never wrong."""
    import urllib3

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    response = pool.request("GET", url, headers=headers, preload_content=False)
    try:
        if response.status == 416:  # nothing is missing, or the file shrank: the digest decides
            return
        if response.status not in (200, 206):
            raise urllib3.exceptions.HTTPError(f"status {response.status}")
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise urllib3.exceptions.HTTPError(f"range from {have} was asked, {response.headers.get('Content-Range')}")
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None and length.isdecimal() else None
        with partial.open("ab" if resumed else "wb") as file:
            for chunk in response.stream(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
        if total is not None and have != total:
            raise urllib3.exceptions.HTTPError(f"{have} of {total} bytes arrived")
    finally:
        response.release_conn()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
