"""What is refused before the parser is made, and what is left to it."""

import shlex

import pytest

from etw_lightning.commands.refusals.early import check_early, refused
from etw_lightning.commands.stored_help import load
from etw_lightning.files.config_files import resolve_words
from etw_lightning.schema import InputError

COMPLETE = "--config quickstart "


def check(line):
    command, *words = shlex.split(line)
    commands = load()
    assert commands is not None, "run python -m etw_lightning.commands.stored_help"
    check_early(commands, command, words, resolve_words(words)[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit --metrics x", "metrics is not an option of fit; evaluate takes it."),
        ("check --lm_eval x", "lm_eval is not an option of check; evaluate takes it."),
        ("evaluate --memory_per_gpu 3", "memory_per_gpu is not an option of evaluate; check "),
        ("evaluate --metrix x", "metrix is not known. Did you mean 'metrics'?"),
        ("fit --modl.lambda 3", "modl.lambda is not known. Did you mean 'model.lambda'?"),
        ("fit --modl.lr 3", "modl.lr is not known. Did you mean 'model.lr'?"),
        ("fit", "model.pretrained, data.benchmark must be given; begin with a complete file: "),
        ("fit --config method/npo --data.benchmark tofu", "model.pretrained must be given; "),
        ("evaluate --model.pretrained a/b", "data.benchmark must be given; "),
        ("fit --config quickstart --model.weighting ETTW", "model.weighting must be ATWU, ETW, "),
        ("fit --config quickstart --conventions per", "conventions must be definition or peer; "),
        ("fit --config quickstart --data.benchmark tofo", "data.benchmark must be tofu, muse_news"),
        ("fit --config quickstart --model.lambda 0", "model.lambda must be a number > 0; got 0."),
    ],
)
def test_what_is_certain_is_refused(line, message):
    with pytest.raises(InputError) as caught:
        check(line)
    assert str(caught.value).startswith(message)


def test_a_file_is_looked_through_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  anchor: retian\n")
    with pytest.raises(InputError, match=r"^data\.anchor must be forget or retain; got 'retian'\."):
        check(f"fit {COMPLETE} --config {path}")


@pytest.mark.parametrize(
    "words",
    [
        "--model.weighting Rare --model.forget my_parts.Floored",
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.logger false",
        "--model.lr 1e-4 --model.warmup 0 --model.forget_weight 1",
        "--data.seed null --data.alternative null --checkpoints.best null",
        "--trainer.deterministic warn --trainer.precision 32",
        "--model.forget null --no_save_model --overwrite",
        "--seed_everything true --weights_only true",
        "--data.benchmark my_parts.Diary",
        "--trainer.fast_dev_run on --trainer.barebones no",
        "--output_dir true --model.optimizer_args x",
    ],
)
def test_what_the_parser_may_take_is_left_to_it(words):
    check(f"fit {COMPLETE} {words}")


@pytest.mark.parametrize(
    "line",
    [
        "fit --print_config",
        "fit --model.weighting.help ETW",
        "fit --config '{model: {pretrained: a}, data: {benchmark: tofu}}'",
        "fit --model model.yaml --data data.yaml",
    ],
)
def test_settings_that_may_be_elsewhere_are_not_missed(line):
    check(line)


@pytest.mark.parametrize(
    ("kind", "takes", "refuses"),
    [
        ("bool", ["true", "No", "1", "null"], ["perhaps"]),
        ("Optional[int]", ["3", "null", "1.5"], ["three"]),
        ("PositiveInt", ["1", "1.5", "true", "inf"], ["0", "-2", "one"]),
        ("NonNegativeFloat | null", ["0", "0.5", "nan", "null"], ["-0.5", "half"]),
        ("Union[bool, Literal['warn'], null]", ["warn", "true"], ["wrn"]),
        ("Literal['a-b', 'c']", ["a-b", "c", "3"], ["a"]),
        ("Union[str, int]", ["anything", "3"], []),
        ("Optional[dict[str, int]]", ["anything"], []),
        ("", ["anything"], []),
    ],
)
def test_of_a_type_only_what_it_never_takes_is_refused(kind, takes, refuses):
    assert [value for value in takes if refused("k", kind, value)] == []
    assert [value for value in refuses if refused("k", kind, value) is None] == []
