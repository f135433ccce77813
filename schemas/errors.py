"""The errors that a person is told about in one line. `cli.main` catches the root class, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

OPTIONS: Mapping[str, str] = {
    "buffer_bytes": "--buffer",
    "lens=False": "--no-lens",
    "lenses": "--lens",
}
"""Settings whose option is called otherwise; the option of others is their name, with hyphens."""


class Setting(str):
    """The name of a setting in a message: the parameter's from Python, the option's on the command line."""

    option: str

    def __new__(cls, name: str, option: str | None = None) -> Setting:
        """`option`: where it depends on the value (`--track-id` of a track that is a number)."""
        setting = super().__new__(cls, name)
        setting.option = option or OPTIONS.get(name) or f"--{name.replace('_', '-')}"
        return setting


def command_line(pieces: Iterable[object]) -> str:
    """A message given in pieces, its settings called by their options."""
    return "".join(piece.option if isinstance(piece, Setting) else str(piece) for piece in pieces)


class AttnlensError(Exception):
    """Something the user can put right. The message names what was found, expected, and what to do.

    It is given in pieces where it names a setting: `InputError(Setting("top_k"), " is 0, expected 1 or more")`.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "".join(map(str, self.args))

    def on_command_line(self) -> str:
        """The message with settings called by their options."""
        return command_line(self.args)


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
