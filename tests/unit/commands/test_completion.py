"""The script for a shell completes commands, options and their choices."""

import shutil
import subprocess

import pytest

from etw_lightning.commands import completion, entry
from etw_lightning.schema import InputError

pytest.importorskip("shtab")

#: Sources a script and prints what its function completes the last of some words to.
_ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
name=$(complete -p etw | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
"$name" etw "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    script = tmp_path_factory.mktemp("completion") / "etw.bash"
    script.write_text(completion.completion_script("bash", entry.COMMANDS))

    def call(*words):
        asked = ["bash", "-c", _ASK, "bash", str(script), "etw", *words]
        result = subprocess.run(asked, capture_output=True, text=True, check=False)
        return set(result.stdout.split())

    return call


def test_commands_are_completed(complete):
    assert complete("") >= set(entry.COMMANDS)
    assert complete("ev") == {"evaluate"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fit", "--model.l"), {"--model.lr"}),
        (("evaluate", "--gibb"), {"--gibberish_classifier"}),
        (("sweep", "--j"), {"--jobs"}),
        (("export", "--dt"), {"--dtype"}),
        (("attack", "relearn_"), {"relearn_retain"}),
        (("attack", "prune", "--retain"), {"--retain_model"}),
        (("attack", "relearn", "--attack.st"), {"--attack.steps"}),
        (("fit", "--model.reduction", ""), {"token", "sequence"}),
        (("fit", "--data.alternative", ""), {"column", "refusal", "null"}),
        (("check", "--weights_only", "t"), {"true"}),
        (("fit", "--model.weighting", "Sa"), {"SatImp"}),
        (("fit", "--config", "method/np"), {"method/npo"}),
        (("sweep", "--config", "sweep/quickstart_la"), {"sweep/quickstart_lambda"}),
    ],
)
def test_options_and_choices_are_completed(complete, words, expected):
    assert complete(*words) == expected


@pytest.mark.parametrize(("shell", "word"), [("tcsh", "evaluate"), ("zsh", "--model.lr")])
def test_other_shells_have_a_script(shell, word):
    assert word in completion.completion_script(shell, entry.COMMANDS)


def test_without_shtab_it_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(completion, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'etw-lightning\[completion\]'"):
        completion.completion_script("bash", entry.COMMANDS)
