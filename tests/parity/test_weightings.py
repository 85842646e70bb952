"""Gradient ascent under every token weighting against its formula, in float64, from logits.

The formulas are written from the papers' definitions, token by token in plain Python, and import
nothing of ours. They start from the logits of the model and of the reference.
"""

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from toy import FixedLogits, random_rows

from etw_lightning.forget import GA
from etw_lightning.kernels.signals import Counts, reduce_terms
from etw_lightning.models.loading import LabelScorer
from etw_lightning.weighting import (
    ETW,
    TNPO,
    WGA,
    WTNPO,
    Annotated,
    Mixture,
    Product,
    Random,
    SatImp,
    Spacy,
    Surprisal,
    Uniform,
)

VOCABULARY = 13
#: Lengths and prompts of the rows; the last but one has no labelled token.
LENGTHS, PROMPTS = (9, 3, 7, 2, 12), (3, 2, 4, 2, 1)
SIZES = (6, 1, 3, 0, 11)
COUNTS = Counts(tokens=21, rows=4)
TEMPERATURES = (0.5, 1.0, 3.0)
#: The word of the first, second, ... label of each row: words of one to four tokens, and two lone
#: tokens next to each other.
WORDS = (0, 0, -1, -1, 1, 2, 2, 2, 2, 3, 3)


class Token(NamedTuple):
    """What the formulas read of a labelled token; entropies by temperature."""

    label: int
    p: float
    ref: float
    entropies: dict
    ref_entropies: dict
    marked: bool
    #: Its word, or itself where it is of none.
    word: tuple


def softmax(logits, temperature=1.0):
    powers = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def entropies(logits):
    return {
        temperature: -math.fsum(p * math.log(p) for p in softmax(logits, temperature))
        for temperature in TEMPERATURES
    }


# Weights of the rows, each a list of tokens.


def each(weight):
    return lambda rows: [[weight(token) for token in row] for row in rows]


def shared_out(value, keeps=lambda row: row):
    """n * v / sum(v) over what is kept of each row."""

    def weights(rows):
        found = []
        for row in rows:
            kept = keeps(row)
            total = sum(value(token) for token in kept)
            found.append(
                [len(row) * value(token) / total if token in kept else 0.0 for token in row]
            )
        return found

    return weights


def over_batch(weights):
    def flat(rows):
        (found,) = weights([[token for row in rows for token in row]])
        left = iter(found)
        return [[next(left) for _ in row] for row in rows]

    return flat


def entropy(temperature=1.0):
    return lambda token: token.entropies[temperature]


def highest(share):
    """Tokens of the largest entropies; n * share to the nearest whole number, halves up."""

    def keeps(row):
        ordered = sorted(row, key=lambda token: -token.entropies[1.0])
        return ordered[: max(1, math.floor(share * len(row) + 0.5))]

    return keeps


def above(threshold):
    return lambda row: [token for token in row if token.entropies[1.0] >= threshold]


def wga(beta):
    return lambda token: token.p**beta


def tnpo(beta, alpha=0.0):
    def weight(token):
        return 2 * token.p ** (beta + alpha) / (token.p**beta + token.ref**beta)

    return weight


def satimp(beta1, beta2):
    return lambda token: token.p**beta1 * (1 - token.p) ** beta2


def surprisal(token):
    return -math.log(token.p)


def words_of(row):
    """The tokens of each word, in order."""
    return [list(group) for _, group in itertools.groupby(row, key=lambda token: token.word)]


def by_word(pooled, of=lambda token: token.entropies[1.0]):
    """n * S / sum(S), each token with its word's S."""

    def weights(rows):
        found = []
        for row in rows:
            values = [pooled([of(token) for token in word]) for word in words_of(row) for _ in word]
            found.append([len(row) * value / math.fsum(values) for value in values])
        return found

    return weights


def floored(floor):
    """n * (H + lift) / sum(H + lift), lifted to a mean of the floor."""

    def weights(rows):
        found = []
        for row in rows:
            values = [token.entropies[1.0] for token in row]
            lift = max(0.0, floor - math.fsum(values) / len(row)) if row else 0.0
            total = math.fsum(values) + len(row) * lift
            found.append([len(row) * (value + lift) / total for value in values])
        return found

    return weights


def mark(token):
    return 1.0 if token.marked else 0.0


def mixed(number):
    """SplitMix64's finaliser on whole numbers of 64 bits."""
    number %= 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        number = (number ^ (number >> shift)) * factor % 2**64
    return number


def shuffled(weights, seed, parts_of=lambda row: [row]):
    def moved(rows):
        found = []
        for row, given in zip(rows, weights(rows), strict=True):
            steps = [0x9E3779B97F4A7C15 * place for place in range(1, len(row) + 1)]
            parts = [mixed(token.label + step) for token, step in zip(row, steps, strict=True)]
            start = mixed(sum(parts) + mixed(seed))
            keys = [mixed(start + step) for step in steps]
            # Signed numbers are what a machine compares.
            keys = [key - 2**64 if key >= 2**63 else key for key in keys]
            pairs = iter(zip(keys, given, strict=True))
            kept = [sorted(itertools.islice(pairs, len(part))) for part in parts_of(row)]
            found.append([weight for part in kept for _, weight in part])
        return found

    return moved


CASES = {
    "uniform": (Uniform(), each(lambda token: 1.0)),
    "etw": (ETW(), shared_out(entropy())),
    "etw_cold": (ETW(temperature=0.5), shared_out(entropy(0.5))),
    "etw_hot": (ETW(temperature=3.0), shared_out(entropy(3.0))),
    "etw_reference": (
        ETW(temperature=3.0, source="reference"),
        shared_out(lambda token: token.ref_entropies[3.0]),
    ),
    "etw_batch": (ETW(normalise="batch"), over_batch(shared_out(entropy()))),
    "etw_top": (ETW(top_share=0.3), shared_out(entropy(), highest(0.3))),
    "etw_threshold": (ETW(threshold=2.1), shared_out(entropy(), above(2.1))),
    "etw_hard": (ETW(top_share=0.6, hard=True), shared_out(lambda token: 1.0, highest(0.6))),
    "etw_word": (ETW(unit="word"), by_word(math.fsum)),
    "etw_word_max": (ETW(unit="word", word_entropy="max"), by_word(max)),
    "etw_word_reference": (
        ETW(unit="word", source="reference"),
        by_word(math.fsum, lambda token: token.ref_entropies[1.0]),
    ),
    "etw_floor": (ETW(floor=1.5), floored(1.5)),
    "wga": (WGA(beta=1.0), each(wga(1.0))),
    "wga_5": (WGA(beta=5.0), each(wga(5.0))),
    "tnpo": (TNPO(beta=4.0), each(tnpo(4.0))),
    "wtnpo": (WTNPO(beta=4.0, alpha=1.5), each(tnpo(4.0, 1.5))),
    "satimp": (SatImp(beta1=5.0, beta2=0.1), each(satimp(5.0, 0.1))),
    "satimp_1": (SatImp(beta1=5.0, beta2=1.0), each(satimp(5.0, 1.0))),
    "imp": (SatImp(beta1=0.0, beta2=1.0), each(satimp(0.0, 1.0))),
    "surprisal": (Surprisal(), shared_out(surprisal)),
    "surprisal_batch": (Surprisal(normalise="batch"), over_batch(shared_out(surprisal))),
    "annotated": (Annotated(), each(mark)),
    "spacy": (Spacy(), each(mark)),
    "random": (Random(of=ETW(), seed=11), shuffled(shared_out(entropy()), 11)),
    "random_word": (
        Random(of=ETW(), seed=11, within="word"),
        shuffled(shared_out(entropy()), 11, words_of),
    ),
    "product": (
        Product(first=ETW(), second=WGA(beta=2.0)),
        shared_out(lambda token: token.entropies[1.0] * token.p**2),
    ),
    "product_plain": (
        Product(first=Annotated(), second=SatImp(), normalise=False),
        each(lambda token: mark(token) * satimp(5.0, 0.1)(token)),
    ),
    "mixture": (
        Mixture(first=TNPO(), second=WGA(), share=0.3),
        each(lambda token: 0.3 * tnpo(4.0)(token) + 0.7 * token.p),
    ),
}


class Rows:
    """Rows with logits of a model and of a reference; every third label is marked."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ids, self.mask, self.labels = random_rows(generator, VOCABULARY, LENGTHS, PROMPTS)
        shape = (*self.ids.shape, VOCABULARY)
        logits = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        self.logits, self.reference = logits
        # Predictions of all shades, from nearly certain to nearly flat.
        self.logits = self.logits * torch.linspace(0.2, 2.5, shape[1])[None, :, None].double()

    def signals(self, temperature):
        """Our signals, and the model whose logits they hang on."""
        lm = FixedLogits(self.logits.clone())
        wanted = {"entropies"}
        said = LabelScorer(lm, chunk_size=4)(
            self.ids, self.mask, self.labels, wanted, temperature or 1.0
        )
        with torch.no_grad():
            before = LabelScorer(FixedLogits(self.reference.clone()))(
                self.ids, self.mask, self.labels, wanted, temperature or 1.0
            )
        added = {
            "reference_logps": before.logps,
            "reference_entropies": before.entropies,
            "marked": said.labels % 3 == 0,
            "words": torch.tensor([word for size in SIZES for word in WORDS[:size]]),
        }
        return replace(said, **added), lm

    def tokens(self):
        """The formulas' tokens with their places, row by row."""
        found = []
        for row, labels in enumerate(self.labels.tolist()):
            here = []
            for place, label in enumerate(labels):
                if label == -100:
                    continue
                logits = self.logits[row, place - 1].tolist()
                reference = self.reference[row, place - 1].tolist()
                p, ref = softmax(logits)[label], softmax(reference)[label]
                token = Token(
                    label, p, ref, entropies(logits), entropies(reference), label % 3 == 0, ()
                )
                number = WORDS[len(here)]
                own = (number,) if number >= 0 else (number, len(here))
                here.append((place, token._replace(word=own)))
            found.append(here)
        assert tuple(map(len, found)) == SIZES
        return found

    def formula(self, weights_of, reduction):
        """Weights, loss, and gradient of the loss by the logits."""
        places = self.tokens()
        weights = weights_of([[token for _, token in row] for row in places])
        loss, slopes = 0.0, np.zeros(self.logits.shape)
        for row, here in enumerate(places):
            share = 1 / COUNTS.tokens
            if reduction == "sequence" and here:
                share = 1 / (COUNTS.rows * len(here))
            for (place, token), weight in zip(here, weights[row], strict=True):
                loss += share * weight * math.log(token.p)
                for entry, p in enumerate(softmax(self.logits[row, place - 1].tolist())):
                    slope = (entry == token.label) - p
                    slopes[row, place - 1, entry] = share * weight * slope
        return [weight for row in weights for weight in row], loss, slopes

    def ours(self, weighting, reduction="token"):
        """The same of our own code."""
        signals, lm = self.signals(weighting.entropy_temperature)
        weights = weighting(signals)
        loss = reduce_terms(GA()(signals, weights), signals, COUNTS, reduction)
        loss.backward()
        return weights, loss.detach(), lm.logits.grad


@pytest.fixture(scope="module")
def rows():
    return Rows()


def check(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(rows, name, reduction):
    weighting, weights_of = CASES[name]
    check(rows.ours(weighting, reduction), rows.formula(weights_of, reduction))


def test_the_cases_tell_formulas_apart(rows):
    """No two cases agree on these rows, but the two masks, which read the same marks."""
    found = {name: rows.formula(weights_of, "token")[0] for name, (_, weights_of) in CASES.items()}
    names = [name for name in found if name != "spacy"]
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert not np.allclose(found[one], found[other], rtol=1e-3, atol=1e-3), (one, other)
    # A threshold that empties a row, and one that cuts a row in two.
    left = [np.count_nonzero(part) for part in np.split(found["etw_threshold"], np.cumsum(SIZES))]
    assert any(0 < kept < size for kept, size in zip(left, SIZES, strict=False))
    assert any(not kept and size for kept, size in zip(left, SIZES, strict=False))


@pytest.mark.parametrize("name", CASES)
def test_ignored_positions_do_not_matter(rows, name):
    """Nor does what the reference says there, however extreme."""
    weighting, _ = CASES[name]
    changed = Rows()
    is_used = torch.zeros_like(changed.labels, dtype=torch.bool)
    is_used[:, :-1] = changed.labels[:, 1:] != -100
    noise = 1e3 * torch.randn(changed.logits.shape, generator=torch.Generator().manual_seed(5))
    changed.logits = torch.where(is_used[..., None], changed.logits, noise.double())
    changed.reference = torch.where(is_used[..., None], changed.reference, -noise.double())
    changed.ids = torch.where(is_used, changed.ids, (changed.ids + 1) % VOCABULARY)
    after = changed.ours(weighting)
    check(after, rows.ours(weighting), 0)
    assert not after[2][~is_used].any()


# Limits: two weightings that are one.


@pytest.mark.parametrize(
    ("one", "other", "tolerance"),
    [
        (WGA(beta=0.0), Uniform(), 0),
        (SatImp(beta1=3.0, beta2=0.0), WGA(beta=3.0), 1e-12),
        (SatImp(beta1=0.0, beta2=0.0), Uniform(), 0),
        (WTNPO(beta=2.0, alpha=0.0), TNPO(beta=2.0), 0),
        (TNPO(beta=1e-12), Uniform(), 1e-10),
        (ETW(temperature=1e9), Uniform(), 1e-8),
        (ETW(top_share=1.0), ETW(), 0),
        (ETW(threshold=0.0), ETW(), 0),
        (ETW(threshold=0.0, hard=True), Uniform(), 1e-12),
        (Product(ETW(), Uniform()), ETW(), 1e-12),
        (Product(WGA(beta=2.0), WGA(beta=3.0), normalise=False), WGA(beta=5.0), 1e-12),
        (Mixture(TNPO(), ETW(), share=1.0), TNPO(), 0),
        (Mixture(TNPO(), ETW(), share=0.0), ETW(), 0),
        (Random(of=Uniform()), Uniform(), 0),
    ],
    ids=str,
)
def test_limits(rows, one, other, tolerance):
    check(rows.ours(one), rows.ours(other), tolerance)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TNPO(beta=4.0), Uniform()),
        (WTNPO(beta=4.0, alpha=1.5), WGA(beta=1.5)),
        (ETW(source="reference"), ETW(source="current")),
    ],
    ids=str,
)
def test_a_reference_that_is_the_model(one, other):
    rows = Rows()
    rows.reference = rows.logits
    check(rows.ours(one), rows.ours(other))


@pytest.mark.parametrize(
    "weighting", [ETW(), ETW(temperature=2.0), ETW(normalise="batch"), Surprisal()], ids=str
)
def test_equal_predictions_are_gradient_ascent(weighting):
    rows = Rows()
    rows.logits = torch.zeros_like(rows.logits)
    check(rows.ours(weighting), rows.ours(Uniform()))


def test_tnpo_is_the_gradient_of_npo_per_token(rows):
    """-(2 / beta) log sigmoid(-beta (log p - log ref)), each token's own, by autograd."""
    beta = 4.0
    signals, lm = rows.signals(None)
    terms = -2 / beta * (-beta * (signals.logps - signals.reference_logps)).sigmoid().log()
    (terms.sum() / COUNTS.tokens).backward()
    check([rows.ours(TNPO(beta=beta))[2]], [lm.logits.grad])
