"""``alternatives``: a file of second answers to forget questions, drawn from a model.

Methods of preference (altpo, etw_altpo, dpo) set a second answer against the one to forget. A
model makes them up: best one that was not taught the rows, or the target itself with the {answer}
in its prompt. What breaks off, loops, refuses or says a name or number of the true answer is drawn
again. Given again, the command asks for the missing ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from etw_lightning.commands.refusals.options import Options
from etw_lightning.schema import InputError

if TYPE_CHECKING:
    from etw_lightning.data.second_answers import SecondAnswers
    from etw_lightning.models.sampling import Sampling
    from etw_lightning.scoring.alternatives import Alternatives

__all__ = ["alternatives", "parser"]

_SHOWN = 3


def alternatives(args: Sequence[str]) -> int:
    """Run ``alternatives``.

    Args:
        args: Words after ``alternatives``.

    Returns:
        0, also where some rows have none yet: a line says how many.

    Raises:
        InputError: If the options, the rows or the model can't be used.
    """
    options = parser().parse_args(list(args))
    output = Path(options.output).expanduser()
    if output.suffix != ".jsonl":
        raise InputError(f"alternatives: --output must end in .jsonl; got {options.output!r}.")
    from etw_lightning.models.sampling import Sampling
    from etw_lightning.scoring.alternatives import check_prompt

    check_prompt(options.prompt, "alternatives: --prompt")
    try:
        sampling = Sampling(options.temperature, options.top_p, options.seed)
    except InputError as error:
        raise InputError(f"alternatives: --{error}") from error
    _draw(output, sampling, options)
    return 0


def _draw(output: Path, sampling: Sampling, options: argparse.Namespace) -> None:
    """Read the rows, have the model answer, and write after each round."""
    from etw_lightning.api.alternatives import draw_rows, read_questions, take_asked
    from etw_lightning.benchmarks.tofu import Columns
    from etw_lightning.commands.quiet import be_quiet
    from etw_lightning.data.second_answers import pair_of, read_second_answers

    be_quiet()
    columns = Columns(question=options.question, answer=options.answer)
    examples = read_questions(options.rows, columns, "--rows")
    known = {}
    if output.exists():
        _check_own(output, options)
        known = read_second_answers(output, "--output")
    pairs = {pair_of(one.question, one.answer) for one in examples}
    if there := len(pairs & set(known)):
        sys.stdout.write(f"{there} of {len(examples)} rows have a second answer already\n")
    others = [
        {"question": question, "answer": answer, "alternative_answer": second}
        for (question, answer), second in known.items()
        if (question, answer) not in pairs
    ]

    def told(found: Alternatives, rows: list[dict[str, str]]) -> None:
        _write(output, [*rows, *others])
        sys.stdout.write(
            f"round {found.rounds} of {options.tries}: {len(rows)} of {len(examples)} rows have a "
            f"second answer{_why(found)}\n"
        )
        sys.stdout.flush()

    given = take_asked(options.model, options.tokenizer, options.dtype)
    names = ("template", "system_prompt", "prompt", "tries", "max_new_tokens", "batch_size")
    how = {name: getattr(options, name) for name in names}
    rows = draw_rows(given, examples, known, sampling, told=told, **how)
    _tell(rows, known, len(examples), options)


def _check_own(output: Path, options: argparse.Namespace) -> None:
    """Refuse to write over rows that are not of this command, which may hold more columns."""
    from etw_lightning.benchmarks.formats import iter_file

    names = {name for row in iter_file(output) for name in row}
    if names != {"question", "answer", "alternative_answer"}:
        raise InputError(
            f"alternatives: --output {options.output!r} is there and was not written by this "
            f"command: it has the columns {', '.join(sorted(names))}. Give another file."
        )


def _write(output: Path, rows: list[dict[str, str]]) -> None:
    from etw_lightning.scoring.retain_results import write_atomically

    if not rows:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_atomically(output, "".join(f"{line}\n" for line in lines).encode("utf-8"))


def _why(found: Alternatives) -> str:
    """Return why texts were not taken, the commonest reason first."""
    reasons = [f"{count} {reason}" for reason, count in found.refused.most_common()]
    return f"; not taken: {', '.join(reasons)}" if reasons else ""


def _tell(
    rows: list[dict[str, str]], known: SecondAnswers, count: int, options: argparse.Namespace
) -> None:
    """Show some of what is new, and say how a run reads it or what is missing."""
    from etw_lightning.data.second_answers import pair_of

    new = [row for row in rows if pair_of(row["question"], row["answer"]) not in known]
    for row in new[:_SHOWN]:
        for name, label in (("question", "Q"), ("answer", "A"), ("alternative_answer", ">")):
            sys.stdout.write(f"  {label} {row[name]}\n")
    missing = count - len(rows)
    if missing:
        sys.stdout.write(
            f"{missing} of {count} rows have none; the same command with --seed "
            f"{options.seed + 1} asks for them again, --prompt in other words may help, and a row "
            f"of your own in {options.output} is kept\n"
        )
        return
    sys.stdout.write(
        f"second answers: {options.output}; read by --data.alternatives {options.output}\n"
    )


def parser() -> Options:
    """Return the command's options."""
    parser = Options("alternatives", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        help="a model that follows instructions: hub name, folder, GGUF file, checkpoint",
    )
    parser.add_argument("--rows", required=True, help="file of the forget rows")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="file to write, FILE.jsonl; goes on there"
    )
    parser.add_argument(
        "--prompt",
        default="{question}",
        help="what the model is asked, {question} and {answer} filled in (default: %(default)s)",
    )
    parser.add_argument("--question", default="question", help="column of questions")
    parser.add_argument("--answer", default="answer", help="column of answers")
    parser.add_argument("--tries", type=_count, default=8, help="texts a row at most (default: 8)")
    parser.add_argument("--temperature", type=float, default=0.7, help="default: 0.7")
    parser.add_argument("--top_p", type=float, default=0.9, help="default: 0.9")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--max_new_tokens",
        type=_count,
        help="tokens of a text; by default half as many again as the longest answer has, and 16",
    )
    parser.add_argument(
        "--batch_size", type=_count, default=16, help="texts at a time (default: 16)"
    )
    parser.add_argument(
        "--template", choices=("chat", "plain"), help="by default chat if the tokenizer has one"
    )
    parser.add_argument("--system_prompt", help="system turn of the chat template")
    parser.add_argument("--tokenizer", help="where it comes from, if not the model")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="precision of the weights (default: float32)",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1; got {text!r}")
    return int(text)
