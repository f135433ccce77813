"""Names on the hub: what they stand for, who is told the token, and one line for each refusal. Servers on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

import attnlens
from attnlens.schemas.errors import AttnlensError, InputError, StoreError
from attnlens.store.places import far, hub
from attnlens.store.tools.pack import pack
from render_store import make

TOKEN = "hf_secretsecretsecret"


class Hub:
    """A server that notes every request with its Authorization. `files`: path → bytes, or an address to go to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | str | int] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.private = False
        self.commit = ""
        self.url = ""


@contextmanager
def running() -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            who = self.headers.get("Authorization")
            path = unquote(self.path.partition("?")[0])
            found.asked.append((path, who))
            data = found.files.get(path, 404)
            if found.private and who != f"Bearer {TOKEN}":
                data = 401
            if isinstance(data, str):
                self.send_response(302)
                self.send_header("Location", data)
                data = b""
            elif isinstance(data, int):
                self.send_response(data)
                if self.path.startswith("/api"):  # as the hub has it
                    self.send_header("X-Error-Code", {403: "GatedRepo", 404: "RepoNotFound"}.get(data, ""))
                data = b"no"
            else:
                low, high = self.part(len(data))
                self.send_response(206 if (low, high) != (0, len(data)) else 200)
                self.send_header("Content-Range", f"bytes {low}-{high - 1}/{len(data)}")
                data = data[low:high]
            if found.commit:
                self.send_header("X-Repo-Commit", found.commit)
                self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_GET

        def part(self, size: int) -> tuple[int, int]:
            wanted = (self.headers.get("Range") or "").removeprefix("bytes=")
            if not wanted:
                return 0, size
            first, last = wanted.split("-")
            if not first:
                return max(0, size - int(last)), size
            return int(first), min(size, int(last) + 1) if last else size

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    made = make(folder / "run.zarr", n_prompt=4, n_generated=3)
    pack(made.path, folder / "run.zarr.zip")
    return (folder / "run.zarr.zip").read_bytes()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("obstore")
    with running() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("ATTNLENS_CACHE", str(tmp_path / "cache"))
        far._opened.clear()
        yield found


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("hf://me/stores/run.zarr.zip", "me/stores/resolve/main/run.zarr.zip"),
        ("hf://me/stores/deep/run.zarr.zip@v1.2", "me/stores/resolve/v1.2/deep/run.zarr.zip"),
        ("hf://me/stores@v1.2/deep/run.zarr.zip", "me/stores/resolve/v1.2/deep/run.zarr.zip"),
        ("hf://datasets/me/stores/run.zarr@refs/pr/3", "datasets/me/stores/resolve/refs/pr/3/run.zarr"),
        ("hf://datasets/me/stores@refs/convert/x/run.zarr", "datasets/me/stores/resolve/refs/convert/x/run.zarr"),
        ("hf://spaces/me/app/a/run.zarr", "spaces/me/app/resolve/main/a/run.zarr"),
        ("hf://buckets/me/kept/a/run.zarr.zip", "buckets/me/kept/resolve/a/run.zarr.zip"),
        ("hf://me/stores", "me/stores/resolve/main"),
    ],
)
def test_names_are_addresses_of_the_hub(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub")
    assert hub.parse(name).address() == ("http://hub", path)


@pytest.mark.parametrize("name", ["hf://buckets/me/kept/a.zip", "hf://datasets/me/stores@v1/a b/run.zarr.zip"])
def test_huggingface_hub_has_the_same_addresses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_uris = pytest.importorskip("huggingface_hub.utils._hf_uris")
    theirs, ours = hub_uris.parse_hf_uri(name), hub.parse(name)
    assert (theirs.type, theirs.id, theirs.path_in_repo, theirs.revision) == (
        ours.kind, ours.id, ours.path, ours.revision,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["hf://me", "hf:///me/x", "hf://me/x@v1/y@v2", "hf://me/../x", "hf://buckets/me/x/y@v1", "hf://me/x/a//b"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"hf://"):
        hub.parse(name)


def test_the_token_goes_to_the_hub_and_to_no_other_host(server: Hub, packed: bytes) -> None:
    server.private = True
    with running() as elsewhere:
        server.files["/me/stores/resolve/main/run.zarr.zip"] = f"{elsewhere.url}/blob?X-Amz-Signature=1"
        elsewhere.files["/blob"] = packed
        assert attnlens.open("hf://me/stores/run.zarr.zip").ids == ["0000"]
        assert {who for _, who in server.asked} == {f"Bearer {TOKEN}"}
        assert elsewhere.asked
        assert {who for _, who in elsewhere.asked} == {None}


def test_other_servers_are_told_nothing(server: Hub, packed: bytes) -> None:
    server.files["/run.zarr.zip"] = packed
    attnlens.open(f"{server.url}/run.zarr.zip")
    assert {who for _, who in server.asked} == {None}


@pytest.mark.parametrize(
    ("code", "words"),
    [(401, "does not take your token"), (403, "ask for access to me/stores on its page"), (404, "no such store")],
)
def test_refusals_are_one_line_without_the_token(server: Hub, code: int, words: str) -> None:
    server.files["/me/stores/resolve/main/run.zarr.zip"] = code
    with pytest.raises(StoreError, match=words) as caught:
        attnlens.open("hf://me/stores/run.zarr.zip")
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("installed", "words"), [(True, "if it is private, log in"), (False, "pip install huggingface")]
)
def test_without_a_token_it_says_how_to_log_in(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: bool, words: str
) -> None:
    server.private = True
    monkeypatch.delenv("HF_TOKEN")
    code = f"""if 1:
        import sys
        if not {installed}:
            import importlib.util, importlib.abc
            class Gone(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] == "huggingface_hub":
                        raise ModuleNotFoundError(name)
            find = importlib.util.find_spec
            importlib.util.find_spec = lambda name, *a: None if name == "huggingface_hub" else find(name, *a)
            sys.meta_path.insert(0, Gone())
        from attnlens.__main__ import main
        sys.argv = ["lens", "ls", "hf://me/stores/run.zarr.zip"]
        main()
    """
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.fixture
def online(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """huggingface_hub itself talks to the server."""
    constants = pytest.importorskip("huggingface_hub.constants")
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return server


def test_lenses_and_models_take_the_same_names(online: Hub) -> None:
    pytest.importorskip("torch")
    from attnlens.capture import hub_files
    from attnlens.capture.lenses.choice import choose_lenses

    commit, files = "1" * 40, {"lens/a/config.json": b"{}", "lens/a/params.pt": b"12", "lens/a/large.bin": b"3"}
    about = {"id": "me/x", "sha": commit, "siblings": [{"rfilename": name} for name in files], "private": True,
             "disabled": False, "downloads": 0, "likes": 0, "tags": [], "modelId": "me/x"}  # fmt: skip
    online.private, online.commit = True, commit
    online.files["/api/models/me/x/revision/v2"] = json.dumps(about).encode()
    tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
    online.files[f"/api/models/me/x/tree/{commit}"] = json.dumps(tree).encode()
    for name, data in files.items():
        online.files[f"/me/x/resolve/{commit}/{name}"] = data
    (lens,) = choose_lenses(["tuned:hf://me/x/lens/a@v2"])
    assert lens.folder is not None
    assert sorted(path.name for path in lens.folder.iterdir()) == ["config.json", "params.pt"]
    assert lens.source == "hf://me/x/lens/a@v2"
    folder, revision = hub_files.model_named("hf://me/x/lens/a", "v2")
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "large.bin", "params.pt"]
    assert revision is None
    online.files["/api/models/me/gated/revision/v2"] = 403
    for name, words in (("none", "me/none is not on the hub for you"), ("gated", "me/gated is gated")):
        with pytest.raises(AttnlensError, match=words) as caught:
            choose_lenses([f"tuned:hf://me/{name}/lens@v2"])
        assert TOKEN not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_itself() -> None:
    pytest.importorskip("torch")
    from attnlens.capture import hub_files

    assert hub_files.model_named("hf://me/x@v2", None) == ("me/x", "v2")
    assert hub_files.model_named("hf://me/x", "v2") == ("me/x", "v2")
    assert hub_files.model_named("me/x", "v2") == ("me/x", "v2")
    with pytest.raises(InputError, match="leave out one"):
        hub_files.model_named("hf://me/x@v2", "v3")


def test_files_of_a_repository_are_listed(online: Hub) -> None:
    server = online
    tree = [{"type": "file", "path": "a/run.zarr/x", "size": 3, "oid": "0" * 40},
            {"type": "directory", "path": "a/run.zarr/c", "oid": "0" * 40}]  # fmt: skip
    server.files["/api/datasets/me/stores/tree/v1/a/run.zarr"] = json.dumps(tree).encode()
    assert hub.parse("hf://datasets/me/stores/a/run.zarr@v1").files() == {"x": 3}
