"""README and manual: every command is one the program takes, every Python block runs, links lead.

A page's Python blocks, doctests among them, share one namespace, in which ``model`` and
``tokenizer`` are a tiny model and its tokenizer; a block whose fence says ``python parsed`` needs a
GPU or the hub, and is only compiled.
"""

import doctest
import re
import shlex
from pathlib import Path

import pytest
import yaml

from etw_lightning.commands.sequence import parser as sequence_parser
from etw_lightning.commands.sweep import parser
from etw_lightning.sequences.request_file import load_requests
from etw_lightning.sweeps.grid import load_sweep

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
_BLOCK = re.compile(r"^```(\w[^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [
    (name, info, content) for name, text in TEXTS.items() for info, content in _BLOCK.findall(text)
]
LINES = [
    (name, line)
    for name, info, content in BLOCKS
    if info == "bash"
    for line in content.replace("\\\n", " ").splitlines()
    if line.strip()
]
#: Commands in running text, where they are whole.
INLINE = [
    (name, line)
    for name, text in TEXTS.items()
    for line in re.findall(r"`((?:python -m etw_lightning|etw) [^`\n]+)`", _BLOCK.sub("", text))
    # Not those of the reader's own parts, whose page makes them.
    if not any(word in line for word in ("...", "NAME", "my_parts."))
]
_PROGRAM = re.compile(
    r"^(?:\w+=\S+ )*(?:do )?"
    r"(?:(?:python|torchrun \S+ \d+) -m etw_lightning|etw"
    r"|(?:bash|sbatch) slurm/\w+\.sh(?: --dry-run)?) (.+)$"
)
COMMANDS = sorted(
    {
        found[1].strip().replace("$k", "1")
        for _, line in [*LINES, *INLINE]
        for part in re.split(r"&&|;", line)
        if (found := _PROGRAM.match(part.strip()))
    }
)


def _of(*subcommands):
    return [line for line in COMMANDS if line.split()[0] in subcommands]


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200


def test_there_are_two_lines_to_try():
    lines = [
        line
        for name, line in LINES
        if name == "README.md" and line.startswith("pip install -c constraints.txt ")
    ]
    assert [line.split(" && ")[1].split()[0] for line in lines] == ["python", "pytest"]


def test_every_command_is_tried_here():
    known = _of("fit", "evaluate", "check", "weights", "sweep", "export", "explain", "configs")
    known += _of("report", "compare", "attack", "sequence", "alternatives")
    assert [line for line in COMMANDS if line not in known and not line.startswith("-")] == []
    assert len(known) > 25


@pytest.mark.parametrize("line", _of("fit", "evaluate", "check", "weights"))
def test_a_command_of_a_run_parses(command, monkeypatch, line):
    monkeypatch.chdir(ROOT)
    outcome = command(*shlex.split(line), "--print_config")
    assert outcome.err == ""
    assert outcome.status == 0
    assert ("usage:" if line.endswith("--help") else "pretrained:") in outcome.out


@pytest.mark.parametrize("line", _of("sweep"))
def test_a_sweep_is_one_that_is_shipped(monkeypatch, line):
    # ``test_sweep`` plans each of them.
    monkeypatch.chdir(ROOT)
    options = parser().parse_args(shlex.split(line)[1:])
    assert load_sweep(options.config, over=options.over).methods


@pytest.mark.parametrize("line", _of("sequence"))
def test_a_sequence_is_one_that_is_shipped(monkeypatch, line):
    # ``test_sequence`` plans it.
    monkeypatch.chdir(ROOT)
    options = sequence_parser().parse_args(shlex.split(line)[1:])
    assert load_requests(options.config).requests


@pytest.mark.parametrize("line", _of("report", "compare", "attack"))
def test_a_report_lacks_nothing_but_its_runs(command, monkeypatch, tmp_path, line):
    monkeypatch.chdir(tmp_path)
    outcome = command(*shlex.split(line))
    assert outcome.status == 2
    assert "is no folder of a run" in outcome.err


@pytest.mark.parametrize("line", _of("alternatives"))
def test_second_answers_lack_nothing_but_their_rows(command, monkeypatch, tmp_path, line):
    monkeypatch.chdir(tmp_path)
    outcome = command(*shlex.split(line))
    assert outcome.status == 2
    assert re.search(r"--rows must be a file of rows .* '\S+.jsonl' does not exist", outcome.err)


@pytest.mark.parametrize("line", _of("export"))
def test_an_export_lacks_nothing_but_its_checkpoint(command, monkeypatch, tmp_path, line):
    monkeypatch.chdir(tmp_path)
    outcome = command(*shlex.split(line))
    assert outcome.status == 2
    assert re.search(r"checkpoint 'runs/\w+' is not there", outcome.err)


@pytest.mark.parametrize("line", _of("explain", "configs"))
def test_a_command_that_prints_prints(command, monkeypatch, tmp_path, line):
    monkeypatch.chdir(tmp_path)
    outcome = command(*shlex.split(line))
    assert (outcome.status, outcome.err) == (0, "")


PYTHON = {
    name: [(info, code) for page, info, code in BLOCKS if page == name and info[:6] == "python"]
    for name in TEXTS
}


#: Pages whose blocks stand each for itself: ``test_python_pages`` runs them.
ALONE = {"docs/python.md", "docs/own_parts.md"}


@pytest.mark.parametrize(
    "name", [name for name, blocks in PYTHON.items() if blocks and name not in ALONE]
)
def test_the_python_of_a_page_runs(monkeypatch, home, tiny_model_dir, tiny_tokenizer, name):
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    namespace = {"model": model, "tokenizer": tiny_tokenizer, "__name__": name}
    for place, (info, code) in enumerate(PYTHON[name], 1):
        where = f"{name}, Python block {place}"
        if code.startswith(">>>"):
            case = doctest.DocTestParser().get_doctest(code, namespace, where, None, None)
            lines = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
            failed, _ = runner.run(case, out=lines.append, clear_globs=False)
            assert not failed, "".join(lines)
            namespace.update(case.globs)
            continue
        compiled = compile(code, where, "exec")
        if info.split()[1:] != ["parsed"]:
            exec(compiled, namespace)


@pytest.mark.parametrize(
    "path",
    sorted(
        {
            found
            for text in TEXTS.values()
            for found in re.findall(
                r"[` ]((?:configs|etw_lightning|slurm|tests|docs|findings)/[\w./]*\w/?)[`:, ]", text
            )
            if not found.startswith(("configs/sweep/NAME", "configs/method/NAME"))
        }
    ),
)
def test_a_path_it_names_exists(path):
    assert (ROOT / path).exists()


_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)")
LINKS = sorted({(name, to) for name, text in TEXTS.items() for to in _LINK.findall(text)})


@pytest.mark.parametrize(("name", "to"), LINKS)
def test_a_link_leads_to_a_file(name, to):
    path = (ROOT / name).parent / to
    # Sphinx makes these of the code; it fails where a link into them leads nowhere.
    assert path.exists() or path.parent in {ROOT / "docs" / made for made in ("generated", "api")}


def _rows_of(page, heading):
    """Return the cells of the table whose header line begins so."""
    lines = TEXTS[page].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(heading)) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


ROOMS = sorted(path.parent.name for path in ROOT.glob("etw_lightning/*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_on_the_map(room):
    assert f"`{room}/`" in TEXTS["docs/rooms.md"]
    assert f"   etw_lightning.{room}\n" in TEXTS["docs/api.md"]


METHODS = {path.stem: yaml.safe_load(path.read_text()) for path in ROOT.glob("configs/method/*")}
METHOD_ROWS = _rows_of("docs/losses.md", "| file | weight of a token")


def _numbers_of(settings):
    """Return every number of a method's file by its key, and lambda under its own name."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            for name, numbers in _numbers_of(value).items():
                found.setdefault(name, set()).update(numbers)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.setdefault(key, set()).add(float(value))
    return found


def test_the_readme_names_every_method():
    text = TEXTS["README.md"].split("## Methods and benchmarks")[1].split("* benchmarks:")[0]
    names = re.findall(r"`(\w+)`", text)
    assert sorted(names) == sorted(METHODS)


def test_every_method_has_a_row():
    named = [name for row in METHOD_ROWS for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(METHODS)


@pytest.mark.parametrize("row", METHOD_ROWS, ids=lambda row: row[0])
def test_the_numbers_of_a_row_are_those_of_its_files(row):
    keys = {"lambda": "forget_weight", "retain weight": "retain_weight", "T": "temperature"}
    names = re.findall(r"`(\w+)`", row[0])
    numbers = [_numbers_of(METHODS[name]["model"]) for name in names]
    pairs = re.findall(
        r"\b(lambda|retain weight|T|beta[12]?|alpha|delta|strength) (\d*\.?\d+)", row[2]
    )
    for name, value in pairs:
        held = [one.get(keys.get(name, name), set()) for one in numbers]
        assert any(float(value) in one for one in held), (name, value, held)


PAPERS = _rows_of("docs/papers.md", "| paper | file | published numbers in the file |")
CHOSEN = {row[0].strip("`"): row for row in _rows_of("docs/results.md", "| method | chosen |")}


@pytest.mark.parametrize("row", PAPERS, ids=lambda row: row[1])
def test_what_stands_beside_a_paper_is_the_table_of_results(row):
    names = [name for name in re.findall(r"`(\w+)`", row[1]) if name in CHOSEN]
    known = [CHOSEN[name] for name in names]
    lambdas = {float(line[1].removeprefix("lambda ")) for line in known if "lambda" in line[1]}
    qualities = {float(line[2].split(" ")[0]) for line in known}
    for text in re.findall(r"\d*\.?\d+(?:e-\d+)?", row[3]):
        assert float(text) in lambdas | qualities, (text, known)
    assert re.search(r"\d", row[3])
