"""``attack``: a run's numbers before and under an attack, beside those of the retain model."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from etw_lightning.commands.refusals.options import Options
from etw_lightning.files.class_paths import class_at, is_class_path, look_here
from etw_lightning.files.config_files import find_config, shipped
from etw_lightning.files.setting_names import options_of, renamed, why_unread
from etw_lightning.notices import printable
from etw_lightning.schema import InputError

__all__ = ["attack", "parser"]

_FOLDER = "attack/"
#: Settings of a run that an option of this command gives.
_OPTIONS = {"data.retain_model": "retain_model", "data.target_model": "target_model"}
_OPTION = re.compile(r"--(attack|data)\.([\w.]+)(?:=(.*))?", re.DOTALL)


def attack(args: Sequence[str]) -> int:
    """Run ``attack``.

    Args:
        args: Words after ``attack``.

    Returns:
        0.

    Raises:
        InputError: If there is no such attack or run, or the one can't be made on the other.
    """
    try:
        return _answer(list(args))
    except InputError as error:
        typed = {name for name, _ in options_of(args)}
        names = {key: option for key, option in _OPTIONS.items() if key not in typed}
        raise InputError(renamed(str(error), names)) from error


def _answer(words: list[str]) -> int:
    if {"-h", "--help"} & set(words) and words[0] not in ("-h", "--help"):
        parser().print_help()
        sys.stdout.write("\n")
        look_here()
        return _explain(words[0])
    options, more = parser().parse_known_args(words)
    _check_words(more)
    look_here()
    from etw_lightning.commands.quiet import be_quiet
    from etw_lightning.reports.finished_runs import read_run

    run = read_run(options.model, key="attack --model")
    be_quiet()
    given = _named(options.name)
    from etw_lightning.attacks.attacked_run import AttackedRun
    from etw_lightning.attacks.results import as_json, print_outcome, save_outcome
    from etw_lightning.attacks.running import run_attack
    from etw_lightning.catalogue.suite import metric_names

    asked = metric_names(options.metrics)
    if asked is not None and not asked:
        raise InputError(f"attack: --metrics must name at least one; got {options.metrics!r}.")
    AttackedRun.check_run(run)
    inner = _inner()
    config = _parse(inner, [*_data_of(run), *given, *more])
    _settle(config.data, options, {name for name, _ in options_of(more)})
    attacked = AttackedRun(
        run, lambda: inner.instantiate(config).data, config.data.as_dict(), options.seed
    )
    name = _name(options.name, more)
    output = Path(options.output or attacked.folder / "attacks" / f"{name}.json").expanduser()
    _check_output(output)
    _check_null(config.attack)
    made = _built(inner, config)
    _check_read(more, made.read_too)
    outcome = run_attack(
        made,
        attacked,
        asked,
        progress=sys.stdout.isatty(),
        say=_say,
    )
    found = as_json(outcome, attacked, name, config.attack.as_dict(), made.robustness)
    save_outcome(found, output)
    title = f"{name} on {attacked.folder}"
    print_outcome(outcome, title, made.robustness, shows_all=options.all)
    sys.stdout.write(f"results: {output}\n")
    return 0


def _settle(data: Any, options: Any, typed: Collection[str]) -> None:
    """Let the models and records that were typed take the place of all that the run has of them."""
    for role in ("retain", "target"):
        model, results = f"{role}_model", f"{role}_results"
        option = getattr(options, model)
        if option is not None and not option.strip():
            raise InputError(f"{model} must be a model's folder, file or name; got {option!r}.")
        if option is not None and f"data.{model}" in typed:
            raise InputError(
                f"attack: --{model} {option!r} and --data.{model} {data[model]!r} are the same "
                "setting; leave one of them out."
            )
        if option is not None:
            data[model] = option
        is_asked = option is not None or f"data.{model}" in typed
        if is_asked and f"data.{results}" not in typed:
            data[results] = None
        if role == "retain" and not is_asked and f"data.{results}" in typed:
            data[model] = None


def _check_output(output: Path) -> None:
    """Refuse a file that can't be written before hours are spent on what it is to hold."""
    file = next((one for one in output.parents if one.exists() and not one.is_dir()), None)
    if output.is_dir() or file is not None:
        what = "is a folder" if file is None else f"is in {str(file)!r}, which is a file"
        raise InputError(f"attack: --output {str(output)!r} {what}; give a file.")


def _check_null(attack: Any) -> None:
    """Refuse a null for an argument that takes none, which the parser lets through."""
    from etw_lightning.attacks.interface import Attack

    given = attack.as_dict().get("init_args") or {}
    kind = class_at(attack.class_path, Attack, "attack")
    for name, one in getattr(kind, "__dataclass_fields__", {}).items():
        if name in given and given[name] is None and "None" not in str(one.type):
            raise InputError(f"attack.{name} must have a value; got null.")


def _check_read(words: Sequence[str], read_too: Collection[str]) -> None:
    """Refuse settings of the run that an attack takes and does not read."""
    line = why_unread("attack", words, read_too)
    if line is not None:
        raise InputError(line)


def _say(line: str) -> None:
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


def _is_class(name: str) -> bool:
    return is_class_path(name) and not Path(name).suffix.startswith(".y")


def _named(name: str) -> list[str]:
    """Return the words that choose an attack by its class or its configuration."""
    if not _is_class(name):
        return _file(name)
    from etw_lightning.attacks.interface import Attack
    from etw_lightning.files.class_paths import check_class

    check_class(name, Attack, "attack")
    return ["--attack", name]


def _file(name: str) -> list[str]:
    """Return the words that lay an attack's configuration over the run's rows."""
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    known = [one.removeprefix(_FOLDER) for one in shipped() if one.startswith(_FOLDER)]
    try:
        found = find_config(name if is_path else f"{_FOLDER}{name}", "attack")
    except InputError as error:
        if is_path:
            raise
        near = difflib.get_close_matches(name, known[::-1], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"attack must be {', '.join(known)}, a file, or the path of a class; got "
            f"{name!r}.{hint}"
        ) from error
    if found.note:
        sys.stderr.write(f"note: {found.note}\n")
    return ["--config", str(found.path)]


def _name(name: str, more: Sequence[str]) -> str:
    """Return what the results are called: the attack, what was typed for it and of the rows."""
    first = name.rpartition(".")[2] if _is_class(name) else Path(name).stem
    joined = " ".join(more)
    typed = re.findall(r"--(?:attack|data)\.(?!\w+_(?:model|results)\b)([\w.]+)[= ](\S+)", joined)
    parts = [f"{key.rpartition('.')[2]}{re.sub(r'[^A-Za-z0-9.]+', '_', to)}" for key, to in typed]
    return "-".join([first, *parts])


def _check_words(words: Sequence[str]) -> None:
    """Refuse an option that is none; those of the attack and of the rows are left to the parser."""
    for place, word in enumerate(words):
        before = _OPTION.fullmatch(words[place - 1]) if place else None
        is_value = before is not None and before[3] is None
        if not _OPTION.fullmatch(word) and not is_value:
            raise InputError(
                f"attack: there is no option {word!r}; attack --help lists what there is, attack "
                "NAME --help what of the attack (--attack.KEY)."
            )


def _inner(*, rows: bool = True) -> Any:
    """Return the parser of an attack and of the run's rows, or of an attack alone."""
    from etw_lightning.attacks.interface import Attack
    from etw_lightning.commands.parser import Parser
    from etw_lightning.training.datamodule import UnlearningDataModule

    inner: Any = Parser(exit_on_error=False)
    inner.add_argument("--config", action="config")
    inner.add_argument("--attack", type=Attack)
    if rows:
        inner.add_class_arguments(UnlearningDataModule, "data")
    return inner


def _data_of(run: Any) -> list[str]:
    """Return the run's rows as words; nothing where its configuration can't be read."""
    import json

    data = run.config.get("data")
    return ["--config", json.dumps({"data": data})] if data else []


def _parse(inner: Any, words: Sequence[str]) -> Any:
    from jsonargparse import ArgumentError

    from etw_lightning.commands.refusals.messages import one_line

    try:
        return inner.parse_args(list(words))
    except ArgumentError as error:
        raise InputError(one_line(str(error))) from error


def _built(inner: Any, config: Any) -> Any:
    from etw_lightning.commands.refusals.messages import one_line

    try:
        return inner.instantiate(config).attack
    except InputError:
        raise
    except ValueError as error:
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        raise InputError(one_line(str(cause))) from error


def _explain(name: str) -> int:
    """Show what an attack takes."""
    inner = _inner(rows=False)
    kind = _parse(inner, _named(name)).attack.class_path
    with contextlib.suppress(SystemExit):
        inner.parse_args([f"--attack.help={kind}"])
    return 0


def parser() -> Options:
    """Return the command's options, but for those of each attack."""
    parser = Options("attack", __doc__)
    parser.epilog = (
        "--attack.KEY VALUE sets an argument of the attack, which attack NAME --help lists; "
        "--data.KEY VALUE one of the run's rows, such as --data.max_new_tokens 40."
    )
    known = [one.removeprefix(_FOLDER) for one in shipped() if one.startswith(_FOLDER)]
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(known)}; or a file; or the path of a class of your own",
    )
    parser.add_argument(
        "--model", metavar="RUN", required=True, help="folder of a finished run that unlearned"
    )
    parser.add_argument("--output", metavar="FILE", help="null: RUN/attacks/NAME.json")
    parser.add_argument(
        "--metrics", help="names, separated by commas; without: those of the run's own numbers"
    )
    parser.add_argument(
        "--retain_model",
        metavar="PATH",
        help="model that never saw the forget set; without: the run's data.retain_model",
    )
    parser.add_argument(
        "--target_model",
        metavar="PATH",
        help="model that knows it; without: the one that the run began with",
    )
    parser.add_argument("--all", action="store_true", help="print every number, not the first few")
    parser.add_argument("--seed", type=_seed, help="of what is drawn; without: the run's")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 0 to {2**32 - 1}; got {text!r}"
        )
    return int(text)
