"""`--engine dask://…`: the same jobs on the workers of a Dask cluster; files are written here, where they are wanted.

Every worker needs attnlens of this version and sees the store under the same path. A task carries names and numbers
there and bytes of pictures back; only so many are under way that neither side has to hold many.
"""

from __future__ import annotations

import logging
import platform
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from attnlens import __version__
from attnlens.render.formats import format_named
from attnlens.render.run import files
from attnlens.render.run.helpers import cores
from attnlens.render.run.jobs import Job, Outcome, draw, painter_of
from attnlens.schemas.errors import AttnlensError, InputError, MissingExtraError
from attnlens.store.places import absolute

SCHEME = "dask://"
LOCAL = "local"
PATIENCE = 10.0
"""Seconds in which a scheduler has to answer."""

_AHEAD = 2
_DECIDES = ("matplotlib", "numpy", "isal", "pillow", "manimgx-fonts", "noto-cjk-sans-otc")
"""Packages whose version may show in a picture's bytes."""

_ONE_AT_A_TIME = threading.Lock()
"""A painter is not for several threads, and a worker may have some."""


@dataclass(frozen=True)
class _Drawn:
    """What a worker sends back: (file name without ending, bytes), characters without a font, and what drew them."""

    files: list[tuple[str, bytes]]
    missing: frozenset[str]
    made_with: dict[str, str]


class Cluster:
    """An engine for `attnlens.render.pictures.render`. Nothing is connected before the first job.

    Raises:
        InputError: the address is none.
        MissingExtraError: `distributed` is not installed.
    """

    def __init__(self, address: str) -> None:
        place = address.removeprefix(SCHEME)
        host, colon, port = place.rpartition(":")
        if not address.startswith(SCHEME) or not (place == LOCAL or (host and colon and port.isdecimal())):
            raise InputError(f"--engine {address!r} is not understood: expected dask://HOST:PORT or dask://local")
        self._place = place
        _distributed()

    def __call__(self, jobs: Iterable[Job], count: int) -> Iterator[Outcome]:
        """Draw jobs. Outcomes come in no order.

        Raises:
            InputError: no scheduler answers, or its workers would draw something else than this process.
            AttnlensError: what a job raised.
        """
        with _quiet(), _client(self._place) as client:
            ahead = _AHEAD * max(1, sum(client.nthreads().values()))
            left = iter(jobs)
            running: dict[Any, Job] = {}
            while True:
                for job in islice(left, ahead - len(running)):
                    there = replace(job, store=absolute(job.store))
                    running[client.submit(_draw, there, pure=False)] = job
                if not running:
                    return
                _distributed().wait(list(running), return_when="FIRST_COMPLETED")
                for future in [future for future in running if future.done()]:
                    yield _keep(running.pop(future), _result(future))


def _draw(job: Job) -> _Drawn:
    """On a worker."""
    with _ONE_AT_A_TIME:
        return _Drawn(list(draw(job)), painter_of(job.options).missing_characters, _made_with())


def _result(future: Any) -> _Drawn:
    try:
        drawn = future.result()
    except AttnlensError as error:
        raise type(error)(f"{error} (said by a worker of the cluster)") from error
    except (ModuleNotFoundError, AttributeError) as error:
        raise InputError(
            f"the cluster's workers cannot draw: {error}; they need attnlens {__version__}, which this is"
        ) from error
    except Exception as error:  # of distributed: a worker died, the scheduler is gone
        raise AttnlensError(f"the cluster lost a job: {' '.join(str(error).split())[:300]}") from error
    assert isinstance(drawn, _Drawn)
    here = _made_with()
    if other := [f"{name} {drawn.made_with.get(name)}" for name in here if drawn.made_with.get(name) != here[name]]:
        raise InputError(
            f"the cluster's workers would draw other bytes: they have {', '.join(other)}; here it is "
            + ", ".join(f"{name} {here[name]}" for name in here if drawn.made_with.get(name) != here[name])
        )
    return drawn


def _keep(job: Job, drawn: _Drawn) -> Outcome:
    folder, suffix = Path(job.folder), format_named(job.options.format).SUFFIX
    for name, data in drawn.files:
        files.write(folder / f"{name}{suffix}", data)
    return Outcome(count=len(drawn.files), missing=drawn.missing)


def _made_with() -> dict[str, str]:
    """Versions of all that decides about a picture's bytes."""
    found = {"attnlens": __version__, "zlib": zlib.ZLIB_RUNTIME_VERSION, "machine": platform.machine()}
    for package in _DECIDES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@contextmanager
def _client(place: str) -> Iterator[Any]:
    distributed = _distributed()
    if place == LOCAL:
        with (
            distributed.LocalCluster(
                n_workers=cores(), threads_per_worker=1, processes=True, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(f"tcp://{place}", timeout=PATIENCE)
    except (OSError, TimeoutError) as error:
        raise InputError(f"--engine {SCHEME}{place}: no scheduler of Dask answers there") from error
    with client:
        if not client.nthreads():
            raise InputError(f"--engine {SCHEME}{place}: the scheduler has no workers")
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """What distributed logs while it starts and stops is no news for a person; its errors are told by ours."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError("--engine needs Dask: pip install 'attnlens[cluster]'") from error
    return distributed
