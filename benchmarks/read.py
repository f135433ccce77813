"""One row of a long dense store: bytes that a reader takes, over the bytes of that row (limit: 3).

    python benchmarks/read.py                    a made-up store of 8 layers, 9 heads, 4096 tokens
    python benchmarks/read.py run.zarr --query 4000

A row is `attention.rows(query)`, every layer and head, two bytes a weight. The store is opened for it, so metadata, the
manifest and digests count. As a folder and as a zip: what the process reads (`rchar` of /proc/self/io). Over http: what
a server on this machine sends, of the folder and of the zip, nothing kept from before. All rows that are read are
compared with the digests of their chunks. The exit code is 1 where the limit is passed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import attnlens
from attnlens.store.tools.pack import pack

LIMIT = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path)
    parser.add_argument("--query", type=int, default=4000)
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from store_server import Served, serve
    from test_store_rows import long_store

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        store = asked.store or long_store(Path(folder) / "made.zarr")
        packed = pack(store, Path(folder) / "made.zarr.zip").path
        about = attnlens.open(store)[0]
        row = 2 * about.metadata.model.n_layer * about.metadata.model.n_head * about.n_token
        print(f"{about.n_token} tokens, row {asked.query}: {row / 1e6:.2f} MB")
        taken = {"folder": from_disk(store, asked.query), "zip": from_disk(packed, asked.query)}
        for name, path in (("folder over http", store), ("zip over http", packed)):
            with serve(Served(path.parent)) as server:
                attnlens.open(f"{server.url}/{path.name}")[0].attention.rows(asked.query)
                taken[name] = server.bytes
    for name, size in taken.items():
        print(f"{name:17} {size / 1e6:6.2f} MB read, {size / row:.2f} × the row")
    return int(max(taken.values()) > LIMIT * row)


def from_disk(store: Path, query: int) -> int:
    """Bytes that this process reads for one row; the second time, since the first also reads code."""
    for _ in range(2):
        before = read_so_far()
        attnlens.open(store)[0].attention.rows(query)
    return read_so_far() - before


def read_so_far() -> int:
    """Bytes that this process has read, from whatever file."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


if __name__ == "__main__":
    sys.exit(main())
