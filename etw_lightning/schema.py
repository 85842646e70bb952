"""The nouns every module shares. Imports nothing of the package.

Shape letters used in all docstrings:

* ``B``: sequences (rows) of a batch
* ``T``: tokens of the padded rows
* ``N``: labelled tokens of a batch, all rows one after the other
* ``V``: vocabulary
* ``D``: hidden width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "IGNORE_INDEX",
    "EncodedRow",
    "EvalSet",
    "Example",
    "InputError",
    "Record",
]

#: Label of a position that is not trained on and not scored.
IGNORE_INDEX = -100


class InputError(ValueError):
    """What the user gave can't be used.

    The message is one line: the key as the user types it, what it was, what is allowed, and the
    way out. The command line prints it and exits with status 2.
    """


@dataclass(frozen=True)
class Example:
    """One text to train on or to score.

    Args:
        id: Split and row number, ``forget10/17``: unique in a run, stable over runs. Never the
            question: TOFU's ``full`` asks one question twice.
        answer: The labelled text. For raw text (``question`` is None) the whole text.
        question: What the answer is conditioned on, or None for raw text.
        verbatim: The question is the finished prompt; no template is put around it.
        paraphrased_question: The same question in other words.
        paraphrased_answer: The same answer in other words.
        perturbed_answers: Wrong answers in the form of the paraphrased one.
        alternative_answer: A second, wanted answer, for objectives that prefer one to the other.
    """

    id: str
    answer: str
    question: str | None = None
    verbatim: bool = False
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    alternative_answer: str | None = None


@dataclass(frozen=True)
class EncodedRow:
    """An example as token ids.

    Args:
        id: The example's id (chunks of raw text: ``raw/forget/chunk12``).
        input_ids: Token ids, without padding.
        labels: As long as ``input_ids``; the id where the token is to be predicted,
            ``IGNORE_INDEX`` elsewhere. Not shifted: ``labels[t]`` is predicted from position
            ``t - 1``, so ``labels[0]`` is always ``IGNORE_INDEX``.
    """

    id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def num_labels(self) -> int:
        """Number of labelled tokens."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass(frozen=True)
class EvalSet:
    """Rows that are scored together, and what is wanted of them.

    Args:
        name: Role in the evaluation: ``forget``, ``retain``, ``real_authors``, ``world_facts``
            for TOFU's shape; ``verbmem``, ``knowmem_forget``, ``knowmem_retain``,
            ``privleak_forget``, ``privleak_holdout`` for MUSE.
        examples: The rows, in file order.
        losses: Score the answers (gold, paraphrased, perturbed: whichever a row has).
        token_logps: Keep the log-probability of every labelled token of the gold answer.
        max_new_tokens: Greedy tokens to generate after the question; 0 for none.
        stop_strings: The generation is cut before the first of these.
    """

    name: str
    examples: tuple[Example, ...]
    losses: bool = True
    token_logps: bool = False
    max_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """What one model said of one example; every metric is computed from these.

    Args:
        dataset: Name of the ``EvalSet``.
        id: Id of the example.
        question: Its question; None for raw text.
        answer: Its gold answer.
        answer_loss: Mean negative log-likelihood of the gold answer, nats per token.
        paraphrase_loss: The same of the paraphrased answer.
        perturbed_losses: The same of each perturbed answer.
        token_logps: Log-probability of each labelled token of the gold answer, nats.
        generation: Greedy continuation of the question.
        min_k: Min-K score (k = .4) that a published log holds in place of ``token_logps``: mean
            negative log-probability of the 40 % least likely tokens, nats.
    """

    dataset: str
    id: str
    answer: str
    question: str | None = None
    answer_loss: float | None = None
    paraphrase_loss: float | None = None
    perturbed_losses: tuple[float, ...] = ()
    token_logps: tuple[float, ...] = field(default=(), repr=False)
    generation: str | None = None
    min_k: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that hold something, ready for ``json.dumps``."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Record:
        """Rebuild a record from ``to_json``'s form.

        Example:
            >>> record = Record("forget", "forget10/0", "Paris.", perturbed_losses=(1.0, 2.0))
            >>> Record.from_json(record.to_json()) == record
            True
        """
        tuples: dict[str, Sequence[float]] = {
            key: tuple(row[key]) for key in ("perturbed_losses", "token_logps") if key in row
        }
        return cls(**{**row, **tuples})
