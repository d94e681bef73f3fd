"""Imports only point down, never sideways between folders of one floor; big libraries have one owner each."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dsvlp"

# A module's floor is that of its longest listed prefix (design: floors 0 to 6; 7 starts it).
FLOORS = {
    **dict.fromkeys(
        [
            "",
            "errors",
            "config",
            "recipe",
            "catalog",
            "types",
            "log",
            "seed",
            "dist",
            "vision",
            "slurm",
            "files",
            "origin",
        ],
        0,
    ),
    **dict.fromkeys(["layers", "data", "accounting", "passes"], 1),
    **dict.fromkeys(["models", "objectives", "tasks"], 2),
    **dict.fromkeys(["system", "regions"], 3),
    "engine": 4,
    **dict.fromkeys(["launch", "reports", "predict"], 5),
    "cli": 6,
    "__main__": 7,
}
LAZY = ("__init__.py", "recipe/__init__.py")  # dsvlp.load; the recipe's check
SIDEWAYS = {("tasks", "objectives.base")}  # the one exception between folders of a floor

OWNERS = {
    "deepspeed": {"engine/zero.py"},
    "submitit": {"launch/executor.py"},
    "torch.utils.tensorboard": {"engine/metrics.py"},
    "tensorboard": {"engine/metrics.py"},
    "ffcv": {"data/"},
}

TORCH_FREE = [
    "dsvlp",
    "dsvlp.errors",
    "dsvlp.config",
    "dsvlp.recipe",
    "dsvlp.catalog",
    "dsvlp.types",
    "dsvlp.log",
    "dsvlp.seed",
    "dsvlp.accounting.clock",
    "dsvlp.accounting.flops",
    "dsvlp.accounting.gather",
    "dsvlp.accounting.hardware",
    "dsvlp.launch.local",
    "dsvlp.slurm",
    "dsvlp.launch.batch",
    "dsvlp.launch.container",
    "dsvlp.launch.requeue",
    "dsvlp.launch.staging",
    "dsvlp.launch.budget",
    "dsvlp.launch.progress",
    "dsvlp.launch.submit",
    "dsvlp.launch.sweep",
    "dsvlp.reports.html",
    "dsvlp.cli.main",
    "dsvlp.cli.recipes",
    "dsvlp.cli.report",
    "dsvlp.cli.hours",
    "dsvlp.cli.submit",
    "dsvlp.cli.sweep",
    "dsvlp.cli.doctor",
    "dsvlp.cli.train",
]


@dataclass(frozen=True)
class Import:
    """One import: the importing file, the imported module, whether it runs when the file is imported."""

    path: str
    line: int
    module: str
    at_top: bool


def imports_of(path: Path) -> Iterator[Import]:
    """Yields every import of a file; those under TYPE_CHECKING are for types only and left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    name = str(path.relative_to(PACKAGE))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno}: imports are absolute"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            yield Import(name, node.lineno, module, id(node) not in inside)


EVERY = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]


def owner(module: str) -> str:
    """Returns the longest key of FLOORS that is `module` (without "dsvlp.") or a package above it."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in FLOORS:
            return prefix
    return ""


def module_of(path: str) -> str:
    """Returns the dotted name of a file inside the package."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__").removesuffix("__init__")


def test_every_module_has_a_floor():
    homeless = {
        module
        for path in PACKAGE.rglob("*.py")
        if (module := module_of(str(path.relative_to(PACKAGE)))) and not owner(module)
    }
    assert not homeless


@pytest.mark.parametrize("path", sorted({found.path for found in EVERY}))
def test_imports_point_down(path):
    home = owner(module_of(path))
    wrong = []
    for found in EVERY:
        if found.path != path or not found.module.startswith("dsvlp."):
            continue
        module = found.module.removeprefix("dsvlp.")
        other = owner(module)
        if other == home or FLOORS[other] < FLOORS[home]:
            continue
        lazy = path in LAZY and not found.at_top
        same_folder = FLOORS[other] == FLOORS[home] == 0
        excepted = any(home == a and module.startswith(b) for a, b in SIDEWAYS)
        if not (lazy or same_folder or excepted):
            wrong.append(
                f"{path}:{found.line} (floor {FLOORS[home]}) imports {module} (floor {FLOORS[other]})"
            )
    assert not wrong, "\n".join(wrong)


def test_a_library_is_imported_only_by_its_owner():
    wrong = [
        f"{found.path}:{found.line} imports {found.module}; only {sorted(owners)} may"
        for found in EVERY
        for library, owners in OWNERS.items()
        if f"{found.module}.".startswith(f"{library}.") and not any(found.path.startswith(o) for o in owners)
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_stand_at_the_top_but_in_the_named_exceptions():
    """CLI verbs import what they need when called; so does `dsvlp.load`, and the recipe its catalog."""
    allowed = ("cli/", *LAZY)
    wrong = [
        f"{found.path}:{found.line} imports {found.module} inside a function"
        for found in EVERY
        if not found.at_top and not found.path.startswith(allowed)
    ]
    assert not wrong, "\n".join(wrong)


def python(code: str) -> str:
    """Returns what `code` prints in a fresh interpreter; fails with its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_free_modules_import_without_torch():
    python(f"""
import importlib, sys
sys.modules["torch"] = None  # any import of torch now raises
for name in {TORCH_FREE!r}:
    importlib.import_module(name)
""")


def test_the_shell_imports_no_verb_and_no_heavy_library():
    loaded = set(python("import sys, dsvlp.cli.main; print(*sys.modules)").split())
    assert not loaded & {"torch", "numpy", "pydantic", "typer", "matplotlib", "dsvlp.cli.recipes"}
