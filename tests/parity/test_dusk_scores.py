"""DUSK's privacy numbers against the formulas of its ``mia_eval.py`` and ``eval.py``, in float64.

Those of github.com/AI-ISL/DUSK at commit 129a0a5, written down anew: scores from whole
distributions, the share of the least likely tokens, trapezia under the curve.
"""

import numpy as np
import pytest
from sklearn.metrics import auc, roc_curve

from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.catalogue.suite import select
from etw_lightning.metrics import Metric, min_k_plus_plus_score
from etw_lightning.schema import Record

SHARE, VOCABULARY = 0.4, 11
SETS = ("privleak_forget", "privleak_holdout", "privleak_retain")


def texts(seed, num, known):
    """Log-distributions and labels of some texts; those that are known say the likeliest more."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        logits = draw.normal(0, 2, (draw.integers(4, 30), VOCABULARY))
        logps = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        chances = np.exp(logps * (1 + known))
        labels = [draw.choice(VOCABULARY, p=row / row.sum()) for row in chances]
        found.append((logps, np.array(labels)))
    return found


def published_score(logps, labels):
    """Their Min-K++, which is higher for what is known."""
    probabilities = np.exp(logps)
    mean = (probabilities * logps).sum(-1)
    variance = (probabilities * logps**2).sum(-1) - mean**2
    scores = (logps[np.arange(len(labels)), labels] - mean) / (np.sqrt(variance) + 1e-6)
    return np.mean(np.sort(scores)[: int(len(scores) * SHARE)])


def published_auc(first, second):
    labels = [0] * len(first) + [1] * len(second)
    false, true, _ = roc_curve(labels, [*first, *second])
    return auc(false, true)


def record(name, place, logps, labels):
    probabilities, rows = np.exp(logps), np.arange(len(labels))
    mean = (probabilities * logps).sum(-1)
    return Record(
        name,
        f"{name}/{place}",
        "a",
        answer_loss=float(-logps[rows, labels].mean()),
        token_logps=tuple(logps[rows, labels]),
        token_entropies=tuple(-mean),
        token_variances=tuple((probabilities * (logps - mean[:, None]) ** 2).sum(-1)),
    )


@pytest.fixture(scope="module")
def models():
    """Texts as two models say them: the run's knows the forget set a little, both what stays."""
    known = {"run": (0.3, 0.0, 0.4), "retain": (0.0, 0.0, 0.6)}
    return {
        model: {
            name: texts(10 * place + (model == "run"), num, share)
            for place, (name, num, share) in enumerate(zip(SETS, (23, 29, 40), shares, strict=True))
        }
        for model, shares in known.items()
    }


def test_scores_are_those_of_whole_distributions(models):
    for logps, labels in models["run"]["privleak_forget"]:
        made = record("f", 0, logps, labels)
        ours = min_k_plus_plus_score(
            made.token_logps, made.token_entropies, made.token_variances, SHARE
        )
        # Theirs adds 1e-6 to sigma; scores are differences, so the bound is absolute.
        assert -ours == pytest.approx(published_score(logps, labels), abs=5e-6)


def test_privleak_and_retain_deviation(models):
    scores, records = {}, {}
    for model, sets in models.items():
        scores[model] = {n: [published_score(*one) for one in rows] for n, rows in sets.items()}
        records[model] = {
            n: [record(n, i, *one) for i, one in enumerate(rows)] for n, rows in sets.items()
        }
    forget, holdout, stays = SETS
    leaks = {m: published_auc(s[forget], s[holdout]) for m, s in scores.items()}
    keeps = {m: published_auc(s[holdout], s[stays]) for m, s in scores.items()}
    expected = {
        "privleak_min_k_plus_plus": (leaks["run"] - leaks["retain"]) / leaks["retain"] * 100,
        "retain_deviation": abs((keeps["run"] - keeps["retain"]) / keeps["retain"]) * 100,
    }
    assert abs(expected["privleak_min_k_plus_plus"]) > 5
    assert expected["retain_deviation"] > 5
    from etw_lightning.catalogue.entries import Given

    plan = select(list(expected), "dusk", ["retain", "retain_tokens"], SETS, SETS)
    found = plan.compute(Given(records["run"], retain=records["retain"]))
    assert set(found) == set(expected) <= set(CATALOGUE)
    for name, value in expected.items():
        assert isinstance(found[name], Metric)
        # 1e-10 stands in the denominator of PrivLeak.
        assert found[name].value == pytest.approx(value, rel=1e-8)
