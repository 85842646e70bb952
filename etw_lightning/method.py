"""A method as data: token weighting, forget objective and retain objective, and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from etw_lightning.forget import ForgetObjective
from etw_lightning.kernels.part_checks import check_terms, check_weights
from etw_lightning.kernels.signals import Counts, Reduction, Signal, TokenSignals, reduce_terms
from etw_lightning.notices import warn_first
from etw_lightning.retain import RetainObjective
from etw_lightning.schema import InputError
from etw_lightning.weighting import TokenWeighting, Uniform

__all__ = ["Method", "Reference", "Share"]

#: Where the target model's values come from: computed once before training and read from a file,
#: a frozen copy beside the trained model, or the trained model with its adapter switched off.
Reference = Literal["cache", "live", "adapter"]

#: What no cache holds: a whole vector a token, or values that depend on the padding.
_NEVER_CACHED: frozenset[Signal] = frozenset({"reference_states", "reference_padded"})


class Share(NamedTuple):
    """A micro-batch's share of a term's mean, and the token weights it was made with."""

    value: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """What is minimised: ``retain_weight * retain + forget_weight * forget``.

    Args:
        weighting: Weight of each forget token.
        forget: Forget objective; None trains on the retain stream alone.
        retain: Retain objective; None for none.
    """

    weighting: TokenWeighting
    forget: ForgetObjective | None
    retain: RetainObjective | None

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that any part reads, besides label log-probabilities."""
        return frozenset().union(*self._needs_of_groups().values())

    def _needs_of_groups(self) -> dict[str, frozenset[Signal]]:
        needs: dict[str, frozenset[Signal]] = {}
        if self.forget is not None:
            needs["forget"] = self.forget.needs
            if self.forget.takes_weights:
                needs["forget"] |= self.weighting.needs
            if "alternative" in self.forget.needs:
                needs["alternative"] = self.forget.needs & {"reference_logps"}
        if self.retain is not None:
            needs["retain"] = self.retain.needs
        return needs

    @property
    def reference_needs(self) -> dict[str, frozenset[Signal]]:
        """Values of the target model that each group of rows needs; groups that need none left out.

        Groups are ``forget``, ``retain`` and ``alternative``.
        """
        found = {}
        for group, needs in self._needs_of_groups().items():
            wanted = frozenset(need for need in needs if need.startswith("reference_"))
            if wanted:
                found[group] = wanted
        return found

    @property
    def temperature(self) -> float:
        """Temperature of the entropies."""
        asked = self.weighting.entropy_temperature
        return 1.0 if asked is None else asked

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose states any part reads, ascending."""
        parts = [part for part in (self.forget, self.retain) if part is not None]
        layers = {layer for part in parts for layer in part.layers}
        if self.forget is not None and self.forget.takes_weights:
            layers |= set(self.weighting.layers)
        return tuple(sorted(layers))

    def check(self, reference: Reference | None, *, has_adapter: bool) -> None:
        """Refuse parts that do not go together.

        Args:
            reference: Where the target model's values come from.
            has_adapter: Whether the model is trained through an adapter.

        Raises:
            InputError: Names the key.
        """
        if self.forget is None and self.retain is None:
            raise InputError("model.forget and model.retain are both null; nothing would train.")
        is_even = isinstance(self.weighting, Uniform)
        if self.forget is not None and not self.forget.takes_weights and not is_even:
            raise InputError(
                f"model.weighting must be Uniform with model.forget {_name(self.forget)}, "
                f"which has no forget tokens to weigh; got {_name(self.weighting)}."
            )
        if self.forget is not None and self.forget.holds_weightless and is_even:
            raise InputError(
                f"model.weighting Uniform leaves no token without weight, but model.forget "
                f"{_name(self.forget)} holds those that have none. Give a weighting that leaves "
                "some out, such as ETW with top_share or Annotated, or model.forget.preservation 0."
            )
        if self.forget is not None and "marked" in self.forget.needs and self.weighting.marker:
            raise InputError(
                f"model.weighting {_name(self.weighting)} marks words by spaCy, but model.forget "
                f"{_name(self.forget)} reads those of data.annotations; one run has one marking. "
                "Give model.weighting Annotated, or another model.forget."
            )
        if "importances" in self.weighting.needs and self.weighting.learned is None:
            raise InputError(
                f"model.weighting {_name(self.weighting)} reads importances, but does not say what "
                "learns them; give it the property learned of the weighting that it is made of."
            )
        if reference == "adapter" and not has_adapter:
            raise InputError(
                "model.reference adapter needs an adapter to switch off; give model.peft, or "
                "model.reference cache or live."
            )
        for key, part in (
            ("model.weighting", self.weighting if self.forget is not None else None),
            ("model.forget", self.forget),
            ("model.retain", self.retain),
        ):
            needs = frozenset() if part is None else part.needs
            wanted = {need for need in needs if need.startswith("reference_")}
            if wanted and reference is None:
                raise InputError(
                    f"{key} {_name(part)} compares with the target model, but model.reference is "
                    "null; give cache, live or adapter."
                )
            if wanted & _NEVER_CACHED and reference == "cache":
                raise InputError(
                    f"{key} {_name(part)} reads what no cache holds of the target model (hidden "
                    "states, or values at padded positions); model.reference must be live, or "
                    "adapter with model.peft; got cache."
                )

    def check_layers(self, num_layers: int) -> None:
        """Refuse a layer that the model does not have.

        Args:
            num_layers: The model's.

        Raises:
            InputError: Names the key.
        """
        weighting = self.weighting if self.forget and self.forget.takes_weights else None
        for key, part, least in (
            ("model.weighting", weighting, -1),
            ("model.forget", self.forget, 0),
            ("model.retain", self.retain, 0),
        ):
            for layer in () if part is None else part.layers:
                if not least <= layer < num_layers:
                    raise InputError(
                        f"{key}.layer must be {least} to {num_layers - 1}, for the model has "
                        f"{num_layers} layers; got {layer}."
                    )

    def forget_share(
        self,
        signals: TokenSignals,
        counts: Mapping[str, Counts],
        reduction: Reduction,
        *,
        is_checked: bool = False,
    ) -> Share:
        """Return the forget term of a micro-batch.

        Args:
            signals: Of the forget rows.
            counts: What the effective batch holds of each group.
            reduction: How token terms are averaged.
            is_checked: Look at what the parts return, as in a run's first step.

        Raises:
            InputError: If it is checked and not what weightings and objectives return.
        """
        assert self.forget is not None
        weights = self.weighting(signals)
        if is_checked:
            check_weights(weights, signals, _name(self.weighting))
            self._tell_nothing_held(weights)
        terms = self.forget(signals, weights)
        group = self.forget.group
        whole = signals if group == "forget" else signals.alternative
        assert whole is not None
        if is_checked:
            check_terms(terms, whole, self.forget.level, "model.forget", _name(self.forget))
        value = reduce_terms(
            terms, whole, counts[group], reduction, self.forget.level, self.forget.skipped_tokens
        )
        return Share(value, weights if self.forget.takes_weights else None)

    def _tell_nothing_held(self, weights: Tensor) -> None:
        """Warn if what holds tokens without weight is given none."""
        assert self.forget is not None
        if self.forget.holds_weightless and len(weights) and bool((weights > 0).all()):
            warn_first(
                f"model.weighting {_name(self.weighting)} gives every token of the first rows "
                f"weight, so that model.forget {_name(self.forget)} holds none of them; ETW leaves "
                "tokens out with top_share or threshold."
            )

    def retain_share(
        self,
        signals: TokenSignals,
        counts: Counts,
        row_weights: Tensor | None,
        *,
        is_checked: bool = False,
    ) -> Share:
        """Return the retain term of a micro-batch.

        Args:
            signals: Of the retain rows.
            counts: What the effective batch holds of them.
            row_weights: Weight of each row's set, ``(num_rows,)``; None for 1.
            is_checked: As of ``forget_share``.

        Raises:
            InputError: As ``forget_share``.
        """
        assert self.retain is not None
        terms = self.retain(signals)
        if is_checked:
            check_terms(terms, signals, self.retain.level, "model.retain", _name(self.retain))
        if row_weights is not None:
            is_token = self.retain.level == "token"
            terms = terms * (row_weights[signals.rows] if is_token else row_weights)
        return Share(reduce_terms(terms, signals, counts, "token", self.retain.level))


def _name(part: object) -> str:
    return type(part).__name__
