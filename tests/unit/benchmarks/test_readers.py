"""A benchmark is given nothing that only another one reads."""

from dataclasses import replace

import pytest

from etw_lightning.benchmarks.choice import ChoicePrompt
from etw_lightning.benchmarks.readers import make_reader
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.schema import InputError

USUAL = {"columns": Columns(), "which_turns": "last"}


@pytest.mark.parametrize(
    ("name", "own", "prompt", "said"),
    [
        ("tofu", {"columns": Columns(question="prompt")}, {}, "data.columns.question is 'prompt', "
         "but only rows of data.benchmark jsonl are read by it, not those of tofu. Leave it out."),
        ("quickstart", {"which_turns": "all"}, {}, "data.which_turns is 'all', but only rows of "
         "data.benchmark jsonl "),
        ("dusk", {}, {"mmlu_shots": 5}, "data.choice_prompt.mmlu_shots is 5, but only rows of "
         "data.benchmark choice are read by it, not those of dusk. "),
        ("jsonl", {}, {"form": "text"}, "data.choice_prompt.form is 'text', but only rows of "),
    ],
)  # fmt: skip
def test_what_another_benchmark_reads_is_refused(name, own, prompt, said):
    asked = replace(ChoicePrompt(), **prompt)
    with pytest.raises(InputError) as error:
        make_reader(name, Source(), {"forget_split": "a"}, {**USUAL, **own}, asked, 3)
    assert str(error.value).startswith(said)


def test_what_it_reads_itself_is_handed_on():
    own = {"columns": Columns(question="prompt"), "which_turns": "all"}
    splits = {"forget_split": "a", "retain_split": "b"}
    found = make_reader("jsonl", Source(), splits, own, ChoicePrompt(), 3)
    assert (found.columns.question, found.which_turns, found.max_new_tokens) == ("prompt", "all", 3)
    prompt = ChoicePrompt("text", 2)
    made = make_reader("choice", Source(), {"forget_split": "wmdp_bio"}, USUAL, prompt, 3)
    assert made.prompt == prompt
