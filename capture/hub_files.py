"""Files of the hub that a run needs on this machine, by names such as hf://OWNER/NAME/PATH@REVISION."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from attnlens.schemas.errors import InputError, ModelError
from attnlens.store.places import hub

# Of huggingface_hub.errors, by name; the first that fits says why.
_WHY = (
    ("GatedRepoError", "is gated, and not open to you: ask for access on its page, and log in with hf auth login"),
    (
        "RepositoryNotFoundError",
        "is not on the hub for you; if it is private, hf auth login, or set HF_TOKEN",
    ),
    ("RevisionNotFoundError", "has no such revision"),
    ("LocalEntryNotFoundError", "is not in the cache of the hub here, and the hub cannot be reached"),
    ("EntryNotFoundError", "has no such file"),
    ("OfflineModeIsEnabled", "is not in the cache of the hub here, and HF_HUB_OFFLINE is set"),
)


@lru_cache(maxsize=64)
def on_this_machine(url: str, files: tuple[str, ...] = ("*",)) -> Path:
    """The file (`.gguf`) or folder that a hub name means, from the hub's cache or brought there.

    `files`: patterns of what is needed of a folder.

    Raises:
        InputError: the name is not understood, or is one of a bucket.
        ModelError: it is not there, or not for you.
    """
    name = hub.parse(url)
    if name.kind == "bucket":
        raise InputError(f"{url}: only stores are read from buckets; download it, and give the folder")
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    offline = constants.HF_HUB_OFFLINE
    inside = [f"{name.path}/{one}" if name.path else one for one in files]
    try:
        if name.path.endswith(".gguf"):
            return Path(
                hf_hub_download(
                    name.id, name.path, repo_type=name.kind, revision=name.revision, local_files_only=offline
                )
            )
        root = snapshot_download(
            name.id, repo_type=name.kind, revision=name.revision, local_files_only=offline, allow_patterns=inside
        )
        found = Path(root) / name.path
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        why = next((why for kind, why in _WHY if kind in kinds), None)
        if why is None:
            raise ModelError(f"{url} cannot be read from the hub: {type(error).__name__}") from error
        raise ModelError(f"{url}: {name.id} {why}") from error
    if not found.is_dir():
        raise ModelError(f"{url}: {name.id} has no folder {name.path}")
    return found


def model_named(text: str, revision: str | None) -> tuple[str, str | None]:
    """What a model's name stands for: `hf://OWNER/NAME@REVISION` is OWNER/NAME at that revision, a path in it a file
    or folder here, every other name itself.

    Raises:
        InputError: two revisions, or a name that is not understood.
        ModelError: as `on_this_machine`.
    """
    if not hub.is_hub_name(text):
        return text, revision
    name = hub.parse(text)
    if name.revision and revision and name.revision != revision:
        raise InputError(f"{text} names a revision, and {revision!r} was given as well: leave out one of them")
    wanted = name.revision or revision
    if name.kind == "model" and not name.path:
        return name.id, wanted
    at = f"@{wanted}" if wanted and not name.revision else ""
    return str(on_this_machine(text + at)), None
