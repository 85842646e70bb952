"""Every Python block of the pages on Python and on parts of one's own runs as it stands."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("python.md", "own_parts.md")


def blocks_of(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


BLOCKS = [(page, place) for page in PAGES for place in range(len(blocks_of(page)))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with the quickstart's target model, its weights random: nothing is trained for it."""
    from etw_lightning.training import quickstart_models

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETW_CACHE", str(folder))
        recipe = quickstart_models.Recipe()
        where = quickstart_models._folder(recipe) / "target"
        quickstart_models._save_random_model(where, recipe)
    return folder


@pytest.mark.parametrize(("page", "place"), BLOCKS)
def test_a_block_runs_as_it_stands(page, place, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    with redirect_stdout(io.StringIO()):
        exec(compile(blocks_of(page)[place], f"{page}[{place}]", "exec"), {"__name__": "__main__"})


def test_a_weighting_and_an_objective_take_eight_lines():
    for page_block in blocks_of("own_parts.md"):
        if "class Rare" in page_block or "class Floored" in page_block:
            lines = page_block.split("\n")
            first = next(n for n, line in enumerate(lines) if line.startswith("class "))
            last = next(n for n in range(first + 1, len(lines)) if not lines[n].startswith(" "))
            imports = [line for line in lines[:first] if line and "unlearn" not in line]
            assert len(imports) + last - first <= 8


def test_names_on_the_page_are_those_of_the_root():
    import etw_lightning

    page = (DOCS / "python.md").read_text(encoding="utf-8")
    table = page.split("## Forget some rows")[0]
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.M))))
    assert named == set(etw_lightning.__all__) - {"__version__"}
