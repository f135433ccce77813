"""Helper processes that know nothing of the script that started them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_script() -> Iterator[None]:
    """Start processes of `multiprocessing` in here (forkserver or spawn): they do not import the caller's script.

    `multiprocessing` runs a script once more in each process that it starts, so one without
    `if __name__ == "__main__"` would do everything twice, this call included. Helpers run functions of ours only, and
    need nothing of it. For the moment of a start the script's module is another one; its own globals stay as they are.
    """
    script = sys.modules.get("__main__")
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        if script is None:
            del sys.modules["__main__"]
        else:
            sys.modules["__main__"] = script
