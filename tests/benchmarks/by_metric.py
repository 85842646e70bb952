"""Every metric of TOFU's suite scored on its own, as locuslab/open-unlearning does.

Written anew from that code's behaviour at commit d3d7cf9; nothing of this package computes here.
A metric has a pass of its own over its set: rows tokenised again, in file order, padded on the
right to the longest of the batch, logits and log-softmax of all positions. What that code keeps
from one metric for another within one evaluation is kept here too: truth ratio, normalised
probability, model utility and forget quality are made of stored values.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, log_softmax

from etw_lightning.metrics.attacks import Attack
from etw_lightning.models.loading import LabelScorer
from etw_lightning.schema import IGNORE_INDEX, EvalSet, Example

ATTACKS: tuple[Attack, ...] = ("loss", "zlib", "min_k", "min_k_plus_plus")

#: Numbers or texts of all rows, by set and name.
Values = dict[tuple[str, str], list[Any]]


@dataclass
class Suite:
    """What is evaluated.

    Args:
        scorer: The model.
        tokenizer: Its tokenizer.
        sets: Rows by role.
        batch_size: Rows at a time.
        system_prompt: System turn of the chat template.
        reference: Another model, for the attack that compares with one.
    """

    scorer: LabelScorer
    tokenizer: Any
    sets: dict[str, EvalSet]
    batch_size: int = 32
    system_prompt: str | None = None
    reference: LabelScorer | None = None

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """Membership attacks that can be made."""
        return (*ATTACKS, *(() if self.reference is None else ("reference",)))


@dataclass
class Fed:
    """Positions that went through the model, by what they were for, and the tokens among them."""

    answers: int = 0
    generation: int = 0
    tokens: int = 0
    kind: str = "answers"

    @contextmanager
    def counting(self, lm: Any) -> Iterator[None]:
        """Count what the model is given meanwhile."""

        def count(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            setattr(self, self.kind, getattr(self, self.kind) + kwargs["input_ids"].numel())

        handle = lm.base_model.register_forward_pre_hook(count, with_kwargs=True)
        yield
        handle.remove()


def by_metric(suite: Suite, fed: Fed) -> Values:
    """Run every metric on its own, in file order."""
    found: Values = {}
    peer = Passes(suite, fed)
    for name, eval_set in suite.sets.items():
        if name == "holdout":
            continue
        examples = eval_set.examples
        found[name, "answer"] = peer.losses(examples, lambda one: one.answer)
        if name in ("forget", "retain"):
            found[name, "paraphrase"] = peer.losses(
                examples, lambda one: one.paraphrased_answer or ""
            )
        places = range(len(examples[0].perturbed_answers))
        wrong = [
            peer.losses(examples, lambda one, place=place: one.perturbed_answers[place])
            for place in places
        ]
        found[name, "perturbed"] = [list(row) for row in zip(*wrong, strict=True)]
        found[name, "text"] = peer.texts(examples, eval_set.max_new_tokens)
        found[name, "rouge"] = _rouge(found[name, "text"], examples)
    forget = suite.sets["forget"].examples
    found["forget", "memorisation"] = [
        float((logps.argmax(-1) == labels).float().mean())
        for logps, labels in peer.distributions(forget)
    ]
    found["forget", "extraction"] = [
        _extraction(logps.argmax(-1), labels) for logps, labels in peer.distributions(forget)
    ]
    for attack in suite.attacks:
        for name in ("forget", "holdout"):
            found[name, attack] = peer.attack(attack, suite.sets[name].examples)
        _auc(found["forget", attack], found["holdout", attack])
    return found


def _rouge(texts: list[str], examples: tuple[Example, ...]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    pairs = zip(texts, examples, strict=True)
    return [scorer.score(one.answer, text)["rougeL"].recall for text, one in pairs]


def _auc(members: list[float], others: list[float]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([0] * len(members) + [1] * len(others), members + others))


def _extraction(likeliest: torch.Tensor, labels: torch.Tensor) -> float:
    count = len(labels)
    for start in range(count - 1):
        if torch.equal(likeliest[start:], labels[start:]):
            return 1 - start / count
    return 1 - (count - 1) / count


class Passes:
    """The kinds of passes that metrics make over some rows.

    Args:
        suite: What to run.
        fed: Counts real tokens of the rows; the model's hook counts positions.
    """

    def __init__(self, suite: Suite, fed: Fed) -> None:
        self.suite, self.fed = suite, fed
        pad = suite.tokenizer.pad_token_id
        self.pad = suite.tokenizer.eos_token_id if pad is None else pad

    def losses(
        self, examples: tuple[Example, ...], answer: Callable[[Example], str]
    ) -> list[float]:
        """Return the mean loss of an answer to each question."""
        found: list[float] = []
        for batch in self._batches(examples, answer):
            found += self._batch_losses(batch)
        return found

    def distributions(
        self, examples: tuple[Example, ...]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield log-probabilities of the vocabulary and labels of each gold answer's tokens."""
        for batch in self._batches(examples, lambda one: one.answer):
            yield from self._batch_distributions(batch)

    def attack(self, name: str, examples: tuple[Example, ...]) -> list[float]:
        """Return the scores of a membership attack."""
        found: list[float] = []
        for batch in self._batches(examples, lambda one: one.answer):
            if name in ("loss", "zlib"):
                scores = self._batch_losses(batch)
                if name == "zlib":
                    scores = [
                        score / len(zlib.compress(text.encode()))
                        for score, text in zip(scores, self._labelled_texts(batch), strict=True)
                    ]
            elif name == "reference":
                other = self._batch_losses(batch, self.suite.reference)
                pairs = zip(self._batch_losses(batch), other, strict=True)
                scores = [loss - known for loss, known in pairs]
            elif name == "min_k":
                scores = [_min_k(logps) for logps in self._batch_logps(batch)]
            else:
                # Two forward passes, one for the distributions and one for the labels' share.
                rows = self._batch_distributions(batch)
                pairs = zip(rows, self._batch_logps(batch), strict=True)
                scores = [_min_k_plus_plus(every, logps) for (every, _), logps in pairs]
            found += scores
        return found

    def texts(self, examples: tuple[Example, ...], max_new_tokens: int) -> list[str]:
        """Return the greedy answer to each question."""
        tokenizer, found = self.suite.tokenizer, []
        self.fed.kind = "generation"
        for start in range(0, len(examples), self.suite.batch_size):
            prompts = [self._prompt(one) for one in examples[start : start + self.suite.batch_size]]
            width = max(map(len, prompts))
            ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in prompts])
            with torch.no_grad():
                out = self.suite.scorer.lm.generate(
                    input_ids=ids,
                    attention_mask=(ids != self.pad).long(),
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.eos_token_id,
                )
            texts = tokenizer.batch_decode(
                out[:, width:], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            found += [text.strip() for text in texts]
        self.fed.kind = "answers"
        return found

    def _batches(
        self, examples: tuple[Example, ...], answer: Callable[[Example], str]
    ) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(examples), self.suite.batch_size):
            rows = [
                self._row(one, answer(one))
                for one in examples[start : start + self.suite.batch_size]
            ]
            width = max(len(ids) for ids, _ in rows)
            lengths = torch.tensor([len(ids) for ids, _ in rows])
            ids = torch.tensor([ids + [self.pad] * (width - len(ids)) for ids, _ in rows])
            labels = [labels + [IGNORE_INDEX] * (width - len(labels)) for _, labels in rows]
            mask = (ids != self.pad).long()
            yield {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": torch.tensor(labels),
                "lengths": lengths,
            }

    def _row(self, example: Example, answer: str) -> tuple[list[int], list[int]]:
        prompt = self._prompt(example)
        ids = self._ids(self._turns(example, answer), add_generation_prompt=False)
        return ids, [IGNORE_INDEX] * len(prompt) + ids[len(prompt) :]

    def _prompt(self, example: Example) -> list[int]:
        return self._ids(self._turns(example, None), add_generation_prompt=True)

    def _turns(self, example: Example, answer: str | None) -> list[dict[str, str]]:
        said = (
            ("system", self.suite.system_prompt),
            ("user", example.question),
            ("assistant", answer),
        )
        return [{"role": role, "content": text} for role, text in said if text is not None]

    def _ids(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
        encoded = self.suite.tokenizer.apply_chat_template(
            turns, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def _logits(
        self, batch: dict[str, torch.Tensor], other: LabelScorer | None = None
    ) -> torch.Tensor:
        if other is None:
            self.fed.tokens += int(batch["lengths"].sum())
        with torch.no_grad():
            out = (other or self.suite.scorer).lm(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
        logits: torch.Tensor = out.logits
        return logits

    def _batch_losses(
        self, batch: dict[str, torch.Tensor], other: LabelScorer | None = None
    ) -> list[float]:
        logits, labels = self._logits(batch, other)[:, :-1], batch["labels"][:, 1:]
        losses = cross_entropy(
            logits.transpose(-1, -2), labels, ignore_index=IGNORE_INDEX, reduction="none"
        )
        means: list[float] = (losses.sum(-1) / (labels != IGNORE_INDEX).sum(-1)).tolist()
        return means

    def _batch_distributions(
        self, batch: dict[str, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        logps = log_softmax(self._logits(batch), dim=-1)[:, :-1]
        places = [row.nonzero()[:-1, 0] for row in batch["labels"][:, 1:] != IGNORE_INDEX]
        return [
            (every[place], ids[place])
            for every, ids, place in zip(logps, batch["labels"][:, 1:], places, strict=True)
        ]

    def _batch_logps(self, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        logps = log_softmax(self._logits(batch), dim=-1)[:, :-1]
        chosen = logps.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        places = [row.nonzero()[:-1, 0] for row in batch["labels"][:, 1:] != IGNORE_INDEX]
        return [row[place] for row, place in zip(chosen, places, strict=True)]

    def _labelled_texts(self, batch: dict[str, torch.Tensor]) -> list[str]:
        rows = [row[row != IGNORE_INDEX].tolist() for row in batch["labels"]]
        return self.suite.tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def _min_k(logps: torch.Tensor, share: float = 0.4) -> float:
    values = np.sort(logps.numpy())
    return -float(values[: max(1, int(len(values) * share))].mean())


def _min_k_plus_plus(every: torch.Tensor, logps: torch.Tensor) -> float:
    probabilities = every.exp()
    means = (probabilities * every).sum(-1)
    variances = (probabilities * every.square()).sum(-1) - means.square()
    return _min_k((logps - means) / variances.clamp(min=1e-6).sqrt())
