"""The house rules by ast: floors, rooms, what may be imported where, and what stands nowhere."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mertool

ROOT = Path(mertool.__file__).parent
FLOORS = {
    7: ("cli", "__main__"),
    6: ("extract", "probe_layers", "finetune", "align", "fuse", "predict", "evaluate"),
    5: ("adaptation", "alignment", "bundle"),
    4: ("engine",),
    3: ("encoders", "peft_methods", "training"),
    2: ("store", "media", "faces", "runs", "predictions", "metrics", "plots", "devices", "interop", "fusion"),
    1: ("manifest", "features", "registry"),
    0: ("errors", "files"),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# Where each other may be seen within one floor: `python -m mertool` is the command line, and the writers
# of files turn an OSError into an error of the user's.
NEIGHBOURS = {("__main__", "cli"), ("files", "errors")}
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = ("torch", "transformers", "h5py", "matplotlib", "scipy", "sklearn", "av", "decord")


def room_of(file: Path) -> str:
    """The room a file belongs to: the package folder, or its own name."""
    return file.relative_to(ROOT).with_suffix("").parts[0]


def imports_of(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def rooms_imported(file: Path) -> set[str]:
    """Rooms of mertool that a file imports; `from mertool import __version__` is none."""
    parts = [name.split(".") for name in imports_of(file)]
    return {p[1] for p in parts if p[0] == "mertool" and len(p) > 1 and p[1] != "__version__"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_a_module_imports_only_from_floors_below(file):
    room = room_of(file)
    if room == "__init__":
        assert imports_of(file) == set(), "mertool/__init__.py imports nothing"
        return
    assert room in FLOOR_OF, f"{file} has no floor: give it a room of FLOORS, or add one"
    wrong = {
        other
        for other in rooms_imported(file)
        if other != room and (room, other) not in NEIGHBOURS and FLOOR_OF.get(other, 9) >= FLOOR_OF[room]
    }
    assert not wrong, f"{room} (floor {FLOOR_OF[room]}) imports {sorted(wrong)}"


def test_every_room_on_the_list_is_there():
    assert {room_of(file) for file in FILES} - {"__init__"} == set(FLOOR_OF)


def test_only_the_store_imports_h5py():
    rooms = {room_of(file) for file in FILES if any(name.split(".")[0] == "h5py" for name in imports_of(file))}
    assert rooms == {"store"}


def test_only_the_command_line_prints():
    printing = {room_of(file) for file in FILES for call in calls_in(file) if call == "print"}
    assert printing == {"cli"}


def calls_in(file: Path) -> list[str]:
    """Names of everything a file calls: `print`, `torch.load`, `pickle.loads`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


DANGEROUS = ("pickle.load", "pickle.loads", "torch.load", "eval", "exec", "os.system", "os.popen", "joblib.load")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_nothing_that_runs_foreign_code(file):
    text = file.read_text(encoding="utf-8")
    assert not set(calls_in(file)) & set(DANGEROUS)
    keywords = {
        (node.arg, ast.unparse(node.value)) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword)
    }
    assert not keywords & {("shell", "True"), ("trust_remote_code", "True"), ("allow_pickle", "True")}


def test_pickle_is_imported_by_the_restricted_unpickler_alone():
    using = {file.relative_to(ROOT).as_posix() for file in FILES if "pickle" in imports_of(file)}
    assert using == {"interop/mertools.py"}


def heavy_after(arguments, cwd):
    """What a command printed, its exit code, and the heavy libraries it loaded."""
    code = (
        "import sys, json; from mertool.cli import main; sys.argv = ['mertool', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as stop: status = stop.code or 0\n"
        f"print(json.dumps([status, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == 0, done.stderr
    status, heavy = json.loads(done.stderr.splitlines()[-1])
    return done.stdout + done.stderr, status, heavy


@pytest.mark.parametrize("arguments", [["--help"], ["extract", "--help"], ["extract", "audio", "--help"]])
def test_help_starts_without_heavy_libraries(arguments, tmp_path):
    said, status, heavy = heavy_after(arguments, tmp_path)
    assert (status, heavy) == (0, [])
    assert "Usage: mertool" in said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("probe-layers no.h5 -m clips.csv -o run", "store no.h5 does not exist"),
        ("fuse no.h5 nor.h5 -m clips.csv -o run", "stores: 2 faults: store no.h5 does not exist"),
        ("align --audio no.h5 --video nor.h5 -o run", "store nor.h5 does not exist"),
        ("finetune clips.csv --layers 1 --method lorra -o run", "did you mean 'lora'?"),
        ("finetune clips.csv --probe no -o run", "no is not a run"),
        ("extract audio clips.csv -o a.h5 --adapter no", "no is not a run"),
        ("predict no clips.csv -o p.csv", "no is not a run"),
    ],
)
def test_what_is_not_there_is_told_before_heavy_libraries_load(command, message, tmp_path):
    (tmp_path / "clips.csv").write_text("clip,path,label\na,a.wav,sad\n", encoding="utf-8")
    said, status, heavy = heavy_after(command.split(), tmp_path)
    assert status == 1
    assert set(heavy) <= {"h5py"}  # which is quick, and reads stores
    assert message in said


def test_every_stage_has_a_command_of_the_same_name():
    commands = {file.stem for file in (ROOT / "cli").glob("*.py")}
    assert set(FLOORS[6]) <= commands
