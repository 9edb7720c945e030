"""Fetch a large file: resumable, checked, and in place only when whole."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .arguments import Natural, NonNegative, Positive, checked

CHUNK = 1 << 20
PAGES, PAGE = ("text/html", "application/xhtml+xml"), re.compile(rb"\s*<(!doctype\s+html|html)", re.IGNORECASE)
HELP = "which says that one has to sign in, or that there is no such file; get the file elsewhere and give its path"


@checked
@dataclass(frozen=True)
class Downloaded:
    """A file that is whole.

    Attributes:
        path: Where it lies.
        bytes: Its size.
        checked: What was compared with what the publisher says, in words.
    """

    path: Path
    bytes: int
    checked: str


@dataclass(frozen=True)
class _Published:
    """What the server says of the whole file; kept beside the part, to tell whether it still belongs to it."""

    etag: str | None
    size: int | None
    md5: str | None  # base64, as in the header


@checked
def fetch(
    url: str,
    target: str | Path,
    patience: Natural = 3,
    delay: NonNegative = 1.0,
    timeout: Positive = 30.0,
    quiet: bool = False,
) -> Downloaded:
    """Fetch a file over HTTP(S).

    What has arrived lies in ``target.part`` and is gone on from, in this call or a later one, as long as the server
    still offers the same file. The target appears at once and whole. The MD5 is verified where the server sends one
    (Content-MD5; x-ms-blob-content-md5 where only a range was asked for).

    Args:
        url: What to fetch.
        target: Where it goes; an existing file is left alone.
        patience: Attempts in a row that may bring nothing.
        delay: Seconds to wait before the second of them; the third waits twice as long.
        timeout: Seconds without a byte after which a connection counts as broken.
        quiet: No progress bar.

    Raises:
        ValueError: when the server cannot be reached or does not have the file, what arrives is a web page or has
            another checksum, or the folder cannot be written to.
    """
    target = Path(target)
    if target.is_file():
        return Downloaded(target, target.stat().st_size, "it was there already and was not fetched again")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return _fetched(url, target, patience, delay, timeout, quiet)
    except _Unwritable as error:
        have = f"; {arrived} bytes have arrived and are kept" if (arrived := _size(_part(target))) else ""
        raise ValueError(f"cannot write {target} ({error}){have}; run it again when there is room") from None
    except OSError as error:
        raise ValueError(f"cannot write {target} ({error.strerror or error})") from None


class _Unwritable(Exception):
    """What arrives finds no room here: no fault of the network's."""


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unwritable(error.strerror or str(error)) from None


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _fetched(
    url: str, target: Path, patience: Natural, delay: NonNegative, timeout: Positive, quiet: bool
) -> Downloaded:
    part, note = _part(target), target.with_name(f"{target.name}.part.json")
    idle = 0
    while True:
        before = _size(part)
        try:
            published = _go_on(url, part, note, timeout, quiet)
            break
        except urllib.error.HTTPError as error:
            if error.code in (412, 416):  # the part does not belong to what is offered now
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise ValueError(f"{url}: the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        idle = 0 if _size(part) > before else idle + 1
        if idle == patience:
            have = f"{_size(part)} bytes have arrived and are kept, run it again to go on; or " if _size(part) else ""
            raise ValueError(f"cannot fetch {url} ({reason}); {have}get the file elsewhere and give its path")
        time.sleep(delay * idle)
    checked = "its size is right, the publisher gives no checksum"
    if published.md5 is not None:
        found = _md5(part)
        if found != published.md5:
            part.unlink()
            note.unlink()
            raise ValueError(f"{url}: what arrived has MD5 {found}, published is {published.md5}; it was thrown away")
        checked = "its MD5 is the published one"
    elif published.size is None:
        checked = "the publisher gives neither size nor checksum"
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    note.unlink()
    return Downloaded(target, target.stat().st_size, checked)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _go_on(url: str, part: Path, note: Path, timeout: Positive, quiet: bool) -> _Published:
    """Bring the part to its full size, from where it stands if it is part of the file that is offered now."""
    from tqdm import tqdm

    known = _read(note)
    start = _size(part) if known is not None and known.size is not None else 0
    if start and start == known.size:
        return known
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        page = response.headers.get_content_type() in PAGES
        offered, ranged = _published(response), response.status == 206
        if ranged:
            place = f"bytes {start}-{known.size - 1}/{known.size}"
            if offered.etag != known.etag or response.headers.get("Content-Range") != place:
                part.unlink()
                raise ConnectionError("the file changed on the server while it was fetched")
            offered = _Published(offered.etag, offered.size, offered.md5 or known.md5)
        start = start if ranged else 0
        with _written():
            note.write_text(json.dumps(vars(offered)), encoding="utf-8")
        bar = tqdm(total=offered.size, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=quiet)
        with _opened(part, "ab" if start else "wb") as file, bar:
            while block := response.read(CHUNK):
                if page or (start == 0 and file.tell() == 0 and PAGE.match(block)):
                    raise ValueError(f"{url}: the server answers with a web page, {HELP}")
                with _written():
                    file.write(block)
                    file.flush()
                bar.update(len(block))
    if offered.size is not None and _size(part) != offered.size:
        raise ConnectionError(f"the connection broke after {_size(part)} of {offered.size} bytes")
    return offered


def _opened(part: Path, mode: str):
    with _written():
        return open(part, mode)


def _published(response) -> _Published:
    headers = response.headers
    if response.status == 206:
        size, md5 = headers.get("Content-Range", "").rpartition("/")[2], headers.get("x-ms-blob-content-md5")
    else:
        size, md5 = headers.get("Content-Length"), headers.get("Content-MD5") or headers.get("x-ms-blob-content-md5")
    return _Published(headers.get("ETag"), int(size) if size and size.isdigit() else None, md5)


def _read(note: Path) -> _Published | None:
    try:
        return _Published(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()
