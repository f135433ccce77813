"""Names on Hugging Face's hub: `hf://OWNER/NAME[/PATH][@REVISION]`, and what one needs to read them.

`datasets/`, `spaces/` and `buckets/` come before OWNER, as huggingface_hub's file system has them; a revision may also
stand where that has it, after NAME. The token is huggingface_hub's own: HF_TOKEN, or that of `hf auth login`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import unquote

from attnlens.schemas.errors import InputError

FORM = "hf://OWNER/NAME[/PATH][@REVISION], with datasets/, spaces/ or buckets/ before OWNER"
_KINDS = {"models": "model", "datasets": "dataset", "spaces": "space", "buckets": "bucket"}
_PART = r"[A-Za-z0-9][\w.-]*"
_REVISION = r"@(?P<{}>refs/(?:pr/\d+|convert/[\w.-]+)|[^/@]+)"
_NAME = re.compile(
    rf"hf://(?:(?P<kind>{'|'.join(_KINDS)})/)?(?P<id>{_PART}/{_PART})(?:{_REVISION.format('early')})?"
    rf"(?:/(?P<path>.*?))?(?:{_REVISION.format('late')})?/?",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A file or folder in a repository or bucket. `path` is empty for all of it; a bucket has no revision."""

    url: str
    kind: str
    id: str
    path: str
    revision: str | None

    @property
    def _root(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def address(self) -> tuple[str, str]:
        """The hub, and the path there below which the file's bytes are."""
        revision = [] if self.kind == "bucket" else [self.revision or "main"]
        return endpoint(), "/".join([self._root, "resolve", *revision, self.path]).rstrip("/")

    def files(self, under: str = "") -> dict[str, int]:
        """Sizes of files below `under`, by their paths relative to `path`; needs huggingface_hub."""
        from huggingface_hub import HfApi

        hub, folder = HfApi(endpoint=endpoint()), "/".join(filter(None, [self.path, under])).rstrip("/") or None
        found: Iterable[object] = (
            hub.list_bucket_tree(self.id, folder, recursive=True)
            if self.kind == "bucket"
            else hub.list_repo_tree(self.id, folder, recursive=True, revision=self.revision, repo_type=self.kind)
        )
        inside = f"{self.path}/" if self.path else ""
        return {
            str(one.path).removeprefix(inside): int(one.size)
            for one in found
            if hasattr(one, "size") and hasattr(one, "path")
        }

    def refused(self, code: int) -> str:
        """Why the hub answered 401 or 403, and what to do."""
        if code == 403:
            return f"the hub refuses it to you (403): ask for access to {self.id} on its page, or use another token"
        if headers():
            return f"the hub does not take your token (401), or has no {self.id} for you: log in with hf auth login"
        how = "log in with hf auth login, or set HF_TOKEN"
        if find_spec("huggingface_hub") is None:
            how = f"pip install huggingface_hub, then {how}"
        return f"there is no public {self.id} on the hub (401); if it is private, {how}"


def parse(url: str) -> HubName:
    """What a `hf://` name says.

    Raises:
        InputError: it is not one; with two revisions; a revision of a bucket.
    """
    found = _NAME.fullmatch(url)
    if found is None or (found["early"] and found["late"]) or re.search(r"[?#]", url):
        raise InputError(f"{url} is not understood: expected {FORM}")
    path = unquote(found["path"] or "").strip("/")
    if any(part in ("", ".", "..") for part in path.split("/")) and path:
        raise InputError(f"{url} is not understood: expected {FORM}")
    kind, revision = _KINDS[(found["kind"] or "models").lower()], found["early"] or found["late"]
    if kind == "bucket" and revision:
        raise InputError(f"{url}: a bucket has no revisions, leave out @{revision}")
    return HubName(url=url, kind=kind, id=found["id"], path=path, revision=revision)


def is_hub_name(text: str) -> bool:
    """Whether a text is meant as one."""
    return text.lower().startswith("hf://")


def endpoint() -> str:
    """The address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def headers() -> dict[str, str]:
    """What says to the hub who asks. Empty without huggingface_hub, or without a token."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return {}
    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}
