"""A real browser for tests that need one. They are skipped where there is none."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
          "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb",
          "--hide-scrollbars", "--disable-background-timer-throttling", "--disable-renderer-backgrounding",
          "--disable-backgrounding-occluded-windows", "--no-default-browser-check", "--disable-extensions",
          "--disable-dev-shm-usage"]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, with nothing open. One program serves all tests of a process: each start costs half a second."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: apt-get install chromium, or set CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.connect_over_cdp(_running())
        yield browser
        for context in browser.contexts[1:]:  # the first is the browser's own
            context.close()
        browser.close()


@cache
def _running() -> str:
    """The address of a browser that ends with the tests."""
    folder = tempfile.mkdtemp(prefix="attnlens-chromium-")
    words = [str(CHROMIUM), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    where, deadline = Path(folder, "DevToolsActivePort"), time.monotonic() + 60
    while not where.exists() or where.read_text().count("\n") < 1:
        assert process.poll() is None, f"{CHROMIUM} has ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{CHROMIUM} does not start"
        time.sleep(0.02)
    port, _, path = where.read_text().partition("\n")
    return f"ws://127.0.0.1:{port}{path.strip()}"


@contextmanager
def open_page(width: int = 1400, height: int = 900) -> Iterator[tuple[Any, list[str]]]:
    """A page of Chromium, and what went wrong in it: errors, dialogs, requests that leave the machine."""
    with chromium() as browser:
        page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: wrong.extend([] if request.url.startswith("file:") else [request.url]))
        yield page, wrong
