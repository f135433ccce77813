"""`lens view` on another machine: through an ssh tunnel to another port, and behind proxies with a path prefix."""

from __future__ import annotations

import getpass
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from render_store import Made, make
from viewer_page import Page, chromium, running, serving

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def drawn(page: Page, made: Made) -> None:
    """The page shows the numbers that were written."""
    page.set(query=9, heads="0", view="cells")
    assert page.page.inner_text(".notice") == ""
    found = page.js("() => Array.from({ length: 3 }, (_, row) => attnlens.view.board.scene.value(row, 4))")
    assert found == made.weights[:, 0, 9, 4].astype(np.float64).tolist()
    assert page.wrong == []


def proxy(port: int, strip: bool) -> type[BaseHTTPRequestHandler]:
    """Forwards /user/me/proxy/PORT/…, with the browser's own Host, and with the prefix in the path or without."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            prefix = f"/user/me/proxy/{port}/"
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            length = int(self.headers.get("Content-Length", 0))
            inner = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            path = "/" + self.path.removeprefix(prefix) if strip else self.path
            inner.request(self.command, path, self.rfile.read(length) or None, dict(self.headers))
            answer = inner.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            inner.close()

        do_POST = do_GET

    return Proxy


@pytest.mark.parametrize("strip", [True, False])
def test_the_page_works_behind_a_proxy_with_a_prefix(tmp_path: Path, strip: bool) -> None:
    made = make(tmp_path / "run.zarr")
    with (
        serving(tmp_path / "run.zarr") as server,
        running(proxy(server.port, strip)) as (home, _),
        chromium() as browser,
    ):
        page = Page(browser, f"{home}user/me/proxy/{server.port}/{server.token}/")
        drawn(page, made)
        page.close()


@contextmanager
def tunnel(folder: Path, port: int) -> Iterator[int]:
    """`ssh -L` to a port through an sshd of our own with throwaway keys: the port at this end."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    door, mine = free_port(), free_port()
    (folder / "sshd_config").write_text(
        f"Port {door}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    assert SSHD is not None
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    client: list[str | Path] = [
        "ssh", "-F", "none", "-N", "-L", f"{mine}:localhost:{port}", "-p", str(door), "-i", folder / "user",
        "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known", "-o", "IdentitiesOnly=yes",
        "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=ERROR", f"{getpass.getuser()}@127.0.0.1",
    ]  # fmt: skip
    with subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.PIPE) as daemon:
        try:
            wait_for(door, daemon)
            with subprocess.Popen(client, stderr=subprocess.PIPE) as ssh:
                try:
                    wait_for(mine, ssh)
                    yield mine
                finally:
                    ssh.terminate()
        finally:
            daemon.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until something listens there."""
    for _ in range(100):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    process.terminate()
    said = process.stderr.read() if process.stderr else b""
    pytest.fail(f"nothing listens on {port}: {said.decode(errors='replace')[-500:]}")


@pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no sshd: apt-get install openssh-server")
def test_the_page_works_through_an_ssh_tunnel_to_another_port(tmp_path: Path) -> None:
    made = make(tmp_path / "run.zarr")
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    with serving(tmp_path / "run.zarr") as server, tunnel(keys, server.port) as port, chromium() as browser:
        assert port != server.port
        page = Page(browser, f"http://localhost:{port}/{server.token}/")
        drawn(page, made)
        page.close()
