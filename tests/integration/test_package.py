"""Wheels and sdists: the same to the byte wherever they are built, and what they hold; what is imported is declared."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from icdsel.trackers import TRACKERS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = ("icdsel", "README.md", "LICENSE", "pyproject.toml", ".gitignore")
SHIPPED = {
    *(f"icdsel/tiny_vlm/weights/{path.name}" for path in (ROOT / "icdsel/tiny_vlm/weights").iterdir()),
    *(f"icdsel/page/template/{path.name}" for path in (ROOT / "icdsel/page/template").iterdir()),
    *(f"icdsel/serve/page/{path.name}" for path in (ROOT / "icdsel/serve/page").iterdir()),
    "icdsel/py.typed",
}
NOT_IMPORTED = {
    "torchvision",  # transformers' processor of Qwen2.5-VL needs it
    "tensorboard",  # only torch's writer is used, which imports it
    *("alembic", "sqlalchemy"),  # MLflow needs them for a store without a server
}


def copy(folder: Path, mode: int) -> Path:
    """A checkout with other permissions and times, its files made in another order."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES if mode & 0o044 else reversed(SOURCES):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored, copy_function=shutil.copyfile)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for path in folder.rglob("*"):
        path.chmod(mode | 0o111 if path.is_dir() else mode)
        os.utime(path, (mode * 10**6, mode * 10**6))
    return folder


def build(source: Path, *targets: str, umask: int = 0o022, **environment: str) -> dict[str, Path]:
    """What the backend makes of a folder, by the target."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install '.[test]'")
    out = source.with_name(f"{source.name}-dist")
    variables = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"} | environment
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(
        [*words, *(word for target in targets for word in ("-t", target))],
        cwd=source,
        env=variables,
        umask=umask,
        check=True,
        capture_output=True,
    )
    return {"wheel" if path.suffix == ".whl" else "sdist": path for path in out.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(copy(tmp_path_factory.mktemp("one") / "checkout", 0o644), "sdist", "wheel", TZ="UTC", LC_ALL="C")


@pytest.fixture(scope="module")
def unpacked(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built["sdist"]) as archive:
        archive.extractall(folder, filter="data")
    [made] = folder.iterdir()
    return made


def test_another_checkout_at_another_time_gives_the_same_bytes(built: dict[str, Path], tmp_path: Path):
    other = copy(tmp_path / "another place", 0o600)
    for stray in (
        "results/world/a.jsonl",
        "data/world/a.png",
        "tests/data/a.pt",
        "icdsel/__pycache__/a.pyc",
        "icdsel/notes.txt",
        "icdsel/results/a.jsonl",
        ".ci/run",
        "dist/a.whl",
    ):
        (other / stray).parent.mkdir(parents=True, exist_ok=True)
        (other / stray).write_text("stray")
    again = build(other, "sdist", "wheel", umask=0o077, TZ="Asia/Tokyo", LC_ALL="C.UTF-8", PYTHONHASHSEED="7", USER="x")
    assert {kind: path.name for kind, path in again.items()} == {kind: path.name for kind, path in built.items()}
    assert again["wheel"].read_bytes() == built["wheel"].read_bytes()
    assert again["sdist"].read_bytes() == built["sdist"].read_bytes()


def test_the_sdist_gives_the_same_wheel(built: dict[str, Path], unpacked: Path):
    assert build(unpacked, "wheel")["wheel"].read_bytes() == built["wheel"].read_bytes()


def test_the_wheel_holds_the_package_and_nothing_else(built: dict[str, Path]):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "icdsel").rglob("*.py")}
    with zipfile.ZipFile(built["wheel"]) as archive:
        held = set(archive.namelist())
        [metadata] = [archive.read(name).decode() for name in held if name.endswith(".dist-info/METADATA")]
        license_text = [archive.read(name) for name in held if name.endswith(".dist-info/licenses/LICENSE")]
    assert {name for name in held if ".dist-info/" not in name} == modules | SHIPPED
    assert len(SHIPPED) == 7 + 9 + 8 + 1
    assert license_text == [(ROOT / "LICENSE").read_bytes()]
    assert "License-Expression: Apache-2.0\n" in metadata


def test_the_sdist_holds_the_package_and_how_it_is_built(built: dict[str, Path], unpacked: Path):
    held = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    beside = {"README.md", "LICENSE", "pyproject.toml", ".gitignore", "PKG-INFO"}
    assert {name for name in held if not name.startswith("icdsel/")} == beside
    assert held >= SHIPPED
    with tarfile.open(built["sdist"]) as archive:
        assert {(member.uid, member.gid, member.uname, member.gname) for member in archive} == {(0, 0, "", "")}


def test_the_backend_that_is_tested_is_the_one_that_builds():
    assert set(PROJECT["build-system"]["requires"]) < set(PROJECT["project"]["optional-dependencies"]["test"])


def imported(walk: Callable[[ast.Module], Iterable[ast.AST]] = ast.walk) -> Iterator[tuple[str, str]]:
    """The modules that the package imports, with their first name; `walk` says which parts of a file count."""
    for path in (ROOT / "icdsel").rglob("*.py"):
        for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            yield from ((name, name.split(".")[0]) for name in names)


def test_extras_are_imported_only_where_they_are_used():
    extras = {"datasets", "mlflow", "ray", "tensorboard", "torch.utils.tensorboard", "wandb"}
    assert extras & {name for name, _ in imported()} == extras - {"tensorboard"}
    assert extras & {name for name, _ in imported(lambda module: module.body)} == set()


def test_imported_and_declared_dependencies_are_the_same():
    extras = PROJECT["project"]["optional-dependencies"]
    used = [requirement for extra in ("hub", "ray", "serve", *TRACKERS) for requirement in extras[extra]]
    declared = [*PROJECT["project"]["dependencies"], *used]
    names = {re.split(r"[<>=!~ ]", requirement)[0] for requirement in declared}
    foreign = {first for _, first in imported()} - set(sys.stdlib_module_names) - {"icdsel"}
    owners = {
        module: {name.lower().replace("_", "-") for name in installed}
        for module, installed in packages_distributions().items()
    }
    assert {module for module in foreign if not owners.get(module, {module}) & names} == set()
    assert names.difference(*(owners.get(module, {module}) for module in foreign)) == NOT_IMPORTED
