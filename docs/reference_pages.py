"""Makes the pages of methods, metrics and modules, and dresses docstrings for Sphinx.

Pages are written into ``docs/generated`` before Sphinx reads its sources: a section for each
weighting, objective and metric, and the list of modules. What has no docstring in the house's form
stops the build.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from sphinx.ext.napoleon import Config, GoogleDocstring

__all__ = ["LABELS", "method_page", "metric_page", "missing_labels", "module_table", "setup"]

_HERE = Path(__file__).resolve().parent
_CONFIGS = _HERE.parent / "configs"
#: Labels of a docstring's facts, as ``Source: ...`` in lines of their own.
LABELS = (
    "Formula",
    "Unit",
    "Range",
    "Direction",
    "Empty input",
    "Source",
    "Differs from it",
    "Differs from widely used code",
)
_METRIC_LABELS = tuple(label for label in LABELS if label != "Differs from it")
_CLASS_LABELS = ("Source", "Differs from it")
_LABEL = re.compile(rf"^({'|'.join(LABELS)}):(?: +(.*))?$")
_PARTS = {
    "weighting": "How much each token of the forget set weighs",
    "forget": "What pushes the forget set down",
    "retain": "What holds the retain set",
}


def missing_labels(what: Any, labels: Sequence[str]) -> list[str]:
    """Return the labels that the docstring of a class or function has no line for.

    Args:
        what: The class or function.
        labels: Those of ``LABELS`` that it must have.
    """
    lines = inspect.cleandoc(what.__doc__ or "").splitlines()
    found = {match[1] for match in map(_LABEL.match, lines) if match}
    return [label for label in labels if label not in found]


def method_classes(package: str) -> list[type]:
    """Return the classes of a package that a configuration can name, by name."""
    module = importlib.import_module(f"etw_lightning.{package}")
    classes = [getattr(module, name) for name in module.__all__]
    return sorted(
        (one for one in classes if not inspect.isabstract(one)),
        key=lambda one: one.__name__.lower(),
    )


def method_files() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the first comment and the settings of each file of ``configs/method``."""
    files = {}
    for path in sorted(_CONFIGS.glob("method/*.yaml")):
        text = path.read_text(encoding="utf-8")
        comment = re.match(r"(?:#.*\n)*", text)
        assert comment is not None
        said = " ".join(line.removeprefix("#").strip() for line in comment[0].splitlines())
        files[path.stem] = (said, yaml.safe_load(text)["model"])
    return files


def _class_paths(settings: Any) -> Iterator[str]:
    """Give all class paths of nested settings, outermost first."""
    if isinstance(settings, dict):
        if "class_path" in settings:
            yield settings["class_path"]
        for value in settings.values():
            yield from _class_paths(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _class_paths(value)


def _linked(path: str) -> str:
    return f"[`{path.rpartition('.')[2]}`](#{_anchor(path)})"


def _anchor(path: str) -> str:
    package, _, name = path.removeprefix("etw_lightning.").rpartition(".")
    return f"{package.partition('.')[0]}-{name.lower()}"


def method_page() -> str:
    """Return the page of methods, as Markdown.

    Raises:
        ValueError: If a class lacks a line of its docstring.
    """
    lines = [
        "# Methods",
        "",
        "A method is data: a token weighting, a forget objective, a retain objective and their "
        "numbers, in one file of `configs/method/` laid over any run. How to choose among them is "
        "[a page of its own](../choosing.md).",
        "",
        "## The files",
        "",
        "| file | weighting | forget | retain | lambda | retain weight | from |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (said, model) in method_files().items():
        parts = []
        for part in _PARTS:
            linked = " of ".join(_linked(path) for path in _class_paths(model.get(part)))
            parts.append(linked or "")
        numbers = f"{model['forget_weight']:g} | {model['retain_weight']:g}"
        lines.append(f"| `{name}` | {' | '.join(parts)} | {numbers} | {_cell(said)} |")
    for part, title in _PARTS.items():
        lines += ["", f"## {title}"]
        for one in method_classes(part):
            absent = missing_labels(one, _CLASS_LABELS)
            path = f"etw_lightning.{part}.{one.__name__}"
            if absent:
                raise ValueError(f"{path} must say {' and '.join(absent)} in its docstring.")
            files = [
                name
                for name, (_, model) in method_files().items()
                if path in _class_paths(model.get(part))
            ]
            used = ", ".join(f"`method/{name}`" for name in files) or "no file; yours to combine"
            lines += ["", f"({_anchor(path)})=", f"### {one.__name__}", "", f"In {used}.", ""]
            lines += ["```{eval-rst}", f".. autoclass:: {path}", "   :no-index:", "```"]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def metric_page() -> str:
    """Return the page of metrics, as Markdown: what ``explain`` prints of each.

    Raises:
        ValueError: If a page lacks a line of its docstring.
    """
    from etw_lightning.catalogue.attacked import OF_ATTACKS
    from etw_lightning.catalogue.listing import CATALOGUE, KEYS

    lines = [
        "# Metrics",
        "",
        "Each section is what `explain NAME` prints: what the numbers are called in "
        "`results.json`, which sets they read, what they need, and of each formula its unit, "
        "range, direction, source, what an empty input gives and by how much widely used code "
        "differs. "
        "[Scoring](../scoring.md) says how they are asked for.",
    ]
    shown: dict[str, str] = {}
    for name, entry in CATALOGUE.items():
        lines += ["", f"(metric-{name})=", f"## `{name}`", ""]
        numbers = ", ".join(f"`{one}`" for one in entry.emits)
        sets = "; ".join(f"{family}: {', '.join(names)}" for family, names in entry.sets.items())
        needs = "; ".join(KEYS[one] for one in sorted(entry.needs)) or "the model's own records"
        lines += [
            f"* Gives {numbers}.",
            f"* Reads {_cell(sets).replace('*', 'all sets')} ({', '.join(sorted(entry.parts))}).",
            f"* Needs {needs}.",
            f"* {'Part of' if entry.by_default else 'Not part of'} the whole suite.",
        ]
        lines += _pages(name, entry.pages, shown)
    for name, made in OF_ATTACKS.items():
        numbers = ", ".join(f"`{one}`" for one in made.emits)
        lines += ["", f"(metric-{name})=", f"## `{name}`", "", f"* Gives {numbers}."]
        lines += [f"* Made by [attacks](../attacks.md): {', '.join(made.attacks)}."]
        lines += _pages(name, made.pages, shown)
    return "\n".join(lines) + "\n"


def _pages(name: str, pages: Sequence[Any], shown: dict[str, str]) -> list[str]:
    """Return the lines of a metric's pages; those described before refer to where that was."""
    lines = []
    for page in pages:
        path = f"{page.__module__}.{page.__qualname__}"
        absent = missing_labels(page, _METRIC_LABELS)
        if absent:
            raise ValueError(f"{path} must say {' and '.join(absent)} in its docstring.")
        if path in shown:
            lines += ["", f"`{page.__name__}` is described under [{shown[path]}]"]
            lines[-1] += f"(#metric-{shown[path]})."
            continue
        shown[path] = name
        lines += ["", "```{eval-rst}", f".. autofunction:: {path}", "   :no-index:", "```"]
    return lines


def module_table() -> str:
    """Return the first line of every module's docstring, by room, as Markdown.

    Raises:
        ValueError: If a module has none.
    """
    lines = []
    package = _HERE.parent / "etw_lightning"
    rooms = sorted({path.parent for path in package.rglob("__init__.py")} - {package})
    for room in [*rooms, package]:
        place = room.relative_to(package).as_posix()
        name = "the top folder" if room == package else f"`{place}/`"
        first, *modules = sorted(room.glob("*.py"), key=lambda path: path.name != "__init__.py")
        lines += [f"### {name}", "", _cell(_first_line(first)), "", "| module | what |"]
        lines += ["| --- | --- |"]
        lines += [f"| `{one.stem}` | {_cell(_first_line(one))} |" for one in sorted(modules)]
        lines += [""]
    return "\n".join(lines)


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path.relative_to(_HERE.parent)} must begin with a docstring.")
    return docstring.splitlines()[0].replace("``", "`")


def write_pages(app: Any) -> None:
    """Write both pages where Sphinx finds them; unchanged ones are left as they are."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    pages = {"methods": method_page, "metrics": metric_page, "modules": module_table}
    for name, make in pages.items():
        text = make()
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def dress(*event: Any) -> None:
    """Make reStructuredText of a docstring in Google's style, in place.

    Its labelled lines become a list of fields, its prose plain text. napoleon's own hook is not
    used, as it takes what stands before a colon in the first line of a property for its type.

    Args:
        event: As Sphinx gives them: itself, kind, name and object, options, the docstring's lines.
    """
    kind = "class" if event[1] in ("class", "exception") else "function"
    text = GoogleDocstring(list(_dressed(event[-1])), Config(), what=kind)
    event[-1][:] = str(text).splitlines()


def _dressed(lines: Sequence[str]) -> Iterator[str]:
    in_fields = in_example = False
    for line in lines:
        bare = line.strip()
        in_example = (in_example and bool(bare)) or bare.startswith(">>>")
        if in_example:
            yield line
            continue
        match = _LABEL.match(line)
        if match:
            if not in_fields:
                yield ""
            in_fields = True
            yield f":{match[1]}: {_plain(match[2] or '')}".rstrip()
        elif in_fields and bare and not re.match(r"[A-Z]\w+:$", bare):
            yield f"    {_plain(bare)}"
        else:
            in_fields = False
            yield _plain(line)


def _plain(line: str) -> str:
    """Escape what reStructuredText would read as markup, outside of double backticks."""
    parts = re.split(r"(``.+?``)", line)
    return "".join(
        part if place % 2 else _escaped(part, is_start=place == 0)
        for place, part in enumerate(parts)
    )


def _escaped(text: str, is_start: bool) -> str:
    bullet = re.match(r"\s*\* ", text) if is_start else None
    head = bullet[0] if bullet else ""
    return head + re.sub(r"([*|])|_(?=\W|$)", lambda found: f"\\{found[0]}", text[len(head) :])


def share_navigation(app: Any, page: str, _template: str, context: dict[str, Any], *_: Any) -> None:
    """Make the list of pages once for all listings of code that lie equally deep.

    None of them stands in it, so it is the same but for the way from their folder. Made for each
    of 250 it took half of the build.

    Args:
        app: Sphinx, which lives as long as a build.
        page: Where it lies, without its ending.
        context: What the page is made of, its list of pages as a function among it.
    """
    if not page.startswith("_modules/") or "toctree" not in context:
        return
    make: Callable[..., str] = context["toctree"]
    made: dict[Any, str] = app.__dict__.setdefault("_navigation_of_code", {})

    def toctree(**how: Any) -> str:
        key = page.count("/"), *sorted(how.items())
        if key not in made:
            made[key] = make(**how)
        return made[key]

    context["toctree"] = toctree


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", dress)
    # Before the theme, which asks for the list of pages of each.
    app.connect("html-page-context", share_navigation, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
