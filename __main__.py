"""`python -m attnlens` is the command `lens`."""

from __future__ import annotations

import atexit
import os
import signal
import sys

_INTERRUPTED = 130


def main() -> None:
    """Entry point. Ctrl-C is one line and exit code 130, from the first import to the end."""
    try:
        try:
            from attnlens import cli

            cli.main()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done; what is left would print a traceback
    except KeyboardInterrupt:
        print("lens: interrupted", file=sys.stderr)  # noqa: T201
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
    else:
        return
    # Python does not take itself apart here: interrupted imports and threads of libraries can hang or crash it.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
