"""The parser that tests make once reads what a new one reads, whatever it has read before."""

import shlex

import pytest
import yaml
from warm import keep_parsers

from etw_lightning.commands.cli import UnlearningCLI

#: Words of two runs: what the one sets must not be there in the other.
RUNS = {
    "fit": (
        "--config quickstart --config method/npo --model.lambda 3 --data.rows.forget 3 "
        "--trainer.callbacks+=RetainBudget --trainer.callbacks.budget=.2 --no_save_model",
        "--config own_data --model.pretrained a/b --model.weighting.top_share .5",
    ),
    "evaluate": (
        "--config quickstart --metrics probability --model.forget null --conventions peer",
        "--config tofu_forget10 --model.pretrained a/b --metrics+=privleak --data.template plain",
    ),
    "check": (
        "--config quickstart --memory_per_gpu 3 --model.peft '{peft_type: LORA, r: 3}'",
        "--config muse_news --config strategy/ddp --model.retain KL",
    ),
    "weights": (
        "--config quickstart --row 3 --weightings etw,wga",
        "--config quickstart --model.weighting Random --model.weighting.of WGA",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_reused_parser_reads_as_a_new_one_does(command, home, monkeypatch, name):
    def read(line):
        outcome = command(name, *shlex.split(line), "--print_config")
        assert (outcome.status, outcome.err) == (0, "")
        return yaml.safe_load(outcome.out)

    one, other = RUNS[name]
    first, reused, again = read(one), read(other), read(one)
    assert first == again
    assert first != reused
    keep_parsers()
    monkeypatch.setattr(UnlearningCLI, "setup_parser", UnlearningCLI.setup_parser.makes)
    # ``command`` would have it kept again.
    monkeypatch.setattr(UnlearningCLI.setup_parser, "makes", None, raising=False)
    assert read(other) == reused
