"""What a method needs, which parts go together, and what it makes of a batch."""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from etw_lightning.forget import GA, PALU, ForgetObjective
from etw_lightning.kernels.signals import Counts, TokenSignals
from etw_lightning.method import Method
from etw_lightning.retain import NLL, RetainObjective
from etw_lightning.schema import InputError
from etw_lightning.weighting import ATWU, ETW, Annotated, Product, Spacy, TokenWeighting, Uniform


class FromReference(TokenWeighting):
    needs: ClassVar = frozenset({"reference_logps"})

    def __call__(self, signals):
        return torch.ones_like(signals.logps)


class SecondAnswer(ForgetObjective):
    """The second answers' log-probabilities, whatever the weights."""

    needs: ClassVar = frozenset({"alternative"})
    group: ClassVar = "alternative"
    takes_weights: ClassVar = False

    def __call__(self, signals, weights):
        return -signals.alternative.logps


class Pair(ForgetObjective):
    needs: ClassVar = frozenset({"alternative", "reference_logps"})
    level: ClassVar = "sequence"

    def __call__(self, signals, weights):
        return signals.row_sums(signals.logps)


@dataclass(frozen=True)
class Steer(ForgetObjective):
    layer: int = 7
    needs: ClassVar = frozenset({"states"})

    @property
    def layers(self):
        return (self.layer,)

    def __call__(self, signals, weights):
        return weights


class Marked(ForgetObjective):
    """Reads the words that the annotations mark."""

    needs: ClassVar = frozenset({"marked"})

    def __call__(self, signals, weights):
        return weights * signals.marked


class HoldsTheRest(ForgetObjective):
    """Holds the tokens that have no weight."""

    holds_weightless: ClassVar = True

    def __call__(self, signals, weights):
        return (weights - (weights == 0).to(weights)) * signals.logps


class StayPut(RetainObjective):
    needs: ClassVar = frozenset({"states", "reference_states"})
    layers: ClassVar = (2,)

    def __call__(self, signals):
        return -signals.logps


def test_reference_values_are_asked_for_where_they_are_read():
    assert Method(ETW(), GA(), NLL()).reference_needs == {}
    assert Method(FromReference(), GA(), NLL()).reference_needs == {"forget": {"reference_logps"}}
    assert Method(Uniform(), Pair(), StayPut()).reference_needs == {
        "forget": {"reference_logps"},
        "alternative": {"reference_logps"},
        "retain": {"reference_states"},
    }
    # Weights that are not used need nothing, nor does what pushes nothing down.
    assert Method(FromReference(), None, NLL()).needs == frozenset()
    assert "reference_logps" not in Method(FromReference(), SecondAnswer(), NLL()).needs


def test_layers_and_temperature_are_those_of_the_parts():
    assert Method(ETW(temperature=2.0), Steer(layer=1), StayPut()).layers == (1, 2)
    assert Method(ETW(temperature=2.0), GA(), None).temperature == 2.0
    assert Method(Uniform(), GA(), None).temperature == 1.0


@pytest.mark.parametrize(
    ("parts", "reference", "has_adapter", "said"),
    [
        ((Uniform(), None, None), "cache", False, "model.forget and model.retain are both null"),
        (
            (ETW(), SecondAnswer(), NLL()),
            "cache",
            False,
            "model.weighting must be Uniform with model.forget SecondAnswer, .*; got ETW.",
        ),
        (
            (FromReference(), GA(), NLL()),
            None,
            False,
            "model.weighting FromReference compares .* model.reference is null; give cache, live",
        ),
        ((ETW(), Pair(), NLL()), None, True, "model.forget Pair compares with the target model"),
        (
            (ETW(), Steer(), StayPut()),
            "cache",
            False,
            "model.retain StayPut reads what no cache holds .* must be live, or adapter",
        ),
        ((ETW(), GA(), NLL()), "adapter", False, "model.reference adapter needs an adapter"),
        (
            (Product(ETW(), Spacy()), Marked(), NLL()),
            "cache",
            False,
            "model.weighting Product marks words by spaCy, but model.forget Marked reads those of "
            "data.annotations; one run has one marking. Give",
        ),
        (
            (Uniform(), PALU(chosen="weighted"), NLL()),
            "cache",
            False,
            "model.weighting Uniform leaves no token without weight, but model.forget PALU holds "
            "those that have none. Give a weighting",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(parts, reference, has_adapter, said):
    with pytest.raises(InputError, match=said):
        Method(*parts).check(reference, has_adapter=has_adapter)


@pytest.mark.parametrize(
    ("parts", "reference", "has_adapter"),
    [
        ((FromReference(), None, NLL()), None, False),
        ((Uniform(), SecondAnswer(), NLL()), None, False),
        ((ETW(), Steer(), StayPut()), "live", False),
        ((ETW(), Steer(), StayPut()), "adapter", True),
        ((Product(ETW(), Annotated()), Marked(), NLL()), None, False),
        ((Spacy(), GA(), NLL()), None, False),
        ((Uniform(), PALU(chosen="weighted", preservation=0.0), NLL()), "cache", False),
        ((Annotated(), PALU(chosen="weighted"), NLL()), "cache", False),
    ],
)
def test_parts_that_go_together(parts, reference, has_adapter):
    Method(*parts).check(reference, has_adapter=has_adapter)


def test_a_layer_that_the_model_lacks_is_refused():
    Method(ETW(), Steer(layer=3), StayPut()).check_layers(4)
    with pytest.raises(InputError, match=r"model.forget.layer must be 0 to 3, .* got 4."):
        Method(ETW(), Steer(layer=4), None).check_layers(4)
    with pytest.raises(InputError, match=r"model.forget.layer must be 0 to 3, .* got -1."):
        Method(ETW(), Steer(layer=-1), None).check_layers(4)
    with pytest.raises(InputError, match=r"model.retain.layer must be 0 to 1, .* got 2."):
        Method(ETW(), GA(), StayPut()).check_layers(2)
    Method(ATWU(), GA(), None).check_layers(2)
    with pytest.raises(InputError, match=r"model\.weighting\.layer must be -1 to 1.*got 2"):
        Method(Far(), GA(), None).check_layers(2)


class Far(ATWU):
    """Reads a layer that small models do not have."""

    @property
    def layers(self):
        return (2,)


class Forgetful(ATWU):
    """Says that it reads importances, and not what learns them."""

    @property
    def learned(self):
        return None


def test_importances_that_nothing_learns_are_refused():
    with pytest.raises(InputError, match=r"model\.weighting Forgetful reads importances, but"):
        Method(Forgetful(), GA(), None).check(None, has_adapter=False)


def signals(*logps, rows=None, **others):
    """Return signals of one row a token, or of the rows given."""
    rows = list(range(len(logps))) if rows is None else rows
    return TokenSignals(
        labels=torch.zeros(len(logps), dtype=torch.long),
        rows=torch.tensor(rows),
        num_rows=max(rows) + 1,
        logps=torch.tensor(logps),
        **others,
    )


def test_terms_of_second_answers_are_averaged_over_their_tokens():
    forget = signals(-5.0, alternative=signals(-1.0, -2.0, rows=[0, 0]))
    counts = {"forget": Counts(1, 1), "alternative": Counts(4, 2)}
    method = Method(Uniform(), SecondAnswer(), None)
    share = method.forget_share(forget, counts, "token")
    assert share.value.item() == (1.0 + 2.0) / 4
    assert share.weights is None, "weights that are not used are not logged"
    assert method.forget_share(forget, counts, "sequence").value.item() == 1.5 / 2


def test_a_set_of_retain_rows_weighs_what_it_is_given():
    method = Method(Uniform(), GA(), NLL())
    retain = signals(-1.0, -2.0, -4.0, rows=[0, 0, 1])
    counts = Counts(tokens=3, rows=2)
    assert method.retain_share(retain, counts, None).value.item() == pytest.approx(7 / 3)
    weighed = method.retain_share(retain, counts, torch.tensor([1.0, 0.5]))
    assert weighed.value.item() == pytest.approx((1 + 2 + 0.5 * 4) / 3)


@pytest.mark.parametrize(("share", "is_told"), [(1.0, True), (0.5, False)])
def test_weights_that_leave_nothing_to_be_held_are_told_of_in_the_first_step(share, is_told):
    forget, counts = signals(-0.5, -2.0, rows=[0, 0]), {"forget": Counts(2, 1)}
    forget = replace(forget, entropies=torch.tensor([0.5, 1.5]))
    method = Method(ETW(top_share=share), HoldsTheRest(), None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        method.forget_share(forget, counts, "token", is_checked=True)
        method.forget_share(forget, counts, "token")
    told = [str(one.message) for one in said]
    assert len(told) == is_told
    assert all("ETW gives every token" in one and "HoldsTheRest holds none" in one for one in told)
