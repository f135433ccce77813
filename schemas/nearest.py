"""What was probably meant by a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 3


def did_you_mean(name: str, known: Iterable[str], *, before: str = "") -> str:
    """The end of a message, `; did you mean french or fresh?`; empty where no known name is near. Case does not count.

    `before` is put before what is meant: the folder that was written before `name`.
    """
    spelled = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(name.casefold(), spelled, n=MOST)
    return f"; did you mean {' or '.join(before + spelled[one] for one in close)}?" if close else ""
