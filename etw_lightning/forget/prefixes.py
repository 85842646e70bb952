"""Forget objectives of the beginnings of marked stretches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from torch import Tensor

from etw_lightning.forget.interface import ForgetObjective
from etw_lightning.kernels.distributions import TopLogps
from etw_lightning.kernels.divergences import reverse_kl_divergence
from etw_lightning.kernels.signals import Level, Signal, TokenSignals
from etw_lightning.schema import InputError
from etw_lightning.value_checks import check_name, check_number, check_whole

__all__ = ["PALU"]

#: What says which tokens are flattened and which are held.
Chosen = Literal["marked", "weighted"]


@dataclass(frozen=True, repr=False)
class PALU(ForgetObjective):
    """Flatten what the target model holds for likeliest where marked stretches begin.

    The term of a sequence with m chosen tokens and o tokens outside of marks is

        1 / m * sum_chosen w_i * mean_k (z_i(v_k) - mean_v z_i(v))^2
        + preservation / o * sum_outside KL(p_i, r_i)

    z the model's logits, v_1 to v_k the ``top_k`` tokens that the target model holds for likeliest
    there, p the model's and r the target model's prediction. Chosen are the first ``first_n``
    tokens of each unbroken run of marked ones (``data.annotations``); marked tokens after them have
    no term at all. With ``chosen: weighted`` no marks are read: a token whose weight is above 0
    counts as marked, and the first sum is divided by the chosen tokens' weights instead of m, so
    that a weighting that leaves tokens out, as ``ETW`` does with ``top_share``, says what must go.
    Where none is left out nothing is held.

    A shift of all logits does not matter, so log-probabilities serve. With ``top_k`` 1 and a model
    that agrees with the target model on the likeliest token the first part is ``PDU``'s term of the
    chosen tokens.

    Source: Zhai et al. 2026, arXiv:2601.03190; the formula from its authors' code, nxZhai/PALU at
    8c3fea6, src/trainer/unlearn/palu.py.
    Differs from it: there each sum is over the whole batch's tokens, over their number; here each
    sequence has means of its own, so that the batch does not matter. The code's second part has the
    retain term's weight; here ``preservation`` times the forget term's. ``chosen: weighted`` is
    ours. A target model known by its K < V largest entries (``model.reference_top_k``) has its
    other tokens as one bucket in the KL.

    Args:
        top_k: Logits flattened at each position, >= 1; the code's default is 1, its script tries 1
            to 10,000. Less than ``model.reference_top_k`` with a cached reference,
            one of whose tokens is the label, unless that holds the whole vocabulary.
        first_n: Tokens of each marked run that are chosen, >= 1; null takes all of them, the code's
            default; its script tries 1 to 10.
        preservation: Weight of the second part, >= 0; 0 leaves it out.
        chosen: What says which tokens are flattened and which are held: the marks (``marked``), or
            the token weights (``weighted``: above 0, and 0).

    Raises:
        InputError: If a number or name is out of its range, or the target model's distributions
            hold fewer tokens than that takes.

    Example:
        >>> from etw_lightning.kernels.distributions import GivenDistributions
        >>> logits = torch.tensor([[4.0, 1.0, 1.0]])
        >>> said = GivenDistributions(logits.log_softmax(-1))
        >>> signals = TokenSignals(
        ...     labels=torch.tensor([0]),
        ...     rows=torch.tensor([0]),
        ...     num_rows=1,
        ...     logps=said.logps[:, 0],
        ...     marked=torch.tensor([True]),
        ...     distributions=said,
        ...     reference_distributions=said,
        ... )
        >>> PALU()(signals, torch.ones(1))
        tensor([4.])
    """

    level: ClassVar[Level] = "sequence"
    came_later: ClassVar[tuple[str, ...]] = ("chosen",)

    top_k: PositiveInt = 1
    first_n: PositiveInt | None = None
    preservation: NonNegativeFloat = 1.0
    chosen: Chosen = "marked"

    def __post_init__(self) -> None:
        for name, value in (("top_k", self.top_k), ("first_n", self.first_n)):
            if value is not None:
                check_whole(f"model.forget.{name}", value)
                if value < 1:
                    raise InputError(f"model.forget.{name} must be >= 1; got {value}.")
        check_number("model.forget.preservation", self.preservation, zero=True)
        check_name("model.forget.chosen", self.chosen, get_args(Chosen))

    @property
    def needs(self) -> frozenset[Signal]:
        """The distributions of both models, and the marks where they choose."""
        both: frozenset[Signal] = frozenset({"distributions", "reference_distributions"})
        return both | {"marked"} if self.chosen == "marked" else both

    @property
    def holds_weightless(self) -> bool:
        """Whether weights choose, and what they leave out has a term."""
        return self.chosen == "weighted" and self.preservation > 0

    def check_held(self, held: int, whole: int) -> None:
        """Refuse fewer tokens than ``top_k`` takes."""
        # Where not all are held, one of them is the label, however unlikely that is.
        least = self.top_k if held >= whole else self.top_k + 1
        if held < least:
            way_out = f"give model.reference_top_k {least}, or less here"
            if held >= whole:
                way_out = "that is the whole vocabulary: give less here"
            raise InputError(
                f"model.forget.top_k is {self.top_k}, for which {least} tokens of the target "
                f"model's distributions must be held; {held} are: {way_out}."
            )

    def __call__(self, signals: TokenSignals, weights: Tensor) -> Tensor:
        """Return the loss of each sequence, >= 0, ``(num_rows,)``."""
        assert signals.distributions is not None
        by_weights = self.chosen == "weighted"
        marked = weights > 0 if by_weights else signals.marked
        assert marked is not None
        reference = signals.reference_distributions
        dtype = signals.logps.dtype
        chosen = self._first_of_runs(marked, signals.rows).to(dtype)
        gaps = signals.distributions.map(self._flatness, reference)
        forgotten = signals.row_sums(chosen * weights * gaps)
        if by_weights:
            total = signals.row_sums(chosen * weights)
            # The inverse of less, which it has in the gradient, is no number.
            forgotten = forgotten / total.clamp(min=torch.finfo(total.dtype).tiny)
        else:
            forgotten = forgotten / signals.row_sums(chosen).clamp(min=1)
        if not self.preservation:
            return forgotten
        outside = (~marked).to(dtype)
        moved = signals.row_sums(
            outside * signals.distributions.map(reverse_kl_divergence, reference)
        )
        return forgotten + self.preservation * moved / signals.row_sums(outside).clamp(min=1)

    def _first_of_runs(self, marked: Tensor, rows: Tensor) -> Tensor:
        """Return which tokens are among the first of a run of marked ones, bool, ``(N,)``."""
        if self.first_n is None:
            return marked
        places = torch.arange(len(rows), device=rows.device)
        goes_on = torch.zeros_like(marked)
        goes_on[1:] = marked[:-1] & (rows[1:] == rows[:-1])
        begins = torch.where(marked & ~goes_on, places, torch.zeros_like(places))
        since = places - begins.cummax(0).values if len(rows) else places
        return marked & (since < self.first_n)

    def _flatness(self, logps: Tensor, reference: TopLogps) -> Tensor:
        self.check_held(reference.logps.shape[-1], logps.shape[-1])
        places = reference.logps.topk(self.top_k, -1).indices
        names = places if reference.ids is None else reference.ids.gather(-1, places)
        gaps = logps.gather(-1, names) - logps.mean(-1, keepdim=True)
        return gaps.square().mean(-1)
