"""What import-linter's contracts (pyproject.toml) do not say: what only functions may import."""

import ast
from pathlib import Path

import pytest

import etw_lightning

PACKAGE = Path(etw_lightning.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
#: Slow to import or optional: imported by the function that needs them.
LATE = {
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "lm_eval",
    "pandas",
    "peft",
    "pyarrow",
    "rouge_score",
    "scipy",
    "sklearn",
    "spacy",
    "torchao",
}


def imported_at_once(source):
    """Return the packages that a source imports outside functions."""
    found, todo = set(), [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found.add(node.module.split(".")[0])
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_by_functions(path):
    assert not LATE & imported_at_once(path.read_text(encoding="utf-8"))


def test_the_reader_of_imports_sees_them():
    source = "import torch.nn\nclass A:\n    import spacy\ndef late():\n    import scipy\n"
    source += "if TYPE_CHECKING:\n    import pandas\n"
    assert imported_at_once(source) == {"torch", "spacy"}


def test_no_folder_is_too_long_to_read():
    sizes = {
        folder.relative_to(PACKAGE): len(list(folder.glob("*.py")))
        for folder in {path.parent for path in MODULES}
    }
    assert sizes.pop(Path()) <= 6
    assert max(sizes.values()) <= 20
