"""Numbers of weightings that formulas leave open: defaults, the permutation, rounding above 0."""

import pytest
import torch
from toy import defaults_of

from etw_lightning import weighting
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.weighting import TNPO, WTNPO, Random, TokenWeighting
from etw_lightning.weighting import logits as module
from etw_lightning.weighting.logits import etw_weights
from etw_lightning.weighting.within_rows import lift_to, order_within_rows, units_of

#: What each class takes where nothing is said.
DEFAULTS = {
    "ATWU": {
        "beta": 5.0, "budget": 0.2, "budget_weight": 10.0, "entropy_weight": 1.0, "ridge": 1.0,
        "rate": 0.05, "every": 5,
    },
    "Annotated": {},
    "ETW": {
        "temperature": 1.0, "source": "current", "normalise": "sequence", "top_share": None,
        "threshold": None, "hard": False, "unit": "token", "word_entropy": "sum", "floor": 0.0,
    },
    "Mixture": {"share": 0.5},
    "Product": {"normalise": True},
    "Random": {"seed": 0, "within": "sequence"},
    "SatImp": {"beta1": 5.0, "beta2": 0.1},
    "Spacy": {"kind": "nouns", "model": "en_core_web_sm"},
    "Surprisal": {"normalise": "sequence"},
    "TNPO": {"beta": 4.0},
    "Uniform": {},
    "WGA": {"beta": 1.0},
    "WTNPO": {"beta": 4.0, "alpha": 1.5},
}  # fmt: skip


def test_each_class_has_its_published_defaults():
    assert defaults_of(weighting) == DEFAULTS


WORD = 2**64


def mixed(word):
    """The finaliser of SplitMix64, on whole numbers that have no sign."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def signed(word):
    return word - WORD if word >= WORD // 2 else word


class Places(TokenWeighting):
    """Gives each token its number."""

    def __call__(self, signals):
        return torch.arange(len(signals.labels), dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 - 1])
def test_the_permutation_is_that_of_the_published_generator(seed):
    """Written once more without tensors; other numbers would make other runs of the same seed."""
    rows = [[5, 9, 9, 2, 700, 31, 8], [1], [40_000, 3, 3, 17, 6]]
    labels = torch.tensor([label for row in rows for label in row])
    numbers = torch.tensor([number for number, row in enumerate(rows) for _ in row])
    logps = torch.zeros(len(labels))
    signals = TokenSignals(labels=labels, rows=numbers, num_rows=len(rows), logps=logps)
    expected, start = [], 0
    for row in rows:
        steps = [0x9E3779B97F4A7C15 * (place + 1) % WORD for place in range(len(row))]
        pairs = zip(row, steps, strict=True)
        whole = sum(mixed((label + step) % WORD) for label, step in pairs) % WORD
        whole = mixed((whole + mixed(seed)) % WORD)
        keys = [signed(mixed((whole + step) % WORD)) for step in steps]
        expected += sorted(range(start, start + len(row)), key=lambda n, k=keys, s=start: k[n - s])
        start += len(row)
    assert Random(Places(), seed)(signals).tolist() == expected


def test_tokens_of_equal_keys_stay_in_order():
    keys = torch.zeros(3000, dtype=torch.long)
    rows = torch.arange(3000) % 2
    order = order_within_rows(keys, rows).tolist()
    assert order == [*range(0, 3000, 2), *range(1, 3000, 2)]


@pytest.mark.parametrize("kind", [TNPO(beta=4.0), WTNPO(beta=4.0, alpha=1.5)], ids=str)
def test_a_reference_a_hair_above_certainty_is_certain(kind):
    """Rounding may lift a log-probability above 0."""

    def weights(reference):
        signals = TokenSignals(
            labels=torch.tensor([1, 2]),
            rows=torch.tensor([0, 0]),
            num_rows=1,
            logps=torch.tensor([-0.5, 0.0], dtype=torch.float64),
            reference_logps=torch.tensor([reference] * 2, dtype=torch.float64),
        )
        return kind(signals).tolist()

    assert weights(1e-3) == weights(0.0)
    assert weights(0.0)[1] == 1.0


def test_weights_of_logits_are_those_of_the_entropies():
    """Each label is predicted one place before it; rows of 3 and 2 labels sum to 3 and 2."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 9, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 4, 8, 0], [3, -100, 5, -100, 1]])
    for temperature in (None, 2.0):
        given = () if temperature is None else (temperature,)
        found = etw_weights(logits, labels, *given)
        scaled = logits / (temperature or 1.0)
        entropies = torch.distributions.Categorical(logits=scaled).entropy()
        expected = torch.zeros(2, 5, dtype=torch.float64)
        for row, places in ((0, [2, 3, 4]), (1, [2, 4])):
            said = entropies[row, [place - 1 for place in places]]
            expected[row, places] = len(places) * said / said.sum()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_weights_of_logits_that_learn_keep_nothing_for_a_backward_pass():
    logits = torch.randn(2, 5, 11, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda one: one):
        found = etw_weights(logits, torch.ones(2, 5, dtype=torch.int64))
    assert not kept
    assert not found.requires_grad


def test_weights_of_logits_are_refused_for_other_shapes():
    logits, labels = torch.zeros(2, 5, 9), torch.zeros(2, 5, dtype=torch.long)
    for one, other in ((logits, labels[:, 1:]), (logits[..., None], labels), (logits[0], labels)):
        with pytest.raises(ValueError, match=r"logits must be \(B, T, V\) and labels"):
            etw_weights(one, other)
    with pytest.raises(ValueError, match="temperature"):
        etw_weights(logits, labels, 0.0)


def test_weights_of_logits_are_made_of_one_chunk_after_another(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    labels = torch.zeros(2, 9, dtype=torch.long)
    whole = etw_weights(logits, labels)
    monkeypatch.setattr(module, "_CHUNK", 3)
    assert torch.equal(etw_weights(logits, labels), whole)
    assert etw_weights(logits.bfloat16(), labels).dtype == torch.float32


def test_the_largest_seed_of_a_permutation_is_that_of_int64():
    assert Random(of=Places(), seed=9223372036854775807).seed == 2**63 - 1
    with pytest.raises(ValueError, match=r"Random\.seed"):
        Random(of=Places(), seed=9223372036854775808)


def test_weights_have_no_gradient_whatever_the_signals_have():
    """A weight is a number: no gradient goes through it into what it was made of."""
    live = torch.tensor([-1.0, -2.0], requires_grad=True)
    rows = torch.tensor([0, 0])
    signals = TokenSignals(
        labels=rows,
        rows=rows,
        num_rows=1,
        logps=live,
        entropies=-live,
        reference_logps=live * 0.5,
        reference_entropies=-live,
    )
    names = ("ETW", "SatImp", "Surprisal", "TNPO", "Uniform", "WGA", "WTNPO")
    for kind in (getattr(weighting, name) for name in names):
        assert not kind()(signals).requires_grad
    assert not weighting.ETW(source="reference")(signals).requires_grad
    assert not signals.row_counts().requires_grad
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    assert not etw_weights(logits, torch.zeros(1, 3, dtype=torch.long)).requires_grad


def test_logits_of_1024_positions_are_widened_at_a_time(monkeypatch):
    made, original = [], torch.special.entr
    monkeypatch.setattr(torch.special, "entr", lambda p: made.append(len(p)) or original(p))
    etw_weights(torch.zeros(1, 1501, 2), torch.zeros(1, 1501, dtype=torch.long))
    assert made == [1024, 476]


def test_words_and_lone_tokens_are_numbered_from_0():
    rows, words = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([4, 4, -1, -1, 4, 4])
    signals = TokenSignals(rows, rows, 2, torch.zeros(6), words=words)
    assert units_of(signals).tolist() == [0, 0, 1, 2, 3, 3]


def test_a_row_without_a_token_to_count_has_a_mean_of_0():
    rows = torch.tensor([0, 0, 1, 1])
    signals = TokenSignals(rows, rows, 2, torch.zeros(4))
    values, kept = torch.tensor([0.0, 1.0, 3.0, 4.0]), torch.tensor([True, True, False, False])
    assert lift_to(1.0, values, signals, "sequence", kept).tolist() == [0.5, 1.5, 4.0, 5.0]
    # One token is its own mean.
    alone = torch.tensor([False, True, True, False])
    values = torch.tensor([9.0, 0.5, 0.25, 9.0])
    assert lift_to(1.0, values, signals, "sequence", alone).tolist() == [9.5, 1.0, 1.0, 9.75]
