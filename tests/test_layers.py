"""The layout: which module may import which, and how long a file may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400
# From first to last; a stage imports from those before it. Nothing reads what `simulate` writes but through files.
STAGES = ("acquire", "prepare", "model", "train", "inference", "evaluate", "report")
# What asks every stage: the commands, the plan of the workflow, the checks of a configuration and of a machine.
ABOVE = ("plan", "inputs", "check", "findings", "doctor", "cli", "__main__", "__init__")
# What a model may know of the shared ground: no files, no tables.
MODEL_MAY_IMPORT = ("errors",)
FILES = sorted((ROOT / "mgi").rglob("*.py"))
PARAMETERS = [pytest.param(path, id=str(path.relative_to(ROOT / "mgi"))) for path in FILES]
# Shared ground: errors, files, names, tables, configuration and whatever else is beside the stages.
SHARED = {path.relative_to(ROOT / "mgi").parts[0].removesuffix(".py") for path in FILES} - {*STAGES, *ABOVE, "simulate"}


def part_of(module: str) -> str:
    """Return the stage or shared module that `mgi.part...` belongs to; empty for `mgi` itself."""
    return module.split(".")[1] if "." in module else ""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imported_parts(tree: ast.AST) -> Iterator[str]:
    """Yield the parts of mgi that a module imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part_of(alias.name) for alias in node.names if alias.name.split(".")[0] == "mgi")
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "mgi":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("mgi."):
                yield part_of(node.module)


def may_import(part: str) -> set[str]:
    """Return the parts that a module of `part` may import."""
    if part == "cli":
        return {*SHARED, *STAGES, *ABOVE, "simulate"}
    if part in ABOVE:
        return {*SHARED, *STAGES, *ABOVE}
    if part == "simulate":
        return {*SHARED, "simulate"}
    if part == "model":
        return {*MODEL_MAY_IMPORT, "model"}
    if part in STAGES:
        return {*SHARED, *STAGES[: STAGES.index(part) + 1]}
    return SHARED


@pytest.mark.parametrize("path", PARAMETERS)
def test_module_imports_from_earlier_stages_only(path):
    part = part_of(module_name(path))
    # __version__ is no module.
    parts = {name for name in imported_parts(ast.parse(path.read_text())) if name and name != "__version__"}
    assert parts - may_import(part) == set()


@pytest.mark.parametrize("path", PARAMETERS)
def test_file_is_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_import_of_a_later_stage_is_seen():
    parts = set(imported_parts(ast.parse("def run():\n    from mgi.report.figures import draw_flow")))
    assert parts == {"report"}
    assert "report" not in may_import("evaluate")
