"""Who may ask the server of `lens view`.

Other pages in the same browser are the danger: they may send requests here, under any name that leads to this machine.
So the address holds a random token, the Host must be a name that only leads here (DNS rebinding), and a page that asks
must be ours.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

from attnlens.render.viewer.wire import Refusal, Request
from attnlens.schemas.errors import InputError

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
DEPTH = 32
"""How many folders of a proxy may stand before the token in a path."""


class Access:
    """Which requests are answered.

    Args:
        names: Host names besides those of this machine, such as that of a proxy.

    Raises:
        InputError: one of them is no name of a host.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.token = secrets.token_urlsafe(18)
        self._names = frozenset(allowed_name(name) for name in names)

    def path(self, request: Request) -> str:
        """What a request asks for below the token. Refusal if it may not ask, or does not know the token."""
        host, origin = request.header("host") or "", request.header("origin")
        authority, path = _target(request.target)
        if authority is not None and authority.lower() != host.lower():
            raise Refusal(HTTPStatus.BAD_REQUEST, "the request names two hosts")
        if not self._is_ours(host):
            name = _name(host)
            what = f"; `lens view --allow-host {name}` lets it answer to this name" if name else ""
            raise Refusal(HTTPStatus.FORBIDDEN, f"this server answers to names of this machine only{what}")
        if origin is not None and not self._is_own_page(origin, host):
            raise Refusal(HTTPStatus.FORBIDDEN, "pages of another origin may not read this")
        if request.header("sec-fetch-site") == "cross-site" and request.header("sec-fetch-mode") != "navigate":
            raise Refusal(HTTPStatus.FORBIDDEN, "pages of another site may not read this")
        return self._below_token(path)

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        if name is None:
            return False
        if name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False

    def _is_own_page(self, origin: str, host: str) -> bool:
        """Whether an origin is this server as the browser sees it: under the Host, or under a name that was allowed."""
        scheme, _, authority = origin.lower().partition("://")
        return scheme in ("http", "https") and (authority == host.lower() or _name(authority) in self._names)

    def _below_token(self, path: str) -> str:
        """The path after the token. What stands before it is a proxy's prefix, left on or not."""
        token = self.token.encode()
        parts = path.split("/", DEPTH + 1)
        for place, part in enumerate(parts[: DEPTH + 1]):
            if secrets.compare_digest(part.encode("utf-8", "surrogatepass"), token):
                if place + 1 == len(parts):
                    moved = {"Location": f"{part}/"}  # relative, so that it holds behind a proxy
                    raise Refusal(HTTPStatus.PERMANENT_REDIRECT, "the address ends in a slash", moved)
                return "/".join(parts[place + 1 :])
        raise Refusal(HTTPStatus.NOT_FOUND, "use the address that lens view printed")


def allowed_name(name: str) -> str:
    """A host name as `--allow-host` takes it, in small letters.

    Raises:
        InputError: it is none.
    """
    found = _AUTHORITY.fullmatch(name.strip())
    if found is None or found[2] is not None or "*" in name:
        raise InputError(
            f"--allow-host {name!r} is no name of a host: expected one such as hub.example.org, without http://, port, "
            "path or *; any port is allowed"
        )
    return found[1].lower()


def _name(authority: str) -> str | None:
    """The name in HOST or HOST:PORT, in small letters; None if it is neither."""
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else found[1].lower()


def _target(target: str) -> tuple[str | None, str]:
    """Authority, where the target has one, and path, without percent signs."""
    if not target.startswith("/"):
        try:
            parts = urlsplit(target) if re.match(r"https?://", target, re.IGNORECASE) else None
        except ValueError:  # brackets that do not match
            parts = None
        if parts is None or not parts.netloc:
            raise Refusal(HTTPStatus.BAD_REQUEST, "expected a path, or an http address")
        return parts.netloc, unquote(parts.path or "/")
    return None, unquote(target.partition("?")[0].partition("#")[0])
