"""The wheel holds the whole package and its command runs away from the source; version and changelog agree."""

import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from mertool import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # of Keep a Changelog 1.1.0


# ---------------------------------------------------------------- metadata


def test_the_version_stands_once():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_changelog_begins_with_this_version():
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", CHANGELOG, re.MULTILINE)
    assert releases[0] == __version__
    numbers = [tuple(map(int, release.split("."))) for release in releases]
    assert numbers == sorted(numbers, reverse=True)


def test_the_changelog_has_the_usual_headings():
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= KINDS
    others = re.findall(r"^## (?!\[\d+\.\d+\.\d+\] - |\[Unreleased\]$).*$", CHANGELOG, re.MULTILINE)
    assert others == []


def test_the_citation_has_the_required_fields():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert "2409.05015" in paper["url"] and paper["title"] in " ".join((ROOT / "README.md").read_text().split())


def test_ci_builds_the_wheel_on_every_python_of_the_classifiers():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    prefix = "Programming Language :: Python :: "
    pythons = [name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert workflow["jobs"]["wheel"]["strategy"]["matrix"]["python"] == pythons
    assert PROJECT["requires-python"] == f">={pythons[0]}"


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the source without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "mertool", source / "mertool", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    run([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder), str(source)], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the wheel in an environment of its own, which finds the other packages in the one of the tests."""
    folder = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], folder)
    executables = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = str(executables / Path(sys.executable).name)
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
    # A folder of a .pth file comes after the environment's own packages, and the .pth files in it are not read: so an
    # editable mertool of the tests' environment is not found.
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    Path(site, "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return executables / "mertool"


def run(command: list[str], folder: Path) -> str:
    """Run a command in `folder`, without the source of mertool on Python's path, and return what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MERTOOL"))}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    package = ROOT / "mertool"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"mertool-{__version__}.dist-info/METADATA").decode()
    assert names == expected
    assert "mertool/py.typed" in names
    assert f"\nVersion: {__version__}\n" in metadata


@pytest.mark.slow
def test_the_command_of_the_wheel_runs_away_from_the_source(command, demo, tmp_path):
    python = str(command.with_name(Path(sys.executable).name))
    origin = run([python, "-c", "import mertool; print(mertool.__file__)"], tmp_path).strip()
    assert Path(origin).is_relative_to(command.parents[1])
    assert find_spec("mertool").origin != origin
    assert run([str(command), "--version"], tmp_path) == f"mertool {__version__}\n"
    assert "probe-layers" in run([str(command), "--help"], tmp_path)
    assert "hubert-large-zh" in run([str(command), "models", "--json"], tmp_path)
    run([str(command), "manifest", str(demo / "clips"), "-o", "clips.csv"], tmp_path)
    with open(tmp_path / "clips.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(list((demo / "clips").glob("*.mp4")))


@pytest.mark.slow
def test_decoder_processes_of_the_wheel_find_it(command, demo, tiny_encoders, tmp_path):
    (tmp_path / "clips").mkdir()
    shutil.copy(next(iter(sorted((demo / "clips").glob("*.mp4")))), tmp_path / "clips")
    run([str(command), "extract", "audio", "clips", "-o", "audio.h5", "--encoder", tiny_encoders["hubert"]], tmp_path)
    assert "audio.h5" in run([str(command), "store", "ls", "audio.h5"], tmp_path)
