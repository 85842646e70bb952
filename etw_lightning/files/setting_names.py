"""Settings by their names: which have a second one, and which a command takes and never reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

__all__ = ["SAME", "as_typed", "is_unread", "options_of", "renamed", "why_unread"]

#: The paper calls the weight of the forget term lambda, which is no name in Python; options, and
#: files of several runs, take it.
SAME: Mapping[str, str] = {"model.lambda": "model.forget_weight"}
#: What a value of such a setting stands for, where it is more than a value.
_STANDS_FOR: Mapping[tuple[str, str], str] = {
    ("model.lambda", "auto"): "model.forget_unit gradient"
}
_BETWEEN = ".init_args."

#: Settings of the trainer that only training reads.
_OF_TRAINING = (
    *("trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps"),
    *("trainer.max_time", "trainer.limit_train_batches", "trainer.val_check_interval"),
    *("trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.log_every_n_steps", "trainer.accumulate_grad_batches"),
    *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"),
    *("trainer.reload_dataloaders_every_n_epochs", "trainer.logger"),
    *("trainer.enable_checkpointing", "trainer.enable_model_summary"),
    *("trainer.enable_autolog_hparams", "trainer.model_registry"),
)
#: Settings of rows that only training reads.
_OF_STEPS = (
    *("data.split", "data.retain_weights", "data.leave_out", "data.batch_size", "data.anchor"),
    *("data.num_workers", "data.alternative", "data.alternatives", "data.refusals"),
)
#: The same of rows that are scored, or of what they are compared with.
_OF_SCORES = (
    *("data.holdout_split", "data.eval_batch_size", "data.eval_max_length", "data.max_new_tokens"),
    *("data.retain_results", "data.retain_model", "data.target_results", "data.rouge_tokenizer"),
    "data.choice_prompt",
)
_OF_NO_COMMAND = (
    *("trainer.default_root_dir", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
)
#: By command what it takes, as it takes the files of ``fit``, and never reads; ``model`` apart.
_UNREAD: Mapping[str, tuple[str, ...]] = {
    "fit": _OF_NO_COMMAND,
    "check": _OF_NO_COMMAND,
    "evaluate": (
        *(*_OF_NO_COMMAND, *_OF_TRAINING, *_OF_STEPS),
        *("checkpoints", "collapse", "save_model", "weights_only"),
    ),
    "attack": (*_OF_STEPS, "data.seed", "data.tokenizer", "data.forget_part"),
    "weights": (
        *(*_OF_NO_COMMAND, *_OF_TRAINING, *_OF_STEPS, *_OF_SCORES),
        *("data.retain_split", "trainer.callbacks", "trainer.limit_val_batches"),
        *("trainer.overfit_batches", "trainer.fast_dev_run", "output_dir", "overwrite"),
        *("checkpoints", "collapse", "save_model", "ckpt_path", "weights_only"),
    ),
}
#: What of ``model`` is read by commands that do not read all of it.
_READ: Mapping[str, tuple[str, ...]] = {
    "evaluate": ("pretrained", "dtype", "attention", "chunk_size"),
    "weights": (
        *("pretrained", "dtype", "attention", "chunk_size", "weighting", "forget"),
        "entropy_model",
    ),
}
_DOES: Mapping[str, str] = {
    "fit": "writes into output_dir, and neither tests nor predicts",
    "check": "neither tests nor predicts",
    "evaluate": "scores and trains nothing",
    "attack": "scores rows as the run did, with the tokenizer of its model",
    "weights": "shows the weights of one row and neither trains nor scores",
}
#: What is to be given in the place of some, by command and setting.
_INSTEAD: Mapping[tuple[str, str], str] = {
    ("attack", "data.batch_size"): "relearn takes --attack.batch_size; leave it out.",
    ("attack", "data.seed"): "Give --seed.",
    ("attack", "data.split"): "relearn takes --attack.rows; leave it out.",
    ("evaluate", "data.batch_size"): "Give --data.eval_batch_size.",
    ("evaluate", "trainer.callbacks"): "Give --metrics.",
}
#: Callbacks in whose place ``--metrics`` says what is scored.
_SCORERS = re.compile(
    r"\b(EvaluationCallback|ForgetQuality|ModelUtility|Muse|PrivLeak|SetScores|Suite)\b"
)
#: Of these the values say what is so anyway.
_OFF = {"false", "null", "none"}


def renamed(message: str, names: Mapping[str, str]) -> str:
    """Return a message with settings, and what stands within them, under other names.

    Args:
        message: Of an error.
        names: A setting's name in it to the one that is to stand there.

    Example:
        >>> renamed("data.rows.a of data.rows_of.", {"data.rows": "rows"})
        'rows.a of data.rows_of.'
    """
    if not names:
        return message
    either = "|".join(map(re.escape, names))
    return re.sub(rf"(?<![\w.])({either})(?!\w)", lambda one: names[one[1]], message)


def as_typed(message: str, words: Iterable[str]) -> str:
    """Return a message with settings under the names that the user gave them.

    Args:
        message: Of an error, under the names that a run has for them.
        words: What was typed: options with or without their values, or keys of a file. A setting
            that stands under both of its names keeps the plain one.

    Example:
        >>> as_typed("model.forget_weight must be > 0.", ["--model.lambda", "0"])
        'model.lambda must be > 0.'
        >>> as_typed("model.forget_unit gradient is refused.", ["--model.lambda=auto"])
        'model.lambda auto is refused.'
    """
    pairs, last = [], ""
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        # A value may follow its option.
        pairs += [(name, value), (last, word)]
        last = name
    typed = {name for name, _ in pairs}
    # Arguments of a class may be typed with or without what stands between.
    same = {**SAME, **{name: name.replace(_BETWEEN, ".") for name in typed if _BETWEEN in name}}
    names = {plain: short for short, plain in same.items() if short in typed and plain not in typed}
    for (short, value), plain in _STANDS_FOR.items():
        if (short, value) in pairs and plain.partition(" ")[0] not in typed:
            names[plain] = f"{short} {value}"
    return renamed(message, names)


def is_unread(command: str, name: str, value: str = "") -> bool:
    """Tell whether a command takes a setting, as ``fit`` does, and never reads it.

    Args:
        command: One of those that take the files of ``fit``.
        name: The setting's, or that of an argument of a class that stands there.
        value: As typed; what says that something is off is so anyway.

    Example:
        >>> is_unread("evaluate", "model.lambda"), is_unread("evaluate", "model.dtype")
        (True, False)
        >>> is_unread("evaluate", "trainer.logger", "false")
        False
    """
    key = SAME.get(name, name)
    if value.lower() in _OFF and not key.startswith(("model.", "data.")):
        return False
    if (command, key) == ("evaluate", "trainer.callbacks"):
        return _SCORERS.search(value) is not None
    group, _, inner = key.partition(".")
    if group == "model" and inner and command in _READ:
        return inner.partition(".")[0] not in _READ[command]
    return any(f"{key}.".startswith(f"{one}.") for one in _UNREAD.get(command, ()))


def why_unread(command: str, words: Sequence[str], read_too: Collection[str] = ()) -> str | None:
    """Return what is said of the first option that a command would take and not read.

    Args:
        command: The command.
        words: What is typed behind it.
        read_too: Settings that it reads all the same.

    Example:
        >>> why_unread("evaluate", ["--model.lr=1"])
        "model.lr is not read by evaluate, which scores and trains nothing; got '1'. Leave it out."
    """
    given = [*options_of(words)]
    chosen = command == "weights" and any(name == "weightings" for name, _ in given)
    for name, value in given:
        if chosen and f"{name}.".startswith("model.weighting."):
            return (
                f"{name} is not read beside --weightings, which says which are shown; got "
                f"{value!r}. Leave one of them out."
            )
        is_read = name in read_too or name.endswith(".help")
        if is_unread(command, name, value) and not is_read:
            way_out = _INSTEAD.get((command, name), "Leave it out.")
            if name == "trainer.default_root_dir":
                way_out = "Give --output_dir."
            return (
                f"{name} is not read by {command}, which {_DOES[command]}; got {value!r}. {way_out}"
            )
    return None


def options_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give the options of a command with their values; empty where none is given.

    Args:
        words: What is typed behind it.

    Example:
        >>> [*options_of(["--a.b=1", "--c", "2", "--d", "--e+=3"])]
        [('a.b', '1'), ('c', '2'), ('d', ''), ('e', '3')]
    """
    for word, following in zip(words, (*words[1:], ""), strict=False):
        option, is_pair, value = word.partition("=")
        if option.startswith("--"):
            behind = "" if following.startswith("--") else following
            yield option.lstrip("-").rstrip("+"), value if is_pair else behind
