"""Pages that are made of docstrings: nothing is missing from them, and what would be, fails."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from etw_lightning.catalogue.attacked import OF_ATTACKS
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.catalogue.suite import explain

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("reference_pages", DOCS / "reference_pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def methods(pages):
    return pages.method_page()


@pytest.fixture(scope="module")
def metrics(pages):
    return pages.metric_page()


@pytest.mark.parametrize("part", ["weighting", "forget", "retain"])
def test_every_class_has_a_section_with_its_files(pages, methods, part):
    package = importlib.import_module(f"etw_lightning.{part}")
    interfaces = {"TokenWeighting", "ForgetObjective", "RetainObjective"}
    names = {name for name in package.__all__ if name not in interfaces and name[0].isupper()}
    assert {one.__name__ for one in pages.method_classes(part)} == names
    for name in names:
        assert f"\n### {name}\n" in methods
        assert f".. autoclass:: etw_lightning.{part}.{name}\n" in methods


def test_every_method_file_has_a_row_with_its_numbers(methods):
    files = {path.stem for path in (DOCS.parent / "configs" / "method").glob("*.yaml")}
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", methods, re.MULTILINE))
    assert set(rows) == files
    cells = [cell.strip() for cell in rows["pdu"].split("|")]
    assert cells[:2] == ["[`Uniform`](#weighting-uniform)", "[`PDU`](#forget-pdu)"]
    assert cells[4] == "100"
    assert "[`Random`](#weighting-random) of [`ETW`](#weighting-etw)" in rows["random"]


def test_the_section_of_a_class_names_the_files_that_use_it(methods):
    section = methods.split("### NPO\n")[1].split("###")[0]
    assert "In `etw_npo`, `npo`." in section.replace("method/", "")


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_metric_has_a_section_that_says_what_explain_says(pages, metrics, name):
    section = metrics.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    text = explain(name)
    for number in CATALOGUE[name].emits:
        assert f"`{number}`" in section
        assert number in text
    for page in CATALOGUE[name].pages:
        path = f"{page.__module__}.{page.__qualname__}"
        shown = f".. autofunction:: {path}\n" in section
        assert shown or f"`{page.__name__}` is described under" in section
        assert f".. autofunction:: {path}\n" in metrics
        assert pages.missing_labels(page, pages.LABELS[:6]) == []


@pytest.mark.parametrize("name", OF_ATTACKS)
def test_every_metric_of_attacks_has_a_section(metrics, name):
    section = metrics.split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    assert all(f"`{number}`" in section for number in OF_ATTACKS[name].emits)
    for page in OF_ATTACKS[name].pages:
        assert f".. autofunction:: {page.__module__}.{page.__qualname__}\n" in section
    known = {path.stem for path in (DOCS.parent / "configs" / "attack").glob("*.yaml")}
    assert set(OF_ATTACKS[name].attacks) <= {*known, "every one"}


def test_a_class_that_does_not_name_its_source_stops_the_build(pages, monkeypatch):
    class Bare:
        """Weigh all tokens alike.

        Differs from it: nothing.
        """

    assert pages.missing_labels(Bare, ("Source", "Differs from it")) == ["Source"]
    monkeypatch.setattr(pages, "method_classes", lambda part: [Bare])
    with pytest.raises(ValueError, match=r"etw_lightning\.weighting\.Bare must say Source"):
        pages.method_page()


def test_a_metric_without_a_range_stops_the_build(pages, monkeypatch):
    entry = next(iter(CATALOGUE.values()))

    def bare():
        """Count.

        Formula: n.
        """

    broken = type(entry)((bare,), entry.sets, entry.compute, entry.emits)
    listing = importlib.import_module("etw_lightning.catalogue.listing")
    monkeypatch.setattr(listing, "CATALOGUE", {"bare": broken})
    with pytest.raises(ValueError, match="must say Unit and Range and Direction"):
        pages.metric_page()


def test_every_module_is_listed_in_its_own_words(pages):
    table = pages.module_table()
    package = DOCS.parent / "etw_lightning"
    for path in package.rglob("*.py"):
        if path.name != "__init__.py":
            assert f"| `{path.stem}` | " in table
    assert "### `weighting/`\n\nToken weightings: how much" in table


def test_labelled_lines_become_fields_and_prose_plain_text(pages):
    lines = [
        "Weigh n * H_i of p|x by ``a * b_``.",
        "",
        "Source: Somebody 2026,",
        "    on two lines.",
        "Differs from it: nothing, but y_ and *this*.",
        "",
        "Args:",
        "    beta: A number.",
        "",
        "Example:",
        "    >>> 2 * 3 | 1",
        "    7",
    ]
    pages.dress("app", "class", "name", None, {}, lines)
    assert "Weigh n \\* H_i of p\\|x by ``a * b_``." in lines
    start = lines.index(":Source: Somebody 2026,")
    assert lines[start + 1 : start + 3] == [
        "    on two lines.",
        ":Differs from it: nothing, but y\\_ and \\*this\\*.",
    ]
    assert ":param beta: A number." in lines
    assert "    >>> 2 * 3 | 1" in [f"    {line.strip()}" for line in lines]


def test_what_stands_before_a_colon_is_no_type(pages):
    lines = ["Rows of each group: two."]
    pages.dress("app", "property", "name", None, {}, lines)
    assert "\n".join(lines).strip() == "Rows of each group: two."


def test_the_picture_is_drawn_from_its_numbers_and_its_words_are_no_markup():
    spec = importlib.util.spec_from_file_location("make_picture", DOCS / "make_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    svg = module.draw("Who <b>?", [("He", 0.5, 0.1), (" & she", 1.5, 0.3), ("<|eos|>", 1.0, 0.2)])
    assert "Who &lt;b&gt;?" in svg
    assert "&amp; she: entropy 0.300 nats, weight 1.500" in svg
    assert "here 0.50 to 1.50" in svg
    # The largest weight has the darkest box, a third of it a third of the way from white.
    assert 'fill="rgb(200,80,10)"' in svg
    assert 'fill="rgb(237,197,173)"' in svg


def test_the_list_of_pages_is_made_once_for_listings_of_one_depth(pages):
    class Build:
        pass

    def shown(build, page):
        context = {"toctree": lambda **how: asked.append(page) or f"from {page}, {how}"}
        pages.share_navigation(build, page, "page.html", context, None)
        return context["toctree"](maxdepth=-1)

    build, asked = Build(), []
    first = shown(build, "_modules/etw_lightning/method")
    assert shown(build, "_modules/etw_lightning/schema") == first
    assert shown(build, "_modules/etw_lightning/forget/npo") != first
    assert asked == ["_modules/etw_lightning/method", "_modules/etw_lightning/forget/npo"]
    # A page of the manual is marked in its own list; another build has other pages.
    assert {shown(build, page) for page in ("api", "losses")} != {first}
    assert asked[2:] == ["api", "losses"]
    assert shown(Build(), "_modules/etw_lightning/schema") != first
