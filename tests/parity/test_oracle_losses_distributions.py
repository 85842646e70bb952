"""Losses of distributions and states against stored values of an independent implementation.

Value and gradient agree to 1e-10 where the definition is the same. Where it is not, a test pins
both numbers and shows that the difference is the one the docstring names, nothing else.
"""

from dataclasses import replace

import pytest
import torch
from oracle_losses import assert_matches, load_oracle

from etw_lightning.forget import CEU, GA, NPO, PDU, RMU, UNDIAL, states
from etw_lightning.kernels.distributions import GivenDistributions
from etw_lightning.kernels.signals import Counts, States, reduce_terms
from etw_lightning.retain import KL, NLL, EmbedDiff
from etw_lightning.schema import IGNORE_INDEX

SETS = ["masked_v11", "full_v11"]


@pytest.fixture(scope="module")
def oracle(data_dir):
    return load_oracle(data_dir)


def mean(objective, group):
    """Return an objective's mean over a group's rows, as the module takes it."""
    signals, skipped = group.signals, getattr(objective, "skipped_tokens", 0)
    weights = (
        () if isinstance(objective, KL | NLL | EmbedDiff) else (torch.ones_like(signals.logps),)
    )
    left = (signals.row_counts() - skipped).clamp(min=0)
    counts = Counts(int(left.sum()), int((left > 0).sum()))
    terms = objective(signals, *weights)
    return reduce_terms(terms, signals, counts, "token", objective.level)


def case_of(oracle, name, set_name, **hyper):
    (case,) = (case for case in oracle.of(name, **hyper) if case["set"] == set_name)
    return case


# The retain term KL.

KL_CASES = [("GradDiff", GA()), ("NPO", NPO(beta=0.5))]


@pytest.mark.parametrize("set_name", SETS)
@pytest.mark.parametrize(("name", "forget"), KL_CASES)
def test_padded_kl(oracle, set_name, name, forget):
    case, groups = case_of(oracle, name, set_name, retain_loss_type="KL"), oracle.groups(set_name)
    loss = mean(forget, groups["forget"]) + mean(KL("padded"), groups["retain"])
    assert_matches(case, loss, groups)


@pytest.mark.parametrize(
    ("set_name", "padded", "labels"),
    [
        ("masked_v11", 0.1179976276681027, 0.11087128772305611),
        ("full_v11", 0.1717010690135149, 0.19015693541909365),
    ],
)
def test_kl_at_the_labels_is_another_number(oracle, set_name, padded, labels):
    """Its mean leaves prompts, padding and what follows the last token out."""
    group = oracle.groups(set_name)["retain"]
    assert mean(KL("padded"), group).item() == pytest.approx(padded, abs=1e-10)
    assert mean(KL(), group).item() == pytest.approx(labels, abs=1e-10)
    # The same divergences: of all positions, those that predict a label.
    everywhere = group.signals.padded.distributions.map(
        lambda logps, other: (other.logps.exp() * (other.logps - logps)).sum(-1),
        group.signals.reference_padded.distributions,
    ).reshape(2, 7)
    is_label = group.labels[:, 1:] != IGNORE_INDEX
    assert everywhere.mean().item() == pytest.approx(padded, abs=1e-10)
    assert everywhere[:, :-1][is_label].mean().item() == pytest.approx(labels, abs=1e-10)


# UNDIAL.


@pytest.mark.parametrize(
    ("name", "strength", "alpha"), [("UNDIAL", 10.0, 1), ("UNDIAL_forget_only", 3.0, 0)]
)
def test_undial_where_every_position_is_labelled(oracle, name, strength, alpha):
    case, groups = case_of(oracle, name, "full_v11", beta=strength), oracle.groups("full_v11")
    loss = mean(UNDIAL(strength), groups["forget"]) + alpha * mean(NLL(), groups["retain"])
    assert_matches(case, loss, groups)


def test_undial_of_masked_rows_is_an_error_there_and_a_mean_over_labels_here(oracle):
    case = case_of(oracle, "UNDIAL_forget_only", "masked_v11")
    assert case["error"].startswith("IndexError: index -100 is out of bounds")
    group = oracle.groups("masked_v11")["forget"]
    assert mean(UNDIAL(3.0), group).item() == pytest.approx(1.350929203415728, abs=1e-10)


def test_undial_with_a_mask_lowers_a_stranger_s_logit_there(oracle):
    """What would be computed with 100 tokens or more, were the last ones' ids 100 less."""
    group = oracle.groups("full_v11")["forget"]
    labels = group.labels.clone()
    labels[0, 3:5] = IGNORE_INDEX
    lowered = labels[:, 1:].clone()
    lowered[lowered == IGNORE_INDEX] = 4  # -100 counts from the end of the vocabulary
    target = group.reference_logits[:, :-1].clone()
    target.scatter_(-1, lowered[..., None], -3.0, reduce="add")
    terms = -(target.softmax(-1) * group.logits[:, :-1].log_softmax(-1)).sum(-1)
    is_label = labels[:, 1:] != IGNORE_INDEX
    kept = is_label.flatten()
    part = replace(
        group.signals,
        labels=group.signals.labels[kept],
        rows=group.signals.rows[kept],
        logps=group.signals.logps[kept],
        distributions=GivenDistributions(group.signals.distributions.logps[kept]),
        reference_distributions=GivenDistributions(
            group.signals.reference_distributions.logps[kept]
        ),
    )
    ours = UNDIAL(3.0)(part, torch.ones(int(kept.sum())).double())
    assert (ours - terms[is_label]).abs().max() < 1e-10
    assert abs(ours.mean() - terms.mean()) > 0.01


# CE-U.


@pytest.mark.parametrize("set_name", SETS)
@pytest.mark.parametrize("skip", [0, 1])
def test_ceu(oracle, set_name, skip):
    case = case_of(oracle, "CEU", set_name, ignore_first_n_answer_tokens=skip)
    groups = oracle.groups(set_name)
    assert_matches(case, mean(CEU(skip), groups["forget"]), groups)


# PDU.


@pytest.mark.parametrize("set_name", SETS)
@pytest.mark.parametrize("primal_dual", [True, False])
def test_pdu_one_place_later(oracle, set_name, primal_dual):
    """The term is the same: given what is said at the labels instead of before, so is the loss."""
    case = case_of(oracle, "PDU", set_name, primal_dual=primal_dual)
    groups = oracle.groups(set_name)
    group = groups["forget"]
    later = group.logits[group.labels != IGNORE_INDEX].log_softmax(-1)
    signals = replace(group.signals, distributions=GivenDistributions(later))
    forget = PDU()(signals, torch.ones(len(later)).double()).mean()
    first, second = case["preferences_before"]
    retain = mean(NLL(), groups["retain"]) - case["hyper"]["retain_loss_eps"]
    assert_matches(case, first * forget + second * retain, groups)
    # The weight on the retain term after the step: what the callback RetainBudget does.
    step = case["hyper"]["dual_step_size"] if primal_dual else 0
    after = max(0.0, second + step * retain.item())
    assert case["preferences_after"] == pytest.approx([first, after], abs=1e-10)


@pytest.mark.parametrize(
    ("set_name", "theirs", "ours"),
    [
        ("masked_v11", 9.379512834405556, 12.14269221471231),
        ("full_v11", 9.962764847686405, 10.975501751178953),
    ],
)
def test_pdu_where_labels_are_predicted_is_another_number(oracle, set_name, theirs, ours):
    case, groups = case_of(oracle, "PDU", set_name, primal_dual=True), oracle.groups(set_name)
    stored = case["loss"] - (mean(NLL(), groups["retain"]).item() - 0.3)
    assert stored == pytest.approx(theirs, abs=1e-10)
    loss = mean(PDU(), groups["forget"])
    assert loss.item() == pytest.approx(ours, abs=1e-10)
    # Where both have a term, both have the same gradient.
    (grad,) = torch.autograd.grad(loss, groups["forget"].logits)
    wanted = torch.tensor(case["grad"]["forget"], dtype=torch.float64)
    is_label = groups["forget"].labels != IGNORE_INDEX
    both = is_label[:, :-1] & is_label[:, 1:]
    assert (grad - wanted)[:, :-1][both].abs().max() < 1e-10
    assert not grad[:, :-1][~is_label[:, 1:]].any()
    assert not grad[:, -1].any()


# RMU.


def with_states(oracle, groups):
    """Return groups with the stored activations as states, and the activations ``(B, T, D)``."""
    said, found = {}, {}
    for name in ("forget", "retain"):
        model, reference = (
            torch.tensor(oracle.activations[kind][name], dtype=torch.float64)
            for kind in ("model", "ref")
        )
        said[name] = model.requires_grad_()
        rows, places = (groups[name].labels != IGNORE_INDEX).nonzero(as_tuple=True)
        signals = replace(
            groups[name].signals,
            states=States({7: model[rows, places]}, rows),
            reference_states=States({7: reference[rows, places]}, rows),
        )
        found[name] = replace(groups[name], signals=signals)
    return found, said


@pytest.fixture
def steer(monkeypatch):
    """Let RMU steer to a stored vector."""

    def to(case):
        vector = torch.tensor(case["control_vec"], dtype=torch.float64)
        coefficient = case["hyper"]["steering_coeff"]
        # As ours, a vector of numbers >= 0 whose length is the coefficient.
        assert (vector >= 0).all()
        assert vector.norm().item() == pytest.approx(coefficient, rel=1e-6)
        monkeypatch.setattr(states, "steering_vector", lambda *_, **__: vector / coefficient)
        return RMU(steering_coefficient=coefficient)

    return to


RMU_CASES = [(2.0, EmbedDiff()), (20.0, NLL())]


def check_states(case, loss, said):
    """Check the gradients at the stored activations; one that is not stored must be 0."""
    for name, values in said.items():
        (grad,) = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True)
        stored = case["grad_activations"].get(name)
        if stored is None:
            assert grad is None
        else:
            assert (grad - torch.tensor(stored, dtype=torch.float64)).abs().max() < 1e-10


@pytest.mark.parametrize(("coefficient", "retain"), RMU_CASES)
def test_rmu_of_equally_long_answers(oracle, steer, coefficient, retain):
    case = case_of(oracle, "RMU", "full_v11", steering_coeff=coefficient)
    groups, said = with_states(oracle, oracle.groups("full_v11"))
    loss = mean(steer(case), groups["forget"]) + mean(retain, groups["retain"])
    assert_matches(case, loss, groups)
    check_states(case, loss, said)


def with_mixed_counts(objective, group):
    """Return the mean of the sequences' sums, each divided by every sequence's tokens in turn."""
    signals = group.signals
    weights = (torch.ones(1),) if isinstance(objective, RMU) else ()
    counts = torch.bincount(signals.states.rows).double()
    sums = objective(signals, *weights) * counts
    return (sums[:, None] / counts[None]).mean()


@pytest.mark.parametrize(
    ("coefficient", "retain", "ours"),
    [(2.0, EmbedDiff(), 1.760211325818698), (20.0, NLL(), 71.112370384053)],
)
def test_rmu_of_unequal_answers_is_another_number(oracle, steer, coefficient, retain, ours):
    """Five and three labelled tokens: each sum is divided by both, there."""
    case = case_of(oracle, "RMU", "masked_v11", steering_coeff=coefficient)
    groups, said = with_states(oracle, oracle.groups("masked_v11"))
    objective = steer(case)
    held = (mean if retain == NLL() else with_mixed_counts)(retain, groups["retain"])
    loss = with_mixed_counts(objective, groups["forget"]) + held
    assert_matches(case, loss, groups)
    check_states(case, loss, said)
    found = mean(objective, groups["forget"]) + mean(retain, groups["retain"])
    assert found.item() == pytest.approx(ours, abs=1e-10)
