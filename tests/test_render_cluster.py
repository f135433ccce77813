"""Pictures drawn by the workers of a Dask cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnlens.render.options import RenderOptions
from attnlens.render.pictures import render
from attnlens.render.run import cluster
from attnlens.schemas.errors import AttnlensError, InputError, StoreError
from render_store import make

distributed = pytest.importorskip("distributed")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning")
def test_a_cluster_draws_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = make(tmp_path / "run.zarr")
    options = RenderOptions(dpi=30, window=4, step=2, queries="all")
    render(made.path, tmp_path / "here", options=options)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, worker_dashboard_address=None
    ) as there:
        address = there.scheduler_address.replace("tcp://", "dask://")
        engine = cluster.Cluster(address)
        # A store that is named from where this process stands is found from where the workers stand.
        report = render("run.zarr", tmp_path / "there", options=options, engine=engine)
        assert report.count == len(bytes_of(tmp_path / "here"))
        assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")
        render(made.path, tmp_path / "pdf", options=dataclasses.replace(options, format="pdf"), engine=engine)
        again = render(made.path, tmp_path / "there", options=options, engine=engine, resume=True)
        assert (again.count, again.kept) == (0, report.count)
        for chunk in made.path.glob("0000/attention_weight/c/**/*"):
            if chunk.is_file():
                chunk.write_bytes(b"damage")
        with pytest.raises(StoreError, match="said by a worker of the cluster"):
            render(made.path, tmp_path / "bad", options=dataclasses.replace(options, heads="0"), engine=engine)


@pytest.mark.parametrize(
    "address", ["dask://", "dask://host", "dask://host:port", "tcp://host:1", "local", "dask://:1"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InputError, match=r"expected dask://HOST:PORT or dask://local"):
        cluster.Cluster(address)


def test_no_scheduler_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.2)
    made = make(tmp_path / "run.zarr", n_generated=2)
    with pytest.raises(InputError, match="no scheduler of Dask answers there"):
        render(made.path, tmp_path / "out", engine=cluster.Cluster("dask://127.0.0.1:1"))
    assert list((tmp_path / "out").iterdir()) == []


def _future(result: object) -> SimpleNamespace:
    def raise_or_give() -> object:
        if isinstance(result, Exception):
            raise result
        return result

    return SimpleNamespace(result=raise_or_give)


def test_workers_of_another_version_are_refused() -> None:
    other = {**cluster._made_with(), "matplotlib": "1.0"}
    with pytest.raises(InputError, match=r"they have matplotlib 1\.0; here it is matplotlib"):
        cluster._result(_future(cluster._Drawn([], frozenset(), other)))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'attnlens'"), "workers cannot draw: No module named 'attnlens'"),
        (InputError("too large"), r"too large \(said by a worker"),
        (RuntimeError("worker\ndied"), "lost a job: worker died"),
    ],
)
def test_what_goes_wrong_on_a_worker_is_one_line(error: Exception, message: str) -> None:
    with pytest.raises(AttnlensError, match=message) as caught:
        cluster._result(_future(error))
    assert "\n" not in str(caught.value)
