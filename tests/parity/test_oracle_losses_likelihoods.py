"""Losses and gradients of OpenUnlearning (commit d3d7cf9), stored: objectives of likelihoods."""

import pytest
import torch
from oracle_losses import assert_matches, load_oracle
from torch.nn.functional import logsigmoid

from etw_lightning.forget import DPO, GA, NPO, SimNPO
from etw_lightning.kernels.signals import reduce_terms
from etw_lightning.retain import NLL
from etw_lightning.weighting import WGA, SatImp, Uniform

# Name in the file, and how a method of ours is made of its numbers.
METHODS = {
    "GradAscent": lambda h: (Uniform(), GA()),
    "GradDiff": lambda h: (Uniform(), GA()),
    "NPO": lambda h: (Uniform(), NPO(h["beta"])),
    "NPO_forget_only": lambda h: (Uniform(), NPO(h["beta"])),
    "SimNPO": lambda h: (Uniform(), SimNPO(h["beta"], h["beta"] * h["delta"])),
    "DPO": lambda h: (Uniform(), DPO(h["beta"])),
    "WGA": lambda h: (WGA(h["beta"]), GA()),
    "SatImp": lambda h: (SatImp(h["beta1"], h["beta2"]), GA()),
}


@pytest.fixture
def oracle(data_dir):
    return load_oracle(data_dir)


def total_loss(case, groups):
    """Our loss with the numbers of a stored case."""
    hyper = case["hyper"]
    weighting, forget = METHODS[case["name"]](hyper)
    rows, kept = groups["forget"], groups["retain"]
    terms = forget(rows.signals, weighting(rows.signals))
    loss = reduce_terms(terms, rows.signals, rows.counts, "token", forget.level)
    if case["name"] == "GradAscent":
        return loss
    retained = reduce_terms(NLL()(kept.signals), kept.signals, kept.counts, "token")
    return hyper["gamma"] * loss + hyper["alpha"] * retained


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("GradAscent", 2),
        ("GradDiff", 4),
        ("NPO", 2),
        ("NPO_forget_only", 2),
        ("SimNPO", 4),
        ("DPO", 4),
        ("WGA", 6),
        ("SatImp", 6),
    ],
)
def test_every_stored_case_agrees_in_value_and_gradient(oracle, name, number):
    cases = [case for case in oracle.of(name) if case["hyper"].get("retain_loss_type") != "KL"]
    assert len(cases) == number
    for case in cases:
        groups = oracle.groups(case["set"])
        assert_matches(case, total_loss(case, groups), groups)


@pytest.mark.parametrize(
    ("name", "as_printed", "as_coded"),
    [
        ("masked_v11", 0.002327835651805932, 0.0038323622429276612),
        ("full_v11", 0.0006423550573572319, 0.00105878980431254),
    ],
)
def test_simnpo_adds_the_margin_as_printed_and_not_times_beta(oracle, name, as_printed, as_coded):
    # The stored cases can't tell the paper's delta from the code's beta * delta.
    for case in oracle.of("SimNPO"):
        assert case["hyper"]["delta"] == 0 or case["hyper"]["beta"] == 1
    signals = oracle.groups(name)["forget"].signals
    ones = torch.ones_like(signals.logps)
    means = signals.row_sums(signals.logps) / signals.row_counts()
    theirs = -2 / 2.0 * logsigmoid(2.0 * (-means - 0.5)).mean()
    assert theirs.item() == pytest.approx(as_coded, abs=1e-12)
    assert SimNPO(beta=2.0, delta=0.5)(signals, ones).mean().item() == pytest.approx(
        as_printed, abs=1e-12
    )
    # What their numbers are repeated with.
    assert SimNPO(beta=2.0, delta=2.0 * 0.5)(signals, ones).mean().item() == pytest.approx(
        as_coded, abs=1e-12
    )


def test_simnpo_counts_predicted_tokens_only(oracle):
    # The other code's n counts all labels; in the stored rows the first is none, so n agrees.
    group = oracle.groups("full_v11")["forget"]
    assert (group.labels[:, 0] == -100).all()
    signals = group.signals
    ours = SimNPO(beta=1.0)(signals, torch.ones_like(signals.logps)).mean()
    # A label on the first token is predicted by nothing, so it changes nothing but their n.
    theirs = -2 * logsigmoid(-signals.row_sums(signals.logps) / (6 + 1)).mean()
    assert ours.item() == pytest.approx(0.037781098187929976, abs=1e-12)
    assert theirs.item() == pytest.approx(0.0657452136331453, abs=1e-12)
