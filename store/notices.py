"""What a person should know although nothing is wrong: one line each, to the logger `attnlens`.

The command line prints them on stderr. From Python they are log records of level WARNING.
"""

from __future__ import annotations

import logging

LOG = logging.getLogger("attnlens")


def tell(line: str) -> None:
    """Say one line."""
    LOG.warning("%s", line)
