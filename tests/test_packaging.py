"""What is imported from where, what help costs, and what goes into the wheel."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import attnlens

ROOT = Path(__file__).parent.parent
PACKAGE = Path(attnlens.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("torch", "transformers", "accelerate", "zarr", "numpy", "matplotlib")

PARTS = {
    "schemas": {"schemas"},
    "progress": {"progress"},
    "store": {"__init__", "store", "schemas", "progress"},
    "render": {"__init__", "render", "store", "schemas", "progress"},
    "capture": {"__init__", "capture", "store", "schemas", "progress"},
    "console": {"console", "schemas", "progress"},
    "info_page": {"console", "store"},
    "plan_page": {"console", "capture"},
    "commands": {"commands", "console", "info_page", "plan_page", "capture", "render", "store", "schemas", "progress"},
    "cli": {"cli", "commands", "console", "schemas", "__init__"},
    "__init__": {"store", "schemas", "render", "__init__"},
    "__main__": {"cli"},
}
"""Each part of the package, and the parts that it may import."""

SEEN_THROUGH_BASE = {"google_crc32c", "numcodecs", "PIL", "typing_extensions"}
"""Import names that come with a dependency of the laptop half."""

ASKED_FOR = {"obstore", "av", "distributed", "h5py", "huggingface_hub", "pyarrow", "xarray"}
"""Import names of the extras `video`, `cluster`, `remote`, `hdf5`, `parquet` and `xarray`, imported where a missing
one is named."""


def sources() -> list[Path]:
    folders = [path for part in PARTS if (path := PACKAGE / part).is_dir()]
    return sorted([*PACKAGE.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))])


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that the file imports anywhere, functions and TYPE_CHECKING blocks included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "attnlens":
                yield from ((node.lineno, f"attnlens.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, str(node.module)


def test_every_source_belongs_to_a_part() -> None:
    assert {part_of(path) for path in sources()} == set(PARTS)


def test_imports_go_one_way() -> None:
    wrong = []
    for path in sources():
        for line, module in imports(path):
            first, _, rest = module.partition(".")
            if first != "attnlens":
                continue
            target = rest.split(".")[0]
            target = target if target in PARTS else "__init__"
            if target not in PARTS[part_of(path)]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {module}")
    assert wrong == []


def test_the_laptop_half_imports_its_own_dependencies_only() -> None:
    base = {requirement.split(">")[0] for requirement in PROJECT["project"]["dependencies"]}
    allowed = base | SEEN_THROUGH_BASE | ASKED_FOR | set(sys.stdlib_module_names) | {"attnlens"}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in sources()
        if part_of(path) != "capture"
        for line, module in imports(path)
        if module.split(".")[0] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "action",
    [
        "import attnlens",
        "import attnlens.cli",
        "import attnlens.capture.extra",
        "import attnlens.cli; sys.argv = ['lens', '--help']; attnlens.cli.main()",
        "import attnlens.cli; sys.argv = ['lens', 'capture', '--help']; attnlens.cli.main()",
    ],
)
def test_nothing_heavy_is_imported(action: str) -> None:
    report = f"atexit.register(lambda: print(*({set(HEAVY)!r} & sys.modules.keys()), file=sys.stderr))"
    code = f"import atexit, sys\n{report}\n{action}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_the_wheel_lists_every_part() -> None:
    listed = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    parts = {part if (PACKAGE / part).is_dir() else f"{part}.py" for part in PARTS}
    assert listed == parts | {"py.typed"}
    assert all((PACKAGE / name).exists() for name in listed)


def test_one_version_everywhere() -> None:
    assert f"version: {attnlens.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert attnlens.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_capture_without_torch_names_the_extra() -> None:
    script = """
import sys

class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *more): return None if name == "torch" else self.finder.find_spec(name, *more)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
from attnlens.schemas.errors import MissingExtraError
for line in ("import attnlens.capture", "from attnlens.capture import capture", "import attnlens.capture.engine"):
    try:
        exec(line)
    except MissingExtraError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    said = "capturing needs torch, which is not installed: pip install 'attnlens[capture]'"
    assert done.stdout.splitlines() == [said] * 3, done.stderr
