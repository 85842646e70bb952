import inspect
import pickle
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningModule
from meter_cases import make_cases, rows_of
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from toy import make_trainer

from etw_lightning import meters, metrics
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.schema import InputError

CASES = make_cases()
BASES = {"MeanMeter", "Meter", "RecordMeter"}
CLASSES = sorted(
    name for name in meters.__all__ if name not in BASES and inspect.isclass(getattr(meters, name))
)
#: Numbers of the catalogue that are no meter, and why.
NO_METER = {"{set}_rows_without_depth": "a count of rows, beside the number"}
#: Number of the catalogue to a case; ``{set}`` stands for any set.
METERS = {
    **{f"mia_{one}": f"MembershipAUC, {one}" for one in metrics.ATTACKS},
    **{
        f"mia_{one}_relative_difference": f"RelativeDifference, {one}"
        for one in metrics.PRIVACY_ATTACKS
    },
    **{
        f"{{set}}_{name}{tail}": f"Rouge, {name}, {against}"
        for name in ("rouge1_recall", "rouge1_f1", "rougeL_recall", "rougeL_f1")
        for tail, against in (("", "answer"), ("_against_paraphrase", "paraphrase"))
    },
    **{
        f"{{set}}_truth_ratio_{name}": f"TruthRatio, {name}"
        for name in ("closer_to_one", "true_better", "mean_probability")
    },
    **{f"{{set}}_repetition_{n}": f"Repetition, {n}" for n in (1, 2, 3, 4)},
    **{f"{{set}}_distinct_{n}": f"DistinctN, {n}" for n in (1, 2, 3, 4)},
    **{
        f"model_utility_{name}_{part}": f"ModelUtility, retain_{part}"
        for name in ("{set}", "retain_paraphrased")
        for part in ("probability", "rouge", "truth_ratio")
    },
    **{f"token_gap_{kind}": f"TokenGap, {kind}" for kind in ("marked", "unmarked")},
    "forget_quality": "ForgetQuality, p_value",
    "neg_log10_forget_quality": "ForgetQuality, neg_log10",
    "forget_d_times_n": "ForgetQuality, d_times_n",
    "forget_quality_floor": "ForgetQuality, floor",
    "model_utility": "ModelUtility",
    "{set}_probability": "Probability",
    "{set}_probability_of_paraphrase": "Probability, paraphrase",
    "{set}_probability_normalised": "Probability, normalised",
    "verbmem": "VerbMem",
    "knowmem_forget": "KnowMem",
    "knowmem_retain": "KnowMem",
    "knowmem_shared": "KnowMem",
    "privleak_min_k_plus_plus": "PrivLeak, min_k_plus_plus",
    "retain_deviation": "RetainDeviation",
    "{set}_trace_rougeL_recall": "TraceRouge",
    "{set}_trace_step_rougeL_recall": "TraceRouge, step",
    "{set}_answer_rougeL_recall": "AnswerRouge",
    "{set}_unfinished_traces": "UnfinishedTraces",
    "{set}_accuracy": "ChoiceAccuracy, none",
    "{set}_accuracy_per_token": "ChoiceAccuracy, tokens",
    "{set}_accuracy_norm": "ChoiceAccuracy, characters",
    "extraction_strength": "ExtractionStrength",
    "exact_memorisation": "ExactMemorisation",
    "privleak": "PrivLeak",
    "abs_privleak": "PrivLeak, absolute",
    "{set}_empty_generations": "EmptyGenerations",
    "{set}_refusals": "Refusals",
    "{set}_stutter": "Stutter",
    "{set}_looped": "Looped",
    "{set}_still_said": "StillSaid",
    **{
        f"{{set}}_still_said_{kind}": f"StillSaid, {kind}" for kind in ("name", "number", "address")
    },
    "{set}_generation_perplexity": "GenerationPerplexity",
    "{set}_clean": "Gibberish",
    "utility_drop_target": "UtilityDrop",
    "utility_drop_retain": "UtilityDrop",
    "paper_aggregate_target": "PaperAggregate, target",
    "paper_aggregate_retain": "PaperAggregate, retain",
    "memorisation_score": "MemorisationScore",
    "privacy_score": "PrivacyScore",
    "utility_score": "UtilityScore",
    "unlearning_score": "UnlearningScore",
    "mean_token_probabilities": "TokenMean, probabilities",
    "mean_token_entropies": "TokenMean, entropies",
    "unlearning_depth": "UnlearningDepth",
}


def near(value):
    return pytest.approx(value, abs=1e-12, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_meter_gives_the_functions_number(name):
    """In parts of any size, one without rows; after a reset, a pickle and a cast too."""
    case = CASES[name]
    meter = case.make()
    for part in ((0, 3), (3, 3), (3, 4)):
        meter.update(*case.part(*part))
    meter = pickle.loads(pickle.dumps(meter)).to(torch.bfloat16).half()
    meter.set_dtype(torch.float16)
    meter.update(*case.part(4, 8))
    found = meter.compute()
    assert (found.dtype, found.shape) == (torch.float64, ())
    assert found.item() == near(case.expected)
    meter.reset()
    with pytest.raises(InputError), pytest.warns(UserWarning, match="before the ``update``"):
        meter.compute()
    meter.update(*case.part(0, 8))
    assert meter.compute().item() == near(case.expected)
    assert meter.clone().compute().item() == near(case.expected)


def test_every_number_of_the_catalogue_is_a_meter():
    unmet = {
        number
        for entry in CATALOGUE.values()
        for number in entry.emits
        if number.removesuffix("_paraphrased") not in METERS
        and number not in {*METERS, *NO_METER}
        and not number.startswith("token_auc_")
    }
    assert not unmet
    assert set(METERS.values()) <= set(CASES)
    assert {name.split(",")[0] for name in CASES} == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_every_meter_says_how_to_read_it(name):
    page = inspect.getdoc(getattr(meters, name))
    places = [
        page.find(f"\n{label}: ") for label in ("Range", "Direction", "Empty input", "Source")
    ]
    assert all(place > 0 for place in places)
    assert places == sorted(places)


# What ``update`` takes.


def test_fields_and_values_are_as_good_as_records():
    rows = rows_of("forget", 6, 3)
    width = max(len(row.token_matches) for row in rows)
    padded, mask = torch.full((6, width), 7), torch.zeros(6, width, dtype=torch.bool)
    for place, row in enumerate(rows):
        size = len(row.token_matches)
        padded[place, :size] = torch.tensor(row.token_matches)
        mask[place, :size] = True
    meter = meters.ExtractionStrength()
    expected = near(metrics.extraction_strength(rows).value)
    for given in (
        {"token_matches": padded, "mask": mask},
        {"token_matches": [row.token_matches for row in rows]},
        {"token_matches": [torch.tensor(row.token_matches) for row in rows]},
        torch.from_numpy(metrics.extraction_strength_values(rows)),
    ):
        meter.reset()
        meter.update(given)
        assert meter.compute().item() == expected


def test_tensors_of_both_sides():
    ours, theirs = (torch.tensor(metrics.truth_ratios(rows_of("forget", 9, n))) for n in (0, 1))
    meter = meters.ForgetQuality()
    meter.update(ours, theirs)
    assert meter.compute().item() == metrics.tofu.forget_quality_of(ours, theirs).p_value
    scores = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0])
    auc = meters.MembershipAUC("zlib")
    auc.update(*scores)
    assert auc.compute().item() == 0.625
    tokens = meters.TokenAUC()
    # 2 beats 1; 5 beats 1 and ties with 5; the last of the first row is padding.
    tokens.update(
        torch.tensor([[2.0, 1.0, 7.0], [1.0, 5.0, 5.0]]), torch.tensor([[1, 0, -1], [0, 0, 1]])
    )
    assert tokens.compute().item() == (2 + 2.5) / 6


def test_calling_a_meter_gives_the_batch_and_keeps_the_sum():
    rows = rows_of("forget", 8, 0)
    meter = meters.Probability()
    for part in (rows[:3], rows[3:]):
        assert meter(part).item() == near(metrics.probabilities(part).mean())
    assert meter.compute().item() == near(metrics.probabilities(rows).mean())


# Collections.


def test_meters_of_a_collection_stay_apart():
    """The first batch is 1 for all of them: torchmetrics would take equal states for one metric."""
    known = [
        replace(row, token_matches=(1,) * len(row.token_logps), generation="a b c d a b c d")
        for row in rows_of("forget", 2, 0)
    ]
    rows = rows_of("forget", 9, 1)
    apart = {
        "strength": meters.ExtractionStrength(),
        "memorisation": meters.ExactMemorisation(),
        "peer": meters.ExactMemorisation(metrics.memorisation.Conventions.peer()),
        "repetition": meters.Repetition(1),
        "distinct": meters.DistinctN(1),
        "other": meters.DistinctN(2),
    }
    collection = MetricCollection(dict(apart))
    collection.update(known)
    collection.update(rows)
    found = {name: value.item() for name, value in collection.compute().items()}
    for name, meter in apart.items():
        alone = meter.clone()
        alone.reset()
        alone.update([*known, *rows])
        assert found[name] == alone.compute().item(), name
    assert len(collection.compute_groups) == len(apart)


def test_a_collection_gives_each_meter_its_own_rows():
    forget, retain = rows_of("forget", 5, 0), rows_of("forget", 5, 1)
    retain = [replace(row, answer=one.answer) for row, one in zip(retain, forget, strict=True)]
    collection = MetricCollection([meters.ForgetQuality(), meters.MinK()])
    collection.update(forget=forget, retain_forget=retain, holdout=rows_of("holdout", 4, 0))
    found = collection.compute()
    assert found["ForgetQuality"].item() == metrics.forget_quality(forget, retain).p_value
    assert found["MinK"].item() == metrics.min_k_auc(forget, rows_of("holdout", 4, 0))


# In a module of anybody's.


class Anybodys(LightningModule):
    """Knows what it says of the rows whose numbers its batches hold."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.meters = torch.nn.ModuleDict({"repeated": meters.Repetition(1)})
        self.strength = meters.ExtractionStrength()

    def validation_step(self, batch, batch_idx):
        said = [self.rows[number] for number in batch.tolist()]
        self.meters["repeated"].update(said)
        self.strength({"token_matches": [torch.tensor(row.token_matches) for row in said]})
        self.log("repeated", self.meters["repeated"], batch_size=len(batch))
        self.log("strength", self.strength, batch_size=len(batch))


def test_lightning_logs_and_resets_a_meter():
    rows = rows_of("forget", 7, 0)
    module, trainer = Anybodys(rows), make_trainer(precision="bf16-true")
    batches = DataLoader(range(len(rows)), batch_size=4)
    for _ in range(2):
        trainer.validate(module, batches, verbose=False)
        found = {name: value.item() for name, value in trainer.callback_metrics.items()}
        assert found["repeated"] == near(metrics.repetition(rows, 1).value)
        assert found["strength"] == near(metrics.extraction_strength(rows).value)


# Refusals.


def tensor(*values):
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: meters.Repetition(5), "Repetition.n must be 1, 2, 3 or 4; got 5."),
        (lambda: meters.Rouge("rouge2"), r"Rouge.name must be .* or rougeL_f1; got 'rouge2'"),
        (lambda: meters.MembershipAUC("lira"), "MembershipAUC.attack must be loss, .*'lira'"),
        (lambda: meters.RelativeDifference("reference"), "RelativeDifference.attack must be"),
        (lambda: meters.ModelUtility("rouge"), "ModelUtility.part must be retain_probability, "),
        (lambda: meters.TruthRatio().update(tensor(1.0, float("nan"))), "row 1 must be finite"),
        (lambda: meters.TruthRatio().update(tensor([1.0])), r"one value a row, got \(1, 1\)"),
        (lambda: meters.VerbMem().update({"text": ["a"]}), "some of dataset, id, .*; got text"),
        (lambda: meters.VerbMem().update({}), "got none"),
        (
            lambda: meters.VerbMem().update({"answer": ["a"], "generation": ["a", "b"]}),
            "one entry a row; got 1 answer, 2 generation",
        ),
        (
            lambda: meters.ExactMemorisation().update(
                {"token_matches": tensor([1, 1]), "mask": tensor([1])}
            ),
            "mask must have the shape",
        ),
        (lambda: meters.Gibberish().update(tensor(0.5, 1.5)), "row 1 must be a probability"),
        (
            lambda: meters.ForgetQuality().update(tensor(1.0), tensor(1.0, 2.0)),
            "1 rows of the run and 2 of the retain model",
        ),
        (
            lambda: meters.ForgetQuality().update(rows_of("forget", 2, 0), rows_of("forget", 2, 1)),
            "both must score the same rows",
        ),
        (
            lambda: meters.PrivLeak(0.5).update(*[tensor(1.0)] * 4),
            "either retain_auc or .* got retain_auc 0.5 and retain_forget and retain_holdout",
        ),
        (
            lambda: meters.PrivLeak().update(tensor(1.0), tensor(1.0)),
            "got retain_auc None and no rows",
        ),
        (
            lambda: meters.ModelUtility().update(rows_of("forget", 1, 0)),
            "a record's set must be retain, real_authors or world_facts; got 'forget'",
        ),
        (lambda: meters.TokenAUC().update([[1.0]], [(True, None)]), r"weights of \[1\] tokens"),
        (
            lambda: meters.UnlearningDepth().update([[1.0, 2.0]], [[1.0]]),
            "the same rows and layers",
        ),
    ],
)
def test_what_cannot_be_used_is_named(act, said):
    with pytest.raises(InputError, match=said):
        act()


def test_a_refused_update_leaves_nothing():
    meter = meters.MembershipAUC("loss")
    with pytest.raises(InputError, match="answer_loss is missing"):
        meter.update(rows_of("forget", 2, 0), [replace(rows_of("h", 1, 0)[0], answer_loss=None)])
    meter.update(tensor(1.0), tensor(2.0))
    assert meter.compute().item() == 1.0


def test_a_set_that_was_not_given_is_named():
    meter = meters.PrivacyScore()
    meter.update(rows_of("forget", 2, 0), rows_of("forget", 2, 0))
    with pytest.raises(InputError, match="no rows of the set 'holdout' of the run model"):
        meter.compute()
