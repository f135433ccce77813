"""Is the `capture` extra here? Asked without importing any of it, so that a laptop without it gets one clear line."""

from __future__ import annotations

from importlib.util import find_spec

from attnlens.schemas.errors import MissingExtraError

REQUIRED = ("torch", "transformers", "accelerate", "safetensors", "jinja2")


def require_capture_extra() -> None:
    """Return if everything that capturing needs is installed.

    Raises:
        MissingExtraError: names what is missing and the command that installs it.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"capturing needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'attnlens[capture]'"
        )


def require_package(name: str, purpose: str, module: str | None = None) -> None:
    """Return if the package `name` is installed; `module` is what it is imported as, where that is not its name.

    Raises:
        MissingExtraError: `purpose` needs it, and it is not there.
    """
    if not _is_there(module or name):
        raise MissingExtraError(
            f"{purpose} needs {name}, which is not installed: pip install 'attnlens[capture]' (or pip install {name})"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
