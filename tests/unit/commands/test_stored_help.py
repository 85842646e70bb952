"""The help that is kept beside the code is what the parser shows, and is used only while it is."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from etw_lightning.commands import entry, stored_help
from etw_lightning.commands.refusals.early import unknown_option
from etw_lightning.commands.stored_help import laid_out, load

#: Prints what the file should hold, and the real help for some widths; in a process of its own, as
#: a parser lists the subclasses that happen to be imported.
_REAL = """
import json, os
from etw_lightning.commands.run_reader import RunReader
from etw_lightning.commands.stored_help import made
shown = {}
for name, parser in RunReader().parser._subcommands_action._name_parser_map.items():
    for width in (50, 80, 150):
        os.environ["COLUMNS"] = str(width)
        shown[f"{name} {width}"] = parser.format_help()
flags = {
    name: sorted(flag for one in parser._actions for flag in one.option_strings)
    for name, parser in RunReader().parser._subcommands_action._name_parser_map.items()
}
print(json.dumps({"made": made(), "shown": shown, "flags": flags}))
"""


@pytest.fixture(scope="module")
def real():
    words = [sys.executable, "-c", _REAL]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def held():
    found = load()
    assert found is not None, "run python -m etw_lightning.commands.stored_help"
    return found


def test_it_is_what_the_parser_shows_now(real):
    stored = stored_help._FILE.read_text(encoding="utf-8")
    assert stored == real["made"], "run python -m etw_lightning.commands.stored_help"


def test_it_is_laid_out_for_the_terminal_as_the_parser_does(real, held, monkeypatch):
    for name, text in real["shown"].items():
        command, width = name.split()
        monkeypatch.setenv("COLUMNS", width)
        assert laid_out(held[command]) == text


def test_every_option_of_the_parser_is_completed(real, held):
    """Its own way to completion finds no end; all that it has is in ours."""
    assert set(real["flags"]) == set(held)
    for name, flags in real["flags"].items():
        options = stored_help.add_options(argparse.ArgumentParser(add_help=False), held[name])
        ours = {flag for one in options.values() for flag in one.option_strings}
        # Not shown in help either: the options that Lightning fills in itself.
        assert ours <= set(flags)
        assert {flag for flag in set(flags) - ours if not flag.endswith("+")} == set(), name


@pytest.mark.parametrize("key", ["lightning", "sources"])
def test_with_another_library_or_other_options_the_parser_is_asked(monkeypatch, key):
    now = stored_help.state()
    monkeypatch.setattr(stored_help, "state", lambda: {**now, key: "other"})
    assert load() is None


def test_the_state_follows_what_defines_an_option():
    outline = stored_help._outline
    one = "class A:\n    def __init__(self, a: int = 3): self.a = a\n"
    assert list(outline(one)) != list(outline(one.replace("3", "4")))
    assert list(outline(one)) == list(outline(one.replace("self.a = a", "self.a = 2 * a")))
    assert list(outline("Name = Literal['a']\n")) != list(outline("Name = Literal['b']\n"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--modle.lr 3", "--modle.lr"),
        ("--trainer.max_epoch=3", "--trainer.max_epoch"),
        ("--model.lambda .2 --model.lr=3 --no_save_model", None),
        ("--trainer.callbacks+=Nope --trainer.callbacks.every=3", None),
        ("--model.weighting.of.temperature 2 --data.rows.forget10 3", None),
        ("--config a.yaml -c b.yaml --print_config=skip_default", None),
        ("--data.system_prompt=--x --output_dir o", None),
    ],
)
def test_only_what_can_be_no_option_is_refused(held, words, expected):
    assert unknown_option(held["fit"], words.split()) == expected


def test_a_typo_and_help_need_no_heavy_library(tmp_path):
    code = (
        "import sys\nfrom etw_lightning.commands.entry import main\n"
        "status = [main(words.split()) for words in sys.argv[1:]]\n"
        "heavy = {'torch', 'lightning', 'transformers', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'{status} {sorted(heavy)}')\n"
    )
    lines = ["fit --help", "check --modle.lr 3", "fit --config absent", "configs", "--version"]
    lines += ["fit", "evaluate --config quickstart --data.anchor retian"]
    words = [sys.executable, "-c", code, *lines, "sweep"]
    environment = {**os.environ, "COLUMNS": "80"}
    result = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert result.stderr.splitlines()[-1] == "[0, 2, 2, 0, 0, 2, 2, 2] []"
    assert "error: modle.lr is not known. Did you mean 'model.lr'?" in result.stderr


def test_the_program_lists_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        entry.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in entry.COMMANDS)
