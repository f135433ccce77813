"""Fails if any of the named modules could be imported here."""

import sys
from importlib.util import find_spec

present = [name for name in sys.argv[1:] if find_spec(name)]
sys.exit(f"must be absent here: {', '.join(present)}" if present else 0)
