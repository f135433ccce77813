"""The errors that a person is told about in one line. `cli.main` catches the root class, once."""

from __future__ import annotations


class AttnlensError(Exception):
    """Something the user can put right. The message names what was found, expected, and what to do."""

    exit_code = 1


class InputError(AttnlensError):
    """An option, file or text that cannot be used."""


class StoreError(AttnlensError):
    """A path that is not a store, or a store that is damaged, foreign or of another version."""


class AbsentError(AttnlensError):
    """Data that was asked for but never computed, never committed, or cropped away."""


class ModelError(AttnlensError):
    """A model that cannot be loaded, or cannot be captured truthfully."""


class MissingExtraError(AttnlensError):
    """A command needs a package that is not installed."""


class Interrupted(AttnlensError):  # noqa: N818 - it is not an error
    """Ctrl-C. The message says what was kept."""

    exit_code = 130
