"""The rules of the architecture, checked by ast: import tiers, no circles, and calls that are not allowed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mertool

ROOT = Path(mertool.__file__).parent
# Packages and modules of each import tier; a module imports only from tiers below its own.
TIERS = {
    8: ("cli", "api", "__main__"),
    7: ("extract", "probe_layers", "finetune", "align", "fuse", "predict", "evaluate", "report"),
    6: ("bundle",),
    5: ("adapters", "alignment", "fusion"),
    4: ("extraction", "probing"),
    3: ("encoders", "adapters.methods", "learning", "predictions", "exchange"),
    2: (
        "store",
        "media",
        "sources",
        "faces",
        "noise",
        "runs",
        "plots",
        "devices",
        "interop",
        "corpora",
        "targets",
    ),
    1: ("manifest", "features", "media_stats", "significance", "registry", "run_record", "environment", "options"),
    0: (
        *("errors", "files", "media_digest", "tables", "untrusted"),
        *("metrics", "regression_metrics", "sampling_units"),
    ),
}
TIER_OF = {package: tier for tier, packages in TIERS.items() for package in packages}
# Imports allowed within one tier: `python -m mertool` is the command line, the writers of files turn an
# OSError into a user's error, PEFT methods know which encoders call no projections, and options name the choices of
# their tier.
SAME_TIER = {
    *[("__main__", "cli"), ("files", "errors"), ("tables", "errors"), ("untrusted", "errors"), ("tables", "untrusted")],
    ("regression_metrics", "metrics"),
    *[("adapters.methods", "encoders"), ("run_record", "features")],
} | {("options", choices) for choices in ("manifest", "features", "registry")}
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
HEAVY = ("torch", "transformers", "h5py", "matplotlib", "scipy", "sklearn", "av")


def package_of(module: str) -> str:
    """The entry of TIERS of a dotted name below `mertool`: `adapters.methods.lora` is of `adapters.methods`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in TIER_OF else parts[0]


def module_of(file: Path) -> str:
    """The dotted name of a file below `mertool`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it, also below `if TYPE_CHECKING`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{name.name}" for name in node.names}
    return names


def modules_imported(file: Path) -> set[str]:
    """Modules of mertool that a file imports, as dotted names below `mertool`."""
    modules = set()
    for name in imports_of(file):
        top, _, rest = name.partition(".")
        if top == "mertool" and rest != "__version__":
            # `from mertool.store import FeatureStore` imports the module `store`, not `store.FeatureStore`.
            modules.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return modules - {""}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_a_module_imports_only_from_tiers_below(file):
    package = package_of(module_of(file))
    if package == "__init__":
        # For type checkers only: what `import mertool` loads is tested below.
        assert modules_imported(file) == {"api"}
        return
    assert package in TIER_OF, f"{file} has no tier: add its package to TIERS"
    wrong = {
        other
        for other in map(package_of, modules_imported(file))
        if other != package and (package, other) not in SAME_TIER and TIER_OF.get(other, 9) >= TIER_OF[package]
    }
    assert not wrong, f"{package} (tier {TIER_OF[package]}) imports {sorted(wrong)}"


def test_every_package_of_the_tiers_exists():
    assert {package_of(module) for module in MODULES} - {"__init__"} == set(TIER_OF)


def test_there_is_no_import_circle():
    """Circles between modules, those hidden below `if TYPE_CHECKING` included.

    A package's `__init__` may import its own modules, so it is a node only where others import the package.
    """
    graph = {module: modules_imported(file) - {module} for module, file in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "import circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_only_the_store_imports_h5py():
    using = {
        package_of(module_of(file)) for file in FILES if any(name.split(".")[0] == "h5py" for name in imports_of(file))
    }
    assert using == {"store"}


def test_only_the_command_line_prints():
    printing = {package_of(module_of(file)) for file in FILES for call in calls_in(file) if call == "print"}
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


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_models_are_loaded_without_code_of_their_own(file):
    """Without the argument transformers asks on standard input whether to run it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert arguments.get("trust_remote_code") == "False", ast.unparse(node)


def test_pickle_is_imported_by_the_restricted_unpickler_alone():
    using = {file.relative_to(ROOT).as_posix() for file in FILES if "pickle" in imports_of(file)}
    assert using == {"interop/pickles.py"}


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
        ("extract audio clips.csv -o a.h5 --encoder hubert-bse", "did you mean 'hubert-base'?"),
        ("extract audio clips.csv -o a.h5 --encoder bert-base", "encoder 'bert-base' is for text: for audio take"),
        ("extract video clips.csv -o a.h5 --encoder ./no", "encoder folder ./no does not exist"),
        ("extract text clips.csv -o a.h5 --asr whisper-bse", "did you mean 'whisper-base'?"),
        ("extract audio clips.csv -o clips.csv/a.h5", "clips.csv is a file, not a folder"),
        ("extract faces clips.csv -o .", "cannot write .: it is a folder"),
        ("extract audio clips.csv -o a.h5 --device mps:0", "unknown device 'mps:0'"),
        ("finetune clips.csv --layers 1 --encoder no -o run", "unknown encoder 'no': valid: hubert-large-zh"),
        ("finetune clips.csv --layers 1 -o clips.csv/run", "clips.csv is a file, not a folder"),
        ("fuse a.h5 -m clips.csv -o clips.csv/run", "clips.csv is a file, not a folder"),
        ("probe-layers a.h5 -m clips.csv -o run --device gpu", "unknown device 'gpu'"),
        ("align --audio a.h5 --video v.h5 -o clips.csv/run", "clips.csv is a file, not a folder"),
        ("predict no clips.csv -o p.csv", "no is not a run"),
    ],
)
def test_what_is_not_there_is_told_before_heavy_libraries_load(command, message, tmp_path):
    (tmp_path / "clips.csv").write_text("clip,path,label\na,a.wav,sad\n", encoding="utf-8")
    said, status, heavy = heavy_after(command.split(), tmp_path)
    assert status == 1
    assert set(heavy) <= {"h5py"}  # which is quick, and reads stores
    assert message in said


def test_importing_the_package_imports_nothing_of_it():
    code = (
        "import sys, mertool; print([name for name in sys.modules if name.startswith('mertool.') or name in sys.argv])"
    )
    done = subprocess.run([sys.executable, "-c", code, "numpy", *HEAVY], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_every_stage_is_a_function_of_the_package():
    assert sorted(mertool.__all__) == sorted(TIERS[7])


def test_every_stage_has_a_command_of_the_same_name():
    commands = {file.stem for file in (ROOT / "cli").glob("*.py")}
    assert set(TIERS[7]) <= commands
