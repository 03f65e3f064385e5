"""What holds for the code as a whole: direction of imports, light imports, sizes, public names, clean text."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("deploykit", "exporters", "runners")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
HEAVY = (
    "torch", "onnx", "onnxruntime", "onnxscript", "lightning", "safetensors", "sklearn", "matplotlib",
    "pyarrow", "fsspec", "PIL", "ray",
)  # fmt: skip

EDGE = ("deploykit.__main__", "deploykit.api", "deploykit.cli", "deploykit.demo")
"""Modules, and packages of modules, that join the parts; all other modules of ``deploykit`` are the core."""

ALLOWED = {"core": ("deploykit",), "exporters": ("deploykit", "exporters"), "runners": ("deploykit", "runners")}

LAZY = {"deploykit.__init__"}
"""Modules that may name the edge, because they load it only when it is asked for."""

WITHOUT_TORCH = ("deploykit", "runners")

TORCH_AT_IMPORT = {"deploykit.demo.network"}
"""Modules outside of ``exporters`` that define an ``nn.Module``; nothing imports them before it needs torch anyway."""

LINES, FUNCTION_LINES, MEDIAN_LINES = 300, 50, 10


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


def module_of(file: Path) -> str:
    return name_of(file).removesuffix(".__init__")


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def side_of(file: Path) -> str:
    name = name_of(file)
    if within(name, EDGE):
        return "edge"
    return "core" if name.startswith("deploykit.") else name.partition(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """All modules that are imported anywhere, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that finds the packages in this checkout."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_there_is_something_to_look_at() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in SOURCES} == set(PACKAGES)
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    side = side_of(file)
    if side == "edge":
        return
    ours = {name for name in imports(parsed(file)) if within(name, PACKAGES)}
    foreign = {name for name in ours if not within(name, ALLOWED[side])}
    upwards = {name for name in ours if within(name, EDGE)} if name_of(file) not in LAZY else set()
    assert not foreign | upwards, f"{name_of(file)} ({side}) imports {sorted(foreign | upwards)}"


def test_no_modules_import_each_other() -> None:
    """Nor through others, nor inside of functions: what a module builds on can be read before it."""
    # The face of a package only hands on what its modules define.
    modules = {name_of(file): parsed(file) for file in SOURCES if file.name != "__init__.py"}
    order = TopologicalSorter({name: modules.keys() & set(imports(tree)) for name, tree in modules.items()})
    assert set(order.static_order()) == modules.keys()


def group_of(name: str) -> str:
    """The subpackage that a module is in; the module itself where it is in none."""
    return ".".join(name.split(".")[:2])


def groups_below() -> dict[str, set[str]]:
    """What each subpackage, and each module outside of one, imports of the others."""
    modules = {name_of(file): parsed(file) for file in SOURCES if file.name != "__init__.py"}
    below: dict[str, set[str]] = {group_of(name): set() for name in modules}
    for name, tree in modules.items():
        below[group_of(name)] |= {group_of(used) for used in modules.keys() & set(imports(tree))} - {group_of(name)}
    return below


def test_no_subpackages_import_each_other() -> None:
    """So each can be understood, and tested, with those below it alone."""
    below = groups_below()
    assert set(TopologicalSorter(below).static_order()) == below.keys()


def test_the_map_of_the_code_names_every_place_after_those_that_it_builds_on() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    order = []
    for package in PACKAGES:
        table = text.partition(f"\n## {package}\n")[2].partition("\n## ")[0]
        cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        order += [f"{package}.{name}" for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(order) == sorted({group_of(module_of(file)) for file in SOURCES} - {*PACKAGES, "deploykit.__main__"})
    below = groups_below()
    upwards = [
        f"{place} imports {used}" for place in order for used in below.get(place, ()) if not_before(order, used, place)
    ]
    assert upwards == []


def not_before(order: list[str], used: str, place: str) -> bool:
    """Packages are not ordered among each other here: another test says which may import which."""
    return used.partition(".")[0] == place.partition(".")[0] and order.index(used) >= order.index(place)


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_public_names_are_declared_and_exist(file: Path) -> None:
    if file.name == "__main__.py":
        return
    module = importlib.import_module(module_of(file))
    public = module.__all__
    assert len(set(public)) == len(public)
    missing = [name for name in public if not hasattr(module, name)]
    assert missing == [], f"{module.__name__} declares names that it does not have: {missing}"
    undeclared = sorted(set(defined(parsed(file))) - set(public))
    assert undeclared == [], f"{module.__name__} has public names that are not in __all__: {undeclared}"


def defined(tree: ast.Module) -> Iterator[str]:
    """The public classes and functions of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Every function with its number of lines, docstring and decorators left out."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = body[0].lineno if body else node.lineno
            signature = node.body[0].lineno - node.lineno
            yield node.name, int(node.end_lineno or first) - first + 1 + signature


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_modules_and_functions_are_small(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LINES, f"{name_of(file)} has {lines} lines, at most {LINES} are allowed: split it"
    long = {name: size for name, size in functions(file) if size > FUNCTION_LINES}
    assert long == {}, f"{name_of(file)} has functions of more than {FUNCTION_LINES} lines: {long}"


def test_the_median_function_is_short() -> None:
    sizes = sorted(size for file in SOURCES for _, size in functions(file))
    assert sizes[len(sizes) // 2] < MEDIAN_LINES


LOADED = "import json, sys; {code}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"


@pytest.mark.parametrize(
    "code",
    [
        "import deploykit",
        "import deploykit.masks, deploykit.artifact",
        "import runners",
        "import atexit; atexit.register(lambda: print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules}))));"
        "import runpy; sys.argv = ['deploykit', '--help']; runpy.run_module('deploykit', run_name='__main__')",
    ],
    ids=["deploykit", "core", "runners", "deploykit --help"],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    done = run(LOADED.format(code=code.replace("{", "{{").replace("}", "}}")).replace("{{", "{").replace("}}", "}"))
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "deploykit" in loaded or code == "import runners"
    assert sorted(set(loaded) & set(HEAVY)) == []


BLOCK = """
import importlib, sys, traceback
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in BLOCKED:
            raise ModuleNotFoundError(f'No module named {name!r} (blocked)', name=name)
BLOCKED = set(sys.argv[1].split(','))
sys.meta_path.insert(0, Finder())
failed = []
for module in sys.argv[2:]:
    try:
        importlib.import_module(module)
    except BaseException:
        failed.append(module + ': ' + traceback.format_exc(limit=-1))
sys.exit('\\n'.join(failed) or 0)
"""


def test_core_and_runners_load_where_nothing_heavy_is_installed() -> None:
    modules = {module_of(file) for file in SOURCES if file.relative_to(ROOT).parts[0] in WITHOUT_TORCH}
    done = run(BLOCK, ",".join(HEAVY), *sorted(modules - TORCH_AT_IMPORT - {"deploykit.__main__"}))
    assert done.returncode == 0, done.stderr


def test_exporters_load_with_torch_alone() -> None:
    modules = [module_of(file) for file in SOURCES if file.relative_to(ROOT).parts[0] == "exporters"]
    done = run(BLOCK, ",".join(sorted({*HEAVY} - {"torch"})), *modules)
    assert done.returncode == 0, done.stderr


def test_nothing_needs_pandas_by_way_of_pyarrow() -> None:
    """Up to version 19, what pyarrow names after pandas imports it, and fails where there is none, as on a host."""
    assert [name_of(file) for file in SOURCES if re.search(r"\.(to|from)_pandas", file.read_text("utf-8"))] == []


def test_blocking_bites() -> None:
    assert "blocked" in run(BLOCK, "json", "json.decoder").stderr


def test_no_other_distribution_ships_our_packages() -> None:
    owners = metadata.packages_distributions()
    for package in PACKAGES:
        others = sorted(set(owners.get(package, [])) - {"deploykit"})
        assert others == [], f"{others} ship a package named {package}, which hides ours or is hidden by it"


def test_our_packages_are_those_of_this_checkout() -> None:
    for package in PACKAGES:
        assert Path(str(importlib.import_module(package).__file__)).parent == ROOT / package


def test_test_folders_are_packages() -> None:
    folders = {file.parent for file in (ROOT / "tests").rglob("*.py")}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").is_file()) == []


def test_no_module_is_named_like_a_dependency() -> None:
    dependencies = {*HEAVY, "numpy", "click", "pyarrow"}
    assert [name_of(file) for file in SOURCES if file.stem in dependencies] == []


def tracked() -> list[Path]:
    """Files that belong to the repository, or that will once they are added."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


# Put together from pieces, so that this file does not find itself.
MACHINE = re.compile("|".join(["/" + "work/", "/" + "tmp/w/", "/" + "root/", "/" + r"home/\w", "/" + "opt/"]))
HOSTS = re.compile("|".join(["pypi" + r"\.org", "python" + "hosted", r"index" + "-url *[= ]", r"registry\.npm" + "js"]))


def test_no_file_names_a_machine_or_a_registry() -> None:
    found = []
    for file in tracked():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE.search(line) or HOSTS.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_constraints_are_exact_and_torch_stays() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    names = [pin.partition("==")[0] for pin in pins]
    assert names == sorted(set(names))
    assert "torch==2.13.0" in pins
