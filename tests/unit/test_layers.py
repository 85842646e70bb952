"""Imports point down: read from the sources, so that nothing is imported to find out."""

import ast
import functools
from pathlib import Path

import pytest

import etw_lightning

PACKAGE = Path(etw_lightning.__file__).parent

#: Layer of each module; ``benchmarks`` stands for all readers.
LAYERS = {
    0: {
        "__init__",
        "code_hash",
        "collapse_settings",
        "distributions",
        "divergences",
        "findings",
        "foreign_models",
        "notices",
        "places",
        "schema",
        "signals",
        "step_seed",
        "hub",
        "value_checks",
    },
    1: {
        "benchmarks",
        "encode",
        "kernels",
        "weighting",
        "forget",
        "retain",
        "metrics",
        "options",
        "packing",
        "pairing",
        "positions",
        "refusals",
        "rendering",
        "memory",
        "model_outline",
        "safe_files",
        "step_trace",
        "scores",
        "spacy_spans",
    },
    2: {
        "adapter_settings",
        "adapters",
        "marks",
        "method",
        "optimizers",
        "other_results",
        "reference_file",
        "reference_model",
        "reference_values",
        "run_needs",
        "scoring_module",
        "shards",
        "strategies",
        "streams",
        "trainable",
        "answers",
        "depth",
        "fixed_text",
        "generation",
        "label_scorer",
        "models",
        "patching",
        "token_weights",
        "scoring",
        "retain_results",
        "data",
        "module",
        "record_cache",
        "gibberish_classifier",
        "catalogue",
        "evaluation_rows",
        "training_batches",
        "computations",
        "entries",
        "checkpoint_folder",
        "stored_weights",
        "checkpoints",
        "preemption",
        "prepared_module",
        "step_log",
        "parts",
        "published",
        "provenance",
        "suite",
    },
    3: {
        "check",
        "check_memory",
        "best_evaluation",
        "checkpointing",
        "state_file",
        "collapse",
        "companions",
        "memory_table",
        "evaluate",
        "guards",
        "resume",
        "retain_budget",
        "run_folder",
        "run_key",
        "sweep",
        "sweep_choice",
        "sweep_grid",
        "sweep_report",
        "sweep_runs",
        "callbacks",
        "report",
        "run_report",
        "export",
        "export_command",
        "quickstart_models",
        "lm_eval_bridge",
        "other_models",
        "second_passes",
    },
    4: {
        "__main__",
        "check_command",
        "cli",
        "evaluate_command",
        "fit_command",
        "messages",
        "parser",
        "refused_values",
        "run_checks",
    },
}
#: Formulas: of ours they import layer 0 only.
PURE = {"kernels", "weighting", "forget", "retain", "metrics"}
LIGHTNING = {
    "state_file",
    "check",
    "fit_command",
    "prepared_module",
    "run_checks",
    "step_log",
    "check_memory",
    "checkpointing",
    "other_models",
    "cli",
    "evaluate",
    "parser",
    "module",
    "data",
    "callbacks",
    "collapse",
    "companions",
    "guards",
    "retain_budget",
    "run_report",
    "scoring_module",
    "strategies",
    "quickstart_models",
}
#: Slow to import or optional: imported by the function that needs them.
LATE = {
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "lm_eval",
    "peft",
    "rouge_score",
    "scipy",
    "sklearn",
    "spacy",
    "torchao",
}


def module_name(path):
    """Return the dotted name below the package; ``__init__`` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def names_in(node):
    """Return the dotted names an import statement names; ``from a import b`` names both."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


@functools.cache
def names_imported(source, late):
    """Return all dotted names a source imports; without ``late``, not those inside functions."""
    found, todo = set(), [ast.parse(source)]
    while todo:
        node = todo.pop()
        found.update(names_in(node))
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def imported(name, *, late=True):
    """Return all dotted names a module imports."""
    return names_imported(MODULES[name].read_text(encoding="utf-8"), late)


def ours(name):
    """Return the modules of this package that a module imports."""
    prefix = f"{etw_lightning.__name__}."
    below = {item.removeprefix(prefix) for item in imported(name) if item.startswith(prefix)}
    root = {"__init__"} if etw_lightning.__name__ in imported(name) else set()
    # ``from etw_lightning import forget`` names the package too, but what it wants is ``forget``.
    return (below & set(MODULES)) or root


def outer(name, *, late=True):
    """Return the packages a module imports."""
    return {item.split(".")[0] for item in imported(name, late=late)}


def layer(name):
    """Return the layer of a module, None if it has none yet."""
    head = name.split(".")[0]
    return next((number for number, names in LAYERS.items() if head in names), None)


def cycle_through(name, path=()):
    """Return a chain of imports that leads from a module back to itself, or nothing."""
    for target in sorted(ours((path or (name,))[-1])):
        if target == name:
            return (*(path or (name,)), name)
        if target not in path:
            found = cycle_through(name, (*(path or (name,)), target))
            if found:
                return found
    return ()


def test_every_module_has_a_layer():
    missing = [name for name in MODULES if layer(name) is None]
    assert not missing, f"say in LAYERS of {Path(__file__).name} where these stand: {missing}"


def test_no_layer_names_a_module_that_is_gone():
    heads = {name.split(".")[0] for name in MODULES}
    assert set().union(*LAYERS.values()) <= heads


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    upward = [target for target in ours(name) if layer(target) > layer(name)]
    assert not upward, f"{name} is in layer {layer(name)}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_do_not_run_in_circles(name):
    assert not cycle_through(name)


@pytest.mark.parametrize("name", sorted(PURE))
def test_formulas_import_nothing_of_ours_but_nouns(name):
    parts = [part for part in MODULES if part.split(".")[0] == name]
    siblings = {target for part in parts for target in ours(part)} - set(parts)
    assert {layer(target) for target in siblings} <= {0}
    assert not {"lightning", "transformers", "pathlib", "json"} & set().union(*map(outer, parts))


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("benchmarks")])
def test_readers_import_no_torch(name):
    assert not {"torch", "lightning", "transformers"} & outer(name)


def test_lightning_stays_where_it_belongs():
    found = {name for name in MODULES if {"lightning", "pytorch_lightning"} & outer(name)}
    assert found <= LIGHTNING


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_are_imported_by_functions(name):
    assert not LATE & outer(name, late=False)


def test_the_reader_of_imports_sees_them(tmp_path, monkeypatch):
    source = (
        "import torch.nn\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from etw_lightning.commands.cli import main\n"
        "def late():\n    import scipy\n    from etw_lightning import forget\n"
    )
    path = tmp_path / "probe.py"
    path.write_text(source)
    monkeypatch.setitem(MODULES, "probe", path)
    assert ours("probe") == {"cli", "forget"}
    assert outer("probe") == {"torch", "typing", "etw_lightning", "scipy"}
    assert "scipy" not in outer("probe", late=False)
    path.write_text("from etw_lightning.probe import x\n")
    assert cycle_through("probe") == ("probe", "probe")
    path.write_text("import etw_lightning\n")
    assert ours("probe") == {"__init__"}
