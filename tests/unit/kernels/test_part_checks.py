"""What a user's own weighting or objective may return."""

import pytest
import torch

from etw_lightning.kernels.part_checks import check_terms, check_weights
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.schema import InputError


@pytest.fixture
def signals():
    return TokenSignals(
        labels=torch.tensor([1, 2, 3]),
        rows=torch.tensor([0, 0, 1]),
        num_rows=2,
        logps=torch.tensor([-1.0, -2.0, -3.0], requires_grad=True),
        entropies=torch.tensor([0.5, 1.0, 1.5]),
    )


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda s: None, "a tensor of numbers; got NoneType"),
        (lambda s: s.labels, "a tensor of numbers; got torch.int64"),
        (lambda s: s.entropies[:2], r"one weight a token, \(3,\); got \(2,\)"),
        (lambda s: s.entropies[:, None], r"one weight a token, \(3,\); got \(3, 1\)"),
        (lambda s: s.logps.exp(), "detached weights.*end with .detach"),
        (
            lambda s: s.entropies / torch.tensor([1.0, 0.0, 1.0]),
            "finite weights; got inf for tok.*1",
        ),
        (lambda s: s.entropies * torch.nan, "finite weights; got nan for token 0 of 3"),
        (lambda s: s.entropies - 0.75, "weights >= 0; got -0.25 for token 0 of 3"),
    ],
)
def test_what_are_no_weights(made, message, signals):
    with pytest.raises(InputError, match=f"^model.weighting Mine must return {message}"):
        check_weights(made(signals), signals, "Mine")


def test_weights_may_be_nought_and_there_may_be_none(signals):
    check_weights(torch.zeros(3), signals, "Mine")
    nothing = signals.slice_rows(2, 2)
    check_weights(nothing.entropies, nothing, "Mine")
    check_terms(nothing.logps.detach(), nothing, "token", "model.forget", "Mine")


def test_a_broken_model_is_not_laid_at_the_weightings_door(signals):
    with torch.no_grad():
        signals.logps[1] = torch.nan
    check_weights(torch.full((3,), torch.nan), signals, "Mine")
    check_terms(signals.logps * torch.nan, signals, "token", "model.retain", "Mine")


@pytest.mark.parametrize(
    ("made", "level", "message"),
    [
        (lambda s: 1.0, "token", "a tensor of numbers; got float"),
        (lambda s: s.logps.mean(), "token", r"one term a token, \(3,\); got \(\)"),
        (lambda s: s.logps, "sequence", r"one term a row, \(2,\); got \(3,\): set level to token"),
        (
            lambda s: s.row_sums(s.logps),
            "token",
            r"one term a token, \(3,\); got \(2,\): set level to sequence",
        ),
        (lambda s: s.logps.detach(), "token", "terms that the model can be trained by"),
        (lambda s: (s.logps + 2).log(), "token", "finite terms; got -inf for token 1 of 3"),
        (
            lambda s: s.row_sums(s.logps) * torch.tensor([1.0, torch.nan]),
            "sequence",
            "finite terms; got nan for row 1 of 2",
        ),
    ],
)
def test_what_are_no_terms(made, level, message, signals):
    with pytest.raises(InputError, match=f"^model.retain Mine must return {message}"):
        check_terms(made(signals), signals, level, "model.retain", "Mine")


def test_terms_are_as_their_level_says(signals):
    check_terms(signals.logps, signals, "token", "model.forget", "Mine")
    check_terms(signals.row_sums(signals.logps), signals, "sequence", "model.forget", "Mine")
    with torch.no_grad():
        check_terms(signals.logps.detach(), signals, "token", "model.forget", "Mine")


def test_weights_above_nought_pass_and_one_below_is_named(signals):
    check_weights(signals.entropies, signals, "Mine")
    with pytest.raises(InputError, match=r"got -0\.5 for token 1 of 3"):
        check_weights(torch.tensor([1.0, -0.5, 0.0]), signals, "Mine")
