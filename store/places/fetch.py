"""Bytes of one file far away: only the parts that are asked for, again if need be, and counted."""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from attnlens.schemas.errors import InputError, MissingExtraError
from attnlens.store.places import hub

SCHEMES = ("http", "https", "s3", "gs", "hf", "file")
ATTEMPTS = 8
"""How often one answer is asked for before it is given up."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds before the second attempt, doubled with each one after, and the most of them."""
TIMEOUT = 30.0
"""Seconds in which an answer has to be there whole."""
LARGEST = 1 << 31
"""Bytes of the largest answer that is taken when a server cannot give a part."""

_UNFIT = re.compile(r"[\s\\%\x00-\x1f\x7f\ud800-\udfff]")
"""What no name of a host or bucket has in it."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""What no path of a file far away has in it."""

T = TypeVar("T")


@dataclass
class Traffic:
    """What this process has fetched: requests that were answered or not, and bytes of answers."""

    requests: int = 0
    bytes: int = 0


traffic = Traffic()
_counting = threading.Lock()


def is_url(where: str) -> bool:
    """Whether a store's name is a URL and not a path."""
    scheme, mark, _ = where.partition("://")
    return bool(mark) and scheme.lower() in SCHEMES


class Remote:
    """A base URL. Paths below it are relative, as they are named there, without percent signs.

    Raises:
        InputError: the URL is not understood.
        MissingExtraError: obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._hub = hub.parse(url) if url.lower().startswith("hf://") else None
        self._base, self._prefix = _split(url) if self._hub is None else self._hub.address()
        self._store = _client(self._base, {} if self._hub is None else hub.headers())
        self._ranges = True
        self._whole: dict[str, bytes] = {}
        self._seen: dict[str, tuple[Any, ...]] = {}

    def whole(self, path: str = "") -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be had.
        """
        return self._again(path, lambda key: self._all(key))

    def part(self, path: str, start: int, stop: int) -> bytes:
        """Bytes start … stop - 1 of a file, which has so many. Raises as `whole`."""
        if stop <= start:
            return b""
        if not self._ranges:
            return self._held(path)[start:stop]

        def get(key: str) -> bytes:
            import obstore

            answer = obstore.get(self._store, key, options={"range": (start, stop)})
            self._check_same(path, answer.meta)
            return self._count(bytes(answer.bytes()), stop - start, path)

        return self._ranged(path, get, lambda: self._held(path)[start:stop])

    def tail(self, path: str, count: int) -> tuple[bytes, int, str | None]:
        """The last `count` bytes of a file, its size, and the entity tag that names its content; "" if it has none, and
        None if the server gives no parts. Raises as `whole`.
        """

        def get(key: str) -> tuple[bytes, int, str | None]:
            import obstore

            answer = obstore.get(self._store, key, options={"range": {"suffix": count}})
            size = int(answer.meta["size"])
            data = self._count(bytes(answer.bytes()), min(count, size), path)
            self._check_same(path, answer.meta)
            return data, size, _strong(answer.meta.get("e_tag"))

        def cut() -> tuple[bytes, int, str | None]:
            data = self._held(path)
            return data[-count:], len(data), None

        return self._ranged(path, get, cut) if self._ranges else cut()

    def _check_same(self, path: str, about: Mapping[str, Any]) -> None:
        """Refuse parts of a file that took the place of the one that the first part was of.

        Raises:
            OSError: ESTALE.
        """
        now = int(about["size"]), about.get("e_tag") or about.get("last_modified")
        if self._seen.setdefault(path, now) != now:
            raise OSError(errno.ESTALE, "was replaced by another file while it was read: open it again", path)

    def names(self, under: str) -> dict[str, int]:
        """Files below a folder with their sizes, where the service can list them.

        Raises:
            OSError: it cannot.
        """
        import obstore

        if self._hub is not None:
            return self._hub.files(under)
        prefix = f"{self._prefix}/{under}".strip("/")
        found = {}
        for batch in obstore.list(self._store, prefix=prefix or None):
            for item in batch:
                path = str(item["path"])
                found[path.removeprefix(f"{self._prefix}/") if self._prefix else path] = int(item["size"])
        return found

    def _all(self, key: str) -> bytes:
        import obstore

        answer = obstore.get(self._store, key)
        if int(answer.meta["size"]) > LARGEST:
            raise OSError(errno.EFBIG, f"the server gives no parts, and the whole is more than {LARGEST} bytes", key)
        return self._count(bytes(answer.bytes()), int(answer.meta["size"]), key)

    def _held(self, path: str) -> bytes:
        """A file of a server that gives no parts, fetched once and kept."""
        if path not in self._whole:
            self._whole[path] = self.whole(path)
        return self._whole[path]

    def _ranged(self, path: str, get: Callable[[str], T], other: Callable[[], T]) -> T:
        from obstore.exceptions import NotSupportedError

        try:
            return self._again(path, get)
        except NotSupportedError:
            self._ranges = False
            return other()

    def _count(self, data: bytes, expected: int, path: str) -> bytes:
        with _counting:
            traffic.bytes += len(data)
        if len(data) != expected:
            raise OSError(errno.EIO, f"the answer has {len(data)} bytes of {expected}", path)
        return data

    def _again(self, path: str, get: Callable[[str], T]) -> T:
        """Ask until there is an answer, waiting longer each time."""
        from obstore import exceptions

        key = f"{self._prefix}/{path}".strip("/") if path else self._prefix
        final = (FileNotFoundError, exceptions.NotSupportedError, exceptions.PermissionDeniedError,
                 exceptions.UnauthenticatedError, exceptions.InvalidPathError)  # fmt: skip
        for attempt in range(ATTEMPTS):
            with _counting:
                traffic.requests += 1
            try:
                return get(key)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "is not there", path) from None
            except exceptions.NotSupportedError:
                raise
            except (exceptions.BaseError, OSError, ValueError) as error:  # ValueError: no path that it takes
                if isinstance(error, OSError) and error.errno == errno.ESTALE:
                    raise
                if self._hub is not None and (code := _refusal(error)):
                    raise OSError(errno.EACCES, self._hub.refused(code), path) from None
                if isinstance(error, (*final, ValueError)) or attempt == ATTEMPTS - 1 or _is_final(error):
                    raise OSError(errno.EIO, _short(error), path) from error
            time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1))
        raise AssertionError


def _strong(tag: object) -> str:
    """An entity tag if it names content byte for byte. A weak one only says that the content means the same, and a time
    and a size say nothing: a file may be replaced by one of the same size within a second.
    """
    return tag if isinstance(tag, str) and not tag.startswith(("W/", "w/")) else ""


def _refusal(error: BaseException) -> int | None:
    """401 or 403, where that was the answer."""
    from obstore import exceptions

    if isinstance(error, exceptions.UnauthenticatedError):
        return 401
    return 403 if isinstance(error, exceptions.PermissionDeniedError) else None


def _is_final(error: BaseException) -> bool:
    """Whether asking again is of no use: the server says that the request itself is wrong."""
    text = str(error)
    return any(f"status code: {code} " in text or f"status code: {code}:" in text for code in ("400", "401", "403"))


def _short(error: BaseException) -> str:
    """The first line of an error, without what the server's page says."""
    text = " ".join(str(error).split("\n")[0].split("Debug source")[0].split())
    return text if len(text) <= 200 else f"{text[:197]} …"


def _split(url: str) -> tuple[str, str]:
    """What the client is made for (scheme and host, or bucket), and the path below it."""
    shown = re.sub(r"(//)[^/]*@", r"\1…@", url)  # a password is not told to the terminal
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # brackets that do not match, a port that is none
        raise InputError(f"{shown} is not understood ({error}): expected SCHEME://HOST[:PORT]/PATH") from None
    if parts.username is not None or parts.password is not None:
        raise InputError(f"{shown}: leave name and password out of the URL")
    if parts.query or parts.fragment:
        raise InputError(f"{url}: a store's URL has no query and no fragment; download the file instead")
    path = unquote(parts.path).strip("/")
    odd = _CONTROL.search(path) or {".", ".."} & set(path.split("/"))
    if not parts.hostname or port == 0 or _UNFIT.search(parts.netloc) or odd:
        raise InputError(f"{url} is not understood: expected {parts.scheme}://HOST/PATH")
    return f"{parts.scheme}://{parts.netloc}", path


def _client(base: str, headers: dict[str, str]) -> Any:
    try:
        from obstore.store import from_url
    except ImportError:
        raise MissingExtraError(f"{base}: reading URLs needs pip install 'attnlens[remote]'") from None
    from datetime import timedelta

    plain = base.startswith("http://") or os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    client = {
        "allow_http": plain,
        "timeout": timedelta(seconds=TIMEOUT),
        "user_agent": "attnlens",
        "default_headers": headers,  # the client drops an Authorization where a redirect leads to another host or port
    }
    try:
        return from_url(base, client_options=client, retry_config={"max_retries": 0})
    except Exception as error:  # noqa: BLE001 - whatever a client does not like about a URL
        raise InputError(f"{base} cannot be read: {_short(error)}") from None
