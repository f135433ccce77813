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


def require_package(name: str, purpose: str) -> None:
    """Return if the package `name` is installed.

    Raises:
        MissingExtraError: `purpose` needs it, and it is not there.
    """
    if find_spec(name) is None:
        raise MissingExtraError(
            f"{purpose} needs {name}, which is not installed: pip install 'attnlens[capture]' (or pip install {name})"
        )
