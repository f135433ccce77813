"""Libraries talk while they load; the user's terminal belongs to our own progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOGGERS = ("transformers", "huggingface_hub", "accelerate", "bitsandbytes", "torch", "httpx", "httpcore", "gguf")
SILENT = logging.CRITICAL + 1


def _loggers() -> list[logging.Logger]:
    """The libraries' own loggers, and those below them that were given a level and so would not follow."""
    known = [name for name, logger in logging.root.manager.loggerDict.items() if getattr(logger, "level", 0)]
    return [logging.getLogger(name) for name in {*LOGGERS, *(n for n in known if n.split(".")[0] in LOGGERS)}]


@contextmanager
def quiet() -> Iterator[None]:
    """Within it no library writes log lines, warnings or progress bars. Everything is as before when it is left."""
    from tqdm.std import tqdm

    levels = {logger: logger.level for logger in _loggers()}
    start = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **{**kwargs, "disable": True})

    for logger in levels:
        logger.setLevel(SILENT)
    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = start
        for logger, level in levels.items():
            if logger.level == SILENT:  # else it was set anew meanwhile, and on purpose
                logger.setLevel(level)
