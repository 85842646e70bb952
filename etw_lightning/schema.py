"""The nouns every module shares. Imports nothing of the package.

Shape letters used in all docstrings:

* ``B``: sequences (rows) of a batch
* ``T``: tokens of the padded rows
* ``N``: labelled tokens of a batch, all rows one after the other
* ``V``: vocabulary
* ``D``: hidden width
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, overload

__all__ = [
    "IGNORE_INDEX",
    "Conventions",
    "EncodedRow",
    "EvalSet",
    "Example",
    "InputError",
    "MissingRowsError",
    "Numbers",
    "Record",
    "Turn",
]

#: Fields of a record that hold a number of each token.
_OF_TOKENS = ("token_logps", "token_entropies", "token_variances", "token_matches")

#: Label of a position that is not trained on and not scored.
IGNORE_INDEX = -100


class InputError(ValueError):
    """What the user gave can't be used.

    The message is one line: the key as the user types it, what it was, what is allowed, and the
    way out. The command line prints it and exits with status 2.
    """


class MissingRowsError(InputError):
    """Rows that a part of the evaluation reads are not there, or lack the column it reads."""


class Turn(NamedTuple):
    """What somebody says in a chat.

    Args:
        role: ``system``, ``user`` or ``assistant``.
        text: What is said.
    """

    role: str
    text: str


@dataclass(frozen=True)
class Example:
    """One text to train on or to score.

    Args:
        id: Split and row number, ``forget10/17``: unique in a run, stable over runs. Never the
            question: TOFU's ``full`` asks one question twice.
        answer: The labelled text. For raw text (``question`` is None) the whole text.
        question: What the answer is conditioned on, or None for raw text.
        verbatim: The question is the finished prompt and the answer goes on right behind it; no
            template is put around them, and no token ends the answer.
        paraphrased_question: The same question in other words.
        paraphrased_answer: The same answer in other words.
        perturbed_answers: Wrong answers in the form of the paraphrased one.
        alternative_answer: A second, wanted answer, for objectives that prefer one to the other.
        choices: Options of a choice question, each as it continues the prompt; empty for others.
        right_choice: Place of the right one among them, from 0.
        turns: What was said before the question, in a chat of several turns.
        labels_turns: The assistant's turns among them are labelled too.
        lead: What the answer is given to begin with, such as what is thought before it: shown
            between prompt and answer, as part of both's turn, and not labelled.
    """

    id: str
    answer: str
    question: str | None = None
    verbatim: bool = False
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    alternative_answer: str | None = None
    choices: tuple[str, ...] = ()
    right_choice: int | None = None
    turns: tuple[Turn, ...] = ()
    labels_turns: bool = False
    lead: str = ""


@dataclass(frozen=True)
class Conventions:
    """Choices in which widely used code differs from the definitions; they move published numbers.

    The default of each follows the definition. ``Conventions.peer()`` is open-unlearning's way,
    which published numbers of Llama-3 models need.

    Args:
        attention_mask: What a position may look at: ``length`` hides padding; ``token_id`` hides
            every token that equals the padding token, also the turn ends inside a prompt where
            padding and end token are one.
        second_end_token: Put an end token, labelled too, after a chat template that goes on behind
            its own end of turn (a newline, in ChatML), and label what stands between.
        last_label: ``kept`` or ``left_out`` of extraction strength, exact memorisation, Min-K,
            Min-K++ and the loss whose gradient norm is taken.
        floor: Extraction strength of a row of which nothing is reproduced: 0 by ``definition``,
            1/n for ``peer``.
        gradient_norm: 2-norm of the gradient by ``all_weights`` at once, or the ``tensor_mean`` of
            each weight tensor's own.
        gold_text: What the continuation of a verbatim passage is compared with: the ``whole``
            answer, or the answer ``without_prompt``, each place where the prompt's text stands in
            it taken out.

    Example:
        >>> Conventions() == Conventions(floor="definition"), Conventions.peer().floor
        (True, 'peer')
    """

    attention_mask: Literal["length", "token_id"] = "length"
    second_end_token: bool = False
    last_label: Literal["kept", "left_out"] = "kept"
    floor: Literal["definition", "peer"] = "definition"
    gradient_norm: Literal["all_weights", "tensor_mean"] = "all_weights"
    gold_text: Literal["whole", "without_prompt"] = "whole"

    @classmethod
    def peer(cls) -> Conventions:
        """Return all of open-unlearning's choices."""
        return cls("token_id", True, "left_out", "peer", "tensor_mean", "without_prompt")


@dataclass(frozen=True)
class EncodedRow:
    """An example as token ids.

    Args:
        id: The example's id (chunks of raw text: ``raw/forget/chunk12``).
        input_ids: Token ids, without padding.
        labels: As long as ``input_ids``; the id where the token is to be predicted,
            ``IGNORE_INDEX`` elsewhere. Not shifted: ``labels[t]`` is predicted from position
            ``t - 1``, so ``labels[0]`` is always ``IGNORE_INDEX``.
        num_lost: Further labels that were lost to ``max_length``.
    """

    id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    num_lost: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether labels were lost."""
        return self.num_lost > 0

    @property
    def num_labels(self) -> int:
        """Number of labelled tokens."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


@dataclass(frozen=True)
class EvalSet:
    """Rows that are scored together, and what is wanted of them.

    Args:
        name: Role in the evaluation: ``forget``, ``retain``, ``real_authors``, ``world_facts``
            for TOFU's shape; ``verbmem``, ``knowmem_forget``, ``knowmem_retain``,
            ``privleak_forget``, ``privleak_holdout`` for MUSE.
        examples: The rows, in file order.
        losses: Score the answers (gold, paraphrased, perturbed: whichever a row has, and its
            choices), and the tokens of the gold one.
        gradient_norm: Also measure the gradient of each gold answer's loss; costs a backward pass
            a row.
        max_new_tokens: Greedy tokens to generate after the question; 0 for none.
        stop_strings: The generation is cut before the first of these.
    """

    name: str
    examples: tuple[Example, ...]
    losses: bool = True
    gradient_norm: bool = False
    max_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()


class Numbers(Sequence[float]):
    """A tuple of numbers in a quarter of its memory: eight bytes for a float, one for 0 or 1.

    Args:
        numbers: Floats, or 0 and 1.

    Example:
        >>> some = Numbers([0.5, -2.0])
        >>> some, some[1:], some == (0.5, -2.0), list(Numbers([1, 0]))
        ((0.5, -2.0), (-2.0,), True, [1, 0])
    """

    __slots__ = ("_held",)

    def __init__(self, numbers: Iterable[float]) -> None:
        given = list(numbers)
        is_flags = all(isinstance(one, int) and one in (0, 1) for one in given)
        self._held = array("b" if is_flags else "d", given)

    def __len__(self) -> int:
        return len(self._held)

    @overload
    def __getitem__(self, place: int) -> float: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[float, ...]: ...

    def __getitem__(self, place: int | slice) -> Any:
        return tuple(self._held[place]) if isinstance(place, slice) else self._held[place]

    def __iter__(self) -> Iterator[float]:
        return iter(self._held)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, tuple | Numbers) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        return np.array(self._held, dtype)


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
        token_logps: Log-probability of each labelled token of the gold answer, nats; as all token
            fields of one length, in order, the token that ends the answer last.
        token_entropies: Entropy of the model's prediction of each, nats, >= 0.
        token_variances: Variance of log p(v) with v drawn from that prediction, nats^2, >= 0.
        token_matches: 1 where the label is the likeliest token, else 0.
        token_spans: Start and end of each in ``answer``, in characters; of a token past the end
            both are its length.
        gradient_norm: Norm of the gradient of the gold answer's mean loss by all weights, or as
            the conventions say.
        scored_text: What of ``answer`` was scored, where ``max_length`` cut it.
        choice_logps: Log-probability of each whole option, nats, <= 0.
        choices: The options; ``choice_num_tokens`` how many tokens each has, ``right_choice`` the
            place of the right one.
        generation: Greedy continuation of the question.
        paraphrase: The paraphrased answer.
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
    token_logps: Sequence[float] = field(default=(), repr=False)
    token_entropies: Sequence[float] = field(default=(), repr=False)
    token_variances: Sequence[float] = field(default=(), repr=False)
    token_matches: Sequence[float] = field(default=(), repr=False)
    token_spans: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    gradient_norm: float | None = None
    scored_text: str | None = None
    choices: tuple[str, ...] = ()
    choice_logps: tuple[float, ...] = ()
    choice_num_tokens: tuple[int, ...] = ()
    right_choice: int | None = None
    generation: str | None = None
    paraphrase: str | None = None
    min_k: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that hold something, ready for ``json.dumps``."""
        # Not ``asdict``: it copies every number.
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        held = {key: value for key, value in values.items() if value not in (None, ())}
        return {
            key: value if isinstance(value, str) or not isinstance(value, Sequence) else (*value,)
            for key, value in held.items()
        }

    def packed(self) -> Record:
        """Return the same with its numbers of tokens in little memory."""
        held = {name: getattr(self, name) for name in _OF_TOKENS}
        smaller: dict[str, Any] = {name: Numbers(one) for name, one in held.items() if one}
        return replace(self, **smaller)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Record:
        """Rebuild a record from ``to_json``'s form.

        Example:
            >>> record = Record("forget", "forget10/0", "Paris.", perturbed_losses=(1.0, 2.0))
            >>> Record.from_json(record.to_json()) == record
            True
        """
        tuples = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
        if "token_spans" in tuples:
            tuples["token_spans"] = tuple(map(tuple, tuples["token_spans"]))
        return cls(**{**row, **tuples})
