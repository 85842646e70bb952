"""Token weightings, by numbers derived by hand.

What holds for every input: property/test_weighting_properties.py. Against formulas:
parity/test_weightings.py.
"""

import dataclasses
import math

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser, lazy_instance

from etw_lightning import weighting
from etw_lightning.kernels.signals import TokenSignals
from etw_lightning.schema import IGNORE_INDEX, InputError
from etw_lightning.weighting import (
    ATWU,
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
    TokenWeighting,
    Uniform,
)


def signals(entropies, rows, num_rows, **others):
    return TokenSignals(
        labels=torch.arange(len(rows)),
        rows=torch.tensor(rows, dtype=torch.long),
        num_rows=num_rows,
        logps=torch.zeros(len(rows), requires_grad=True),
        entropies=None if entropies is None else torch.tensor(entropies),
        **others,
    )


def likely(probabilities, reference=None, rows=None, num_rows=1):
    """Signals of labels with these probabilities, float64."""

    def logs(values):
        return torch.tensor(values, dtype=torch.float64).log()

    rows = torch.tensor([0] * len(probabilities) if rows is None else rows)
    return TokenSignals(
        labels=rows,
        rows=rows,
        num_rows=num_rows,
        logps=logs(probabilities).requires_grad_(),
        reference_logps=None if reference is None else logs(reference),
    )


def close(found, expected, tolerance=1e-12):
    assert not found.requires_grad
    assert found.tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_each_sequence_has_its_own_sum():
    found = ETW()(signals([1.0, 3.0, 0.2, 0.2, 7.0], [0, 0, 2, 2, 3], num_rows=4))
    assert found.tolist() == pytest.approx([0.5, 1.5, 1.0, 1.0, 1.0])


def test_one_certain_sequence_among_others_is_uniform():
    found = ETW()(signals([0.0, 0.0, 1.0, 0.0], [0, 0, 1, 1], num_rows=2))
    assert found.tolist() == [1.0, 1.0, 2.0, 0.0]


@pytest.mark.parametrize("tiny", [1e-30, 1e-39, 1e-44])
def test_tiny_entropies_do_not_overflow(tiny):
    found = ETW()(signals([tiny, 3 * tiny], [0, 0], num_rows=1))
    assert found.tolist() == pytest.approx([0.5, 1.5], rel=0.1)  # 1e-44 is 7 * 2**-149


def test_uniform_reads_no_entropy():
    assert Uniform().needs == frozenset()
    found = Uniform()(signals(None, [0, 1], num_rows=2))
    assert found.tolist() == [1.0, 1.0]
    assert not found.requires_grad


def test_etw_of_the_reference():
    given = signals([1.0, 1.0], [0, 0], 1, reference_entropies=torch.tensor([1.0, 3.0]))
    assert ETW(source="reference")(given).tolist() == [0.5, 1.5]
    assert ETW(source="current")(given).tolist() == [1.0, 1.0]


def test_etw_over_the_batch():
    given = signals([1.0, 3.0, 4.0], [0, 0, 1], num_rows=2)
    assert ETW(normalise="batch")(given).tolist() == [3 / 8, 9 / 8, 12 / 8]


def test_etw_over_a_batch_of_certain_tokens_is_uniform():
    assert ETW(normalise="batch")(signals([0.0, 0.0], [0, 1], 2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, [0.4, 1.6, 0.8, 1.6, 0.6, 1.0]),
        # 2.5 of 5 tokens is rounded up to 3; of one token one is kept.
        (0.5, [0.0, 2.0, 1.0, 2.0, 0.0, 1.0]),
        (0.49, [0.0, 2.5, 0.0, 2.5, 0.0, 1.0]),
        # One token: the earlier of the two largest.
        (0.2, [0.0, 5.0, 0.0, 0.0, 0.0, 1.0]),
        (0.001, [0.0, 5.0, 0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_top_share(share, expected):
    given = signals([1.0, 4.0, 2.0, 4.0, 1.5, 0.0], [0, 0, 0, 0, 0, 2], num_rows=3)
    close(ETW(top_share=share)(given), expected, 1e-6)


def test_top_share_keeps_the_earlier_of_equal_tokens():
    found = ETW(top_share=0.5)(signals([0.7] * 6, [0, 0, 0, 0, 1, 1], num_rows=2))
    assert found.tolist() == [2.0, 2.0, 0.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.0, 9.0])
def test_threshold(threshold):
    given = signals([1.0, 3.0, 0.5], [0, 0, 1], num_rows=2)
    expected = {
        0.0: [0.5, 1.5, 1.0],
        1.0: [0.5, 1.5, 0.0],  # an entropy that equals it is kept
        2.0: [0.0, 2.0, 0.0],
        9.0: [0.0, 0.0, 0.0],
    }
    assert ETW(threshold=threshold)(given).tolist() == expected[threshold]


def test_a_threshold_of_0_keeps_certain_tokens():
    assert ETW(threshold=0.0)(signals([0.0, 0.0], [0, 0], 1)).tolist() == [1.0, 1.0]


def test_both_masks_must_let_a_token_through():
    given = signals([1.0, 3.0, 6.0, 2.0], [0, 0, 0, 0], num_rows=1)
    found = ETW(top_share=0.75, threshold=2.5)(given)
    close(found, [0.0, 4 / 3, 8 / 3, 0.0], 1e-6)


def test_hard_weights_are_equal():
    given = signals([1.0, 3.0, 6.0, 2.0, 5.0], [0, 0, 0, 0, 1], num_rows=2)
    assert ETW(top_share=0.5, hard=True)(given).tolist() == [0.0, 2.0, 2.0, 0.0, 1.0]
    assert ETW(threshold=5.0, hard=True, normalise="batch")(given).tolist() == [0, 0, 2.5, 0, 2.5]


def test_masks_over_the_batch_share_out_all_of_it():
    given = signals([1.0, 3.0, 5.0], [0, 0, 1], num_rows=2)
    found = ETW(top_share=0.5, normalise="batch")(given)
    close(found, [0.0, 9 / 8, 15 / 8], 1e-6)


def test_wga():
    close(WGA(beta=2.0)(likely([0.5, 1.0, 0.1])), [0.25, 1.0, 0.01])


def test_tnpo():
    # 2 * .5^2 / (.5^2 + .25^2) = 8/5; equal probabilities: 1; 2 * .2^2 / (.2^2 + .6^2) = 1/5.
    found = TNPO(beta=2.0)(likely([0.5, 0.3, 0.2], [0.25, 0.3, 0.6]))
    close(found, [8 / 5, 1.0, 1 / 5])


def test_wtnpo():
    found = WTNPO(beta=2.0, alpha=3.0)(likely([0.5, 0.3], [0.25, 0.3]))
    close(found, [0.125 * 8 / 5, 0.027])


def test_satimp():
    found = SatImp(beta1=2.0, beta2=0.5)(likely([0.75, 0.36]))
    close(found, [0.5625 * 0.5, 0.1296 * 0.8])


def test_surprisal():
    given = likely([1 / 2, 1 / 8, 1 / 4, 1.0], rows=[0, 0, 2, 3], num_rows=4)
    close(Surprisal()(given), [0.5, 1.5, 1.0, 1.0])
    close(Surprisal(normalise="batch")(given), [2 / 3, 2.0, 4 / 3, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("weights_of", "certain", "hopeless", "unseen"),
    [
        (WGA(beta=0.0), 1.0, 1.0, 1.0),
        (WGA(beta=5.0), 1.0, 0.0, math.exp(-5.0)),
        (SatImp(beta1=0.0, beta2=0.0), 1.0, 1.0, 1.0),
        (SatImp(beta1=5.0, beta2=0.0), 1.0, 0.0, math.exp(-5.0)),
        (SatImp(beta1=0.0, beta2=1.0), 0.0, 1.0, 1 - math.exp(-1.0)),
        (SatImp(beta1=5.0, beta2=0.1), 0.0, 0.0, math.exp(-5.0) * (1 - math.exp(-1)) ** 0.1),
        (TNPO(beta=4.0), 1.0, 1.0, 2.0),
        (WTNPO(beta=4.0, alpha=1.0), 1.0, 0.0, 2 * math.exp(-1.0)),
    ],
)
def test_probabilities_of_0_and_1(weights_of, certain, hopeless, unseen, dtype):
    """p = 1 and 0, the reference's too; a likely token that the reference gave 0."""
    lowest = torch.finfo(dtype).min
    logps = torch.tensor([0.0, 1e-7, lowest, -math.inf, -1.0, -1.0], dtype=dtype)
    reference = torch.tensor([0.0, 0.0, lowest, -math.inf, lowest, -math.inf], dtype=dtype)
    rows = torch.zeros(6, dtype=torch.long)
    found = weights_of(TokenSignals(rows, rows, 1, logps, reference_logps=reference))
    close(found, [certain, certain, hopeless, hopeless, unseen, unseen], 1e-6)


def test_a_log_probability_just_below_0_keeps_its_digits():
    """1 - p would be 0 if it were subtracted in float32."""
    rows = torch.zeros(1, dtype=torch.long)
    found = SatImp(beta1=0.0, beta2=1.0)(TokenSignals(rows, rows, 1, torch.tensor([-1e-12])))
    assert found.item() == pytest.approx(1e-12, rel=1e-5, abs=0)


def test_masks():
    given = signals(None, [0, 0, 1], 2, marked=torch.tensor([True, False, False]))
    for mask in (Annotated(), Spacy(), Spacy(kind="entities")):
        found = mask(given)
        assert found.tolist() == [1.0, 0.0, 0.0]
        assert found.dtype == given.logps.dtype


def test_random_keeps_weights_in_their_sequence():
    given = signals([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0, 0, 0, 0, 1, 1], num_rows=2)
    plain, found = ETW()(given), Random(of=ETW())(given)
    assert sorted(found[:4].tolist()) == plain[:4].tolist()
    assert sorted(found[4:].tolist()) == plain[4:].tolist()
    assert found.tolist() != plain.tolist()


def test_random_hangs_on_seed_and_labels_alone():
    row = signals([float(place) for place in range(12)], [0] * 12, num_rows=1)
    plain = Random(of=ETW(), seed=3)(row)
    assert Random(of=ETW(), seed=3)(row).tolist() == plain.tolist()
    assert Random(of=ETW(), seed=4)(row).tolist() != plain.tolist()
    backwards = dataclasses.replace(row, labels=row.labels.flip(0))
    assert Random(of=ETW(), seed=3)(backwards).tolist() != plain.tolist()
    other = dataclasses.replace(row, logps=torch.full((12,), -2.0), entropies=row.entropies**2)
    place = plain.argmax()
    assert Random(of=ETW(), seed=3)(other).argmax() == place


def test_random_sends_a_weight_everywhere_equally_often():
    """4,000 rows of 5 tokens: a place is hit 800 times, give or take 25."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(4000).repeat_interleave(5)
    labels = torch.randint(100, (20000,), generator=generator)
    first = torch.arange(20000) % 5 == 0
    given = TokenSignals(labels, rows, 4000, torch.zeros(20000), marked=first)
    for seed in (0, 1, 2**63 - 1):
        hits = Random(of=Annotated(), seed=seed)(given).view(4000, 5)
        assert (hits.sum(1) == 1).all()
        assert hits.sum(0).tolist() == pytest.approx([800] * 5, abs=110)


def test_random_refuses_signals_without_labels():
    for labels in ([IGNORE_INDEX, IGNORE_INDEX], [3, IGNORE_INDEX]):
        given = dataclasses.replace(signals(None, [0, 0], 1), labels=torch.tensor(labels))
        with pytest.raises(InputError, match="labels' token ids, which records don't hold"):
            Random(of=Uniform())(given)


def test_product():
    marks = torch.tensor([True, False, True, False, False])
    given = signals([1.0, 1.0, 3.0, 1.0, 1.0], [0, 0, 0, 1, 1], 2, marked=marks)
    found = Product(first=ETW(), second=Annotated())(given)
    close(found, [0.75, 0.0, 2.25, 0.0, 0.0], 1e-6)
    plain = Product(first=ETW(), second=Annotated(), normalise=False)(given)
    close(plain, [0.6, 0.0, 1.8, 0.0, 0.0], 1e-6)


def test_mixture():
    given = signals([1.0, 3.0], [0, 0], 1)
    assert Mixture(first=ETW(), second=Uniform(), share=0.25)(given).tolist() == [0.875, 1.125]
    assert Mixture(first=ETW(), second=Uniform(), share=0.0)(given).tolist() == [1.0, 1.0]
    assert Mixture(first=ETW(), second=Uniform(), share=1.0)(given).tolist() == [0.5, 1.5]


def test_a_default_that_is_made_late_shows_its_arguments_alone():
    late = lazy_instance(ETW)
    shown = "temperature=1.0, source='current', normalise='sequence', top_share=None, "
    assert repr(late) == f"LazyInstance_ETW({shown}threshold=None, hard=False)"
    assert late(signals([1.0, 3.0], [0, 0], 1)).tolist() == [0.5, 1.5]
    assert repr(late) == f"LazyInstance_ETW({shown}threshold=None, hard=False)"


def test_what_came_later_is_shown_where_it_is_not_as_before():
    """Runs go on if their parts show the same: those of before these arguments must."""
    before = "ETW(temperature=1.0, source='current', normalise='sequence', top_share=None, "
    before += "threshold=None, hard=False)"
    assert str(ETW()) == before
    assert str(Random(of=ETW())) == f"Random(of={before}, seed=0)"
    assert str(ETW(unit="word", floor=0.5)) == f"{before[:-1]}, unit='word', floor=0.5)"
    assert str(Random(of=WGA(), within="word")) == "Random(of=WGA(beta=1.0), seed=0, within='word')"


def test_words_by_hand():
    """Two words of two tokens, a lone token; a word ends where its row does."""
    given = signals(
        [3.0, 1.0, 2.0, 0.0, 2.0, 5.0, 7.0], [0, 0, 0, 0, 0, 1, 2], 3,
        words=torch.tensor([0, 0, -1, 1, 1, 1, -1]),
    )  # fmt: skip
    assert ETW(unit="word")(given).tolist() == pytest.approx(
        [20 / 14, 20 / 14, 10 / 14, 10 / 14, 10 / 14, 1.0, 1.0]
    )
    assert ETW(unit="word", word_entropy="max")(given).tolist() == pytest.approx(
        [15 / 12, 15 / 12, 10 / 12, 10 / 12, 10 / 12, 1.0, 1.0]
    )
    assert ETW(unit="word", threshold=3.0)(given).tolist() == [2.5, 2.5, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_a_floor_by_hand():
    silent = signals([0.0, 0.0, 0.0, 0.4, 4.0, 0.0], [0, 0, 0, 0, 1, 1], 2)
    assert ETW()(silent).tolist() == [0.0, 0.0, 0.0, 4.0, 2.0, 0.0]
    assert ETW(floor=1.0)(silent).tolist() == pytest.approx([0.9, 0.9, 0.9, 1.3, 2.0, 0.0])
    kept = ETW(floor=1.0, threshold=0.1)(signals([0.0, 0.2, 0.6], [0, 0, 0], 1))
    assert kept.tolist() == pytest.approx([0.0, 1.2, 1.8])
    assert ETW(floor=1.0)(signals([0.0, 0.0], [0, 0], 1)).tolist() == [1.0, 1.0]


NOUNS = ("nouns", "en_core_web_sm")


@pytest.mark.parametrize(
    ("given", "needs", "temperature", "marker"),
    [
        (Uniform(), set(), None, None),
        (ETW(temperature=2.5), {"entropies"}, 2.5, None),
        (ETW(source="reference"), {"reference_entropies"}, 1.0, None),
        (ETW(unit="word"), {"entropies", "words"}, 1.0, None),
        (ETW(unit="word", source="reference"), {"reference_entropies", "words"}, 1.0, None),
        (Random(of=WGA(), within="word"), {"words"}, None, None),
        (WGA(), set(), None, None),
        (SatImp(), set(), None, None),
        (Surprisal(), set(), None, None),
        (TNPO(), {"reference_logps"}, None, None),
        (WTNPO(), {"reference_logps"}, None, None),
        (ATWU(), {"states", "importances"}, None, None),
        (Random(of=ATWU()), {"states", "importances"}, None, None),
        (Annotated(), {"marked"}, None, None),
        (Spacy(), {"marked"}, None, NOUNS),
        (Spacy(kind="entities", model="own"), {"marked"}, None, ("entities", "own")),
        (Random(of=ETW(temperature=2.0)), {"entropies"}, 2.0, None),
        (Random(of=Spacy()), {"marked"}, None, NOUNS),
        (Product(Annotated(), ETW(temperature=2.0)), {"marked", "entropies"}, 2.0, None),
        (Product(TNPO(), Spacy()), {"reference_logps", "marked"}, None, NOUNS),
        (Product(Spacy(), Random(Spacy())), {"marked"}, None, NOUNS),
        (
            Mixture(ETW(), Product(ETW(source="reference"), Spacy())),
            {"entropies", "reference_entropies", "marked"},
            1.0,
            NOUNS,
        ),
    ],
)
def test_what_is_read(given, needs, temperature, marker):
    assert given.needs == needs
    assert given.entropy_temperature == temperature
    assert given.marker == marker


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ETW(temperature=0.0), r"ETW\.temperature must be > 0; got 0"),
        (lambda: ETW(temperature=-1.0), r"ETW\.temperature must be > 0; got -1"),
        (lambda: ETW(temperature=math.nan), r"ETW\.temperature must be > 0; got nan"),
        (lambda: ETW(top_share=0.0), r"ETW\.top_share must be in \(0, 1\].*got 0"),
        (lambda: ETW(top_share=1.5), r"ETW\.top_share must be in \(0, 1\].*got 1\.5"),
        (lambda: ETW(threshold=-0.1), r"ETW\.threshold must be >= 0 nats.*got -0\.1"),
        (lambda: ETW(threshold=math.nan), r"ETW\.threshold must be >= 0 nats.*got nan"),
        (lambda: ETW(word_entropy="max"), r"ETW\.word_entropy is max, but ETW\.unit is token, so"),
        (
            lambda: ETW(hard=True, top_share=0.5, floor=0.1),
            r"ETW\.floor is 0\.1, but ETW\.hard is true",
        ),
        (lambda: ETW(hard=True), r"ETW\.hard must be false without ETW\.top_share or"),
        (lambda: ETW(unit="words"), r"ETW\.unit must be token or word; got 'words'"),
        (lambda: ETW(word_entropy="mean"), r"ETW\.word_entropy must be sum or max; got 'mean'"),
        (lambda: ETW(floor=-0.1), r"ETW\.floor must be a finite number >= 0; got -0\.1"),
        (lambda: ETW(floor=math.inf), r"ETW\.floor must be a finite number >= 0; got inf"),
        (lambda: Random(WGA(), within="row"), r"Random\.within must be sequence or word; got"),
        (lambda: WGA(beta=-1.0), r"WGA\.beta must be a finite number >= 0; got -1"),
        (lambda: WGA(beta=math.inf), r"WGA\.beta must be a finite number >= 0; got inf"),
        (lambda: TNPO(beta=0.0), r"TNPO\.beta must be a finite number > 0; got 0"),
        (lambda: WTNPO(beta=0.0), r"WTNPO\.beta must be a finite number > 0; got 0"),
        (lambda: WTNPO(alpha=-0.5), r"WTNPO\.alpha must be a finite number >= 0; got -0\.5"),
        (lambda: ATWU(beta=-1.0), r"ATWU\.beta must be a finite number >= 0; got -1"),
        (lambda: ATWU(budget=1.5), r"ATWU\.budget must be from 0 to 1; got 1\.5"),
        (lambda: ATWU(budget=math.nan), r"ATWU\.budget must be from 0 to 1; got nan"),
        (lambda: ATWU(ridge=math.inf), r"ATWU\.ridge must be a finite number >= 0; got inf"),
        (lambda: ATWU(rate=0.0), r"ATWU\.rate must be a finite number > 0; got 0"),
        (lambda: ATWU(every=0), r"ATWU\.every must be a whole number >= 1; got 0"),
        (
            lambda: Product(ATWU(), Random(ATWU(every=1))),
            r"Product\.first and Product\.second must learn alike",
        ),
        (lambda: SatImp(beta1=-1.0), r"SatImp\.beta1 must be a finite number >= 0; got -1"),
        (lambda: SatImp(beta2=math.nan), r"SatImp\.beta2 must be a finite number >= 0; got nan"),
        (lambda: Spacy(kind="verbs"), r"Spacy\.kind must be nouns or entities; got 'verbs'"),
        (lambda: Spacy(model=""), r"Spacy\.model must name a spaCy model"),
        (
            lambda: Random(Uniform(), seed=-1),
            r"Random\.seed must be a whole number from 0 to \d+; got -1",
        ),
        (lambda: Random(Uniform(), seed=2**63), r"Random\.seed must be a whole number from 0 to"),
        (lambda: Mixture(ETW(), ETW(), share=1.1), r"Mixture\.share must be from 0 to 1; got 1\.1"),
        (
            lambda: Product(ETW(), ETW(temperature=2.0)),
            r"Product\.first\.temperature and Product\.second\.temperature must be equal.*"
            r"got 1\.0 and 2\.0",
        ),
        (
            lambda: Mixture(ETW(), Random(Product(WGA(), ETW(2.0, source="reference")))),
            r"Mixture\.first\.temperature and Mixture\.second\.of\.second\.temperature must be",
        ),
        (
            lambda: Product(Annotated(), Random(Spacy())),
            r"Product\.first and Product\.second must take their marks from one place.*"
            r"got data\.annotations and \('nouns', 'en_core_web_sm'\)",
        ),
        (
            lambda: Mixture(Spacy(), Spacy(kind="entities")),
            r"Mixture\.first and Mixture\.second must take their marks from one place",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert str(caught.value).startswith("model.weighting: ")
    assert "\n" not in str(caught.value)


def test_a_weighting_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ETW().temperature = 2.0


# The command line.


def parsed(*words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TokenWeighting, "weighting", required=True)
    return parser.instantiate(parser.parse_args(words)).weighting


@pytest.mark.parametrize("name", [name for name in weighting.__all__ if name != "TokenWeighting"])
def test_every_class_is_found_under_its_path(name):
    kind = getattr(weighting, name)
    of = {"Random": {"of": Uniform()}}
    pair = {"first": Uniform(), "second": WGA()}
    arguments = of.get(name, pair if name in ("Product", "Mixture") else {})
    words = [f"--weighting=etw_lightning.weighting.{name}"]
    words += [f"--weighting.{key}={type(part).__name__}" for key, part in arguments.items()]
    assert parsed(*words) == kind(**arguments)


def test_nested_classes_take_their_arguments():
    found = parsed(
        "--weighting=Random",
        "--weighting.seed=7",
        "--weighting.of=Product",
        "--weighting.of.first=etw_lightning.weighting.ETW",
        "--weighting.of.first.temperature=2",
        "--weighting.of.second=Spacy",
        "--weighting.of.second.kind=entities",
    )
    inner = Product(first=ETW(temperature=2.0), second=Spacy(kind="entities"))
    assert found == Random(of=inner, seed=7)


@pytest.mark.parametrize(
    "words",
    [
        ["--weighting=WGA", "--weighting.beta=-1"],
        ["--weighting=TNPO", "--weighting.beta=0"],
        ["--weighting=ETW", "--weighting.top_share=0"],
        ["--weighting=ETW", "--weighting.source=start"],
        ["--weighting=Spacy", "--weighting.kind=verbs"],
        ["--weighting=Random"],
        ["--weighting=Random", "--weighting.of=SatImp", "--weighting.of.beta1=-1"],
        [f"--weighting{word}" for word in ("=Mixture", ".first=WGA", ".second=WGA", ".share=2")],
    ],
)
def test_the_parser_refuses(words):
    with pytest.raises(ArgumentError):
        parsed(*words)
