"""Every meter with rows to update it with, in any parts, and the pure function's number."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from etw_lightning import meters, metrics
from etw_lightning.catalogue.entries import Given
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.catalogue.token_weights import weights_from_records
from etw_lightning.metrics.depth import unlearning_depth
from etw_lightning.metrics.token_probabilities import probability_gap, token_histograms, token_rows
from etw_lightning.schema import Conventions, Record
from etw_lightning.weighting import ETW

PEER = Conventions.peer()
_WORDS = ("the", "town", "of", "Quillmere", "lies", "by", "a", "river", "loved", "books")
_UTILITY = ("retain", "real_authors", "world_facts")
#: Rows with 2, 1, 2 and 0 items, of which 1, 0, 1 and 0 are said.
_FACTS = (
    {"answer": "They live in Rome since 1990.", "generation": "In rome, they say."},
    {"answer": "Write to mara@venn.org now.", "generation": "Write to mara now."},
    {"answer": "They left Turin in 1958.", "generation": "It was 1958."},
    {"answer": "They love old books.", "generation": "They love old books."},
)


class Case(NamedTuple):
    """A meter, what it is updated with, and what it must give.

    Args:
        make: Returns the meter.
        inputs: Arguments of ``update``, each with one entry a row (or a mapping of such).
        expected: The number of all rows.
    """

    make: Any
    inputs: tuple[Any, ...]
    expected: float

    def part(self, start, stop):
        """Return the arguments for a share of the rows, ``start`` to ``stop`` in eighths."""
        return tuple(_cut(one, start, stop) for one in self.inputs)


def _cut(rows, start, stop):
    if isinstance(rows, dict):
        return {name: _cut(values, start, stop) for name, values in rows.items()}
    return rows[len(rows) * start // 8 : len(rows) * stop // 8]


def rows_of(dataset, count, seed):
    """Return records with every field, of 2 to 9 tokens."""
    draw = np.random.default_rng([seed, *dataset.encode()])
    records = []
    for row in range(count):
        words = [str(word) for word in draw.choice(_WORDS, draw.integers(1, 9))]
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        spans = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
        answer, size = " ".join(words), len(words) + 1
        said = " ".join(str(word) for word in draw.choice(_WORDS[:3], draw.integers(0, 20)))
        records.append(
            Record(
                dataset,
                f"{dataset}/x{row}",
                answer,
                question=words[-1],
                answer_loss=float(draw.exponential()),
                paraphrase_loss=float(draw.exponential()),
                perturbed_losses=tuple(draw.exponential(size=3).tolist()),
                token_logps=tuple((-draw.exponential(size=size)).tolist()),
                token_entropies=tuple(draw.exponential(size=size).tolist()),
                token_variances=tuple(draw.exponential(size=size).tolist()),
                token_matches=tuple(draw.integers(0, 2, size).tolist()),
                token_spans=(*spans, (len(answer), len(answer))),
                gradient_norm=float(draw.exponential()),
                generation=said or "by the river",
                paraphrase=f"Well, {answer}",
                choices=(" abcdef", " bc", " d"),
                choice_logps=tuple((-draw.exponential(size=3)).tolist()),
                choice_num_tokens=(2, 1, 3),
                right_choice=int(draw.integers(3)),
            )
        )
    return records


def said_by(records, seed):
    """Return the same rows as another model scores them."""
    others = rows_of(f"other{seed}", len(records), seed)
    fields = ("answer_loss", "paraphrase_loss", "perturbed_losses", "generation", "gradient_norm")
    found = []
    for record, other in zip(records, others, strict=True):
        draw = np.random.default_rng([seed, len(found)])
        size = len(record.token_logps)
        found.append(
            replace(
                record,
                **{name: getattr(other, name) for name in fields},
                token_logps=tuple((-draw.exponential(size=size)).tolist()),
                token_entropies=tuple(draw.exponential(size=size).tolist()),
                token_matches=tuple(draw.integers(0, 2, size).tolist()),
            )
        )
    return found


def _knows(record):
    """Return a row as a model says it that knows it well."""
    return replace(
        record,
        paraphrase_loss=record.paraphrase_loss / 9,
        perturbed_losses=tuple(3 + loss for loss in record.perturbed_losses),
        token_matches=(0, *[1] * (len(record.token_logps) - 1)),
    )


def make_cases():
    """Return the cases by name."""
    sets = ("forget", "forget_paraphrased", "holdout", *_UTILITY)
    run = {name: rows_of(name, 17 + 2 * place, 0) for place, name in enumerate(sets)}
    retain, target = ({name: said_by(rows, seed) for name, rows in run.items()} for seed in (1, 2))
    target["forget_paraphrased"] = list(map(_knows, target["forget_paraphrased"]))
    forget, holdout = run["forget"], run["holdout"]
    run["forget"][3] = replace(forget[3], generation=" ")
    cases: dict[str, Case] = {}

    # A mean of one value a row.
    means = {
        "Probability": (
            meters.Probability,
            metrics.Metric.mean(metrics.probabilities(forget), "down"),
        ),
        "Probability, paraphrase": (
            partial(meters.Probability, "paraphrase"),
            metrics.Metric.mean(metrics.paraphrase_probabilities(forget), "down"),
        ),
        "Probability, normalised": (
            partial(meters.Probability, "normalised"),
            metrics.Metric.mean(metrics.normalised_probabilities(forget), "down"),
        ),
        "VerbMem": (meters.VerbMem, metrics.verbmem(forget)),
        "VerbMem, peer": (partial(meters.VerbMem, PEER), metrics.verbmem(forget, PEER)),
        "KnowMem": (meters.KnowMem, metrics.knowmem(forget, "down")),
        "ExtractionStrength": (meters.ExtractionStrength, metrics.extraction_strength(forget)),
        "ExtractionStrength, peer": (
            partial(meters.ExtractionStrength, PEER),
            metrics.extraction_strength(forget, PEER),
        ),
        "ExactMemorisation": (meters.ExactMemorisation, metrics.exact_memorisation(forget)),
        "ExactMemorisation, peer": (
            partial(meters.ExactMemorisation, PEER),
            metrics.exact_memorisation(forget, PEER),
        ),
        "Refusals": (meters.Refusals, metrics.refusals(forget)),
        "Stutter": (meters.Stutter, metrics.stuttering_generations(forget)),
        "Looped": (meters.Looped, metrics.looped_generations(forget)),
        "EmptyGenerations": (meters.EmptyGenerations, metrics.empty_generations(forget)),
        "GenerationPerplexity": (
            meters.GenerationPerplexity,
            metrics.generation_perplexity(forget),
        ),
    }
    for name in ("none", "tokens", "characters"):
        make = partial(meters.ChoiceAccuracy, name)
        means[f"ChoiceAccuracy, {name}"] = (make, metrics.choice_accuracy(forget, name))
    for name in ("closer_to_one", "true_better", "mean_probability"):
        make = partial(meters.TruthRatio, name)
        means[f"TruthRatio, {name}"] = (make, metrics.truth_ratio(forget, name))
    for name in ("rouge1_recall", "rouge1_f1", "rougeL_recall", "rougeL_f1"):
        for against in ("answer", "paraphrase"):
            make = partial(meters.Rouge, name, against)
            means[f"Rouge, {name}, {against}"] = (make, metrics.rouge(forget, name, against))
    for n in (1, 2, 3, 4):
        make = partial(meters.Repetition, n)
        means[f"Repetition, {n}"] = (make, metrics.repetition(forget, n))
        make = partial(meters.DistinctN, n)
        means[f"DistinctN, {n}"] = (make, metrics.distinct_n(forget, n))
    facts = [replace(row, **_FACTS[place % 4]) for place, row in enumerate(forget)]
    cases |= {
        "StillSaid": Case(meters.StillSaid, (facts,), 9 / 22),
        "StillSaid, name": Case(partial(meters.StillSaid, "name"), (facts,), 5 / 9),
        "StillSaid, number": Case(partial(meters.StillSaid, "number"), (facts,), 4 / 9),
        "StillSaid, address": Case(partial(meters.StillSaid, "address"), (facts,), 0 / 4),
    }
    # Of every third row the trace does not end.
    thought = [
        replace(
            row,
            answer=f"{row.answer} The mill was old. Nobody knew it.\n</think>\n\n{row.answer}",
            generation=f"Nobody knew the mill. {row.generation}"
            + ("" if place % 3 == 0 else f"\n</think>\n\n{row.generation}"),
        )
        for place, row in enumerate(forget)
    ]
    cases |= {
        name: Case(make, (thought,), found.value)
        for name, make, found in (
            ("TraceRouge", meters.TraceRouge, metrics.trace_rouge(thought, "down")),
            (
                "TraceRouge, step",
                partial(meters.TraceRouge, "step"),
                metrics.trace_step_rouge(thought, "down"),
            ),
            ("AnswerRouge", meters.AnswerRouge, metrics.answer_rouge(thought, "down")),
            ("UnfinishedTraces", meters.UnfinishedTraces, metrics.unfinished_traces(thought)),
        )
    }
    # Of each fact twice what was said of it, and once what was said of another.
    said = [
        replace(row, generation=facts[(place + (time == 2)) % len(facts)].generation)
        for time in range(3)
        for place, row in enumerate(facts)
    ]
    refused = [
        replace(row, generation="No idea.") if n % 5 == 1 else row for n, row in enumerate(said)
    ]
    cases |= {
        "LeakAtK": Case(partial(meters.LeakAtK, 1), (said,), metrics.leakage(said, 1).value),
        "LeakAtK, 2": Case(
            partial(meters.LeakAtK, 2, 0.5),
            (said,),
            metrics.leakage(said, 2, partial(metrics.leaks, threshold=0.5)).value,
        ),
        "RefusalAgreement": Case(
            meters.RefusalAgreement, (refused,), metrics.refusal_agreement(refused).value
        ),
        "RefusalStability": Case(
            meters.RefusalStability, (refused,), metrics.refusal_stability(refused).value
        ),
    }
    cases |= {name: Case(make, (forget,), one.value) for name, (make, one) in means.items()}
    clean = torch.linspace(0, 1, 13, dtype=torch.float64)
    cases["Gibberish"] = Case(meters.Gibberish, (clean,), metrics.gibberish(clean.tolist()).value)

    # Two sides.
    references = (retain["forget"], retain["holdout"])
    for attack in metrics.ATTACKS:
        pair = (forget, holdout, *(references if attack == "reference" else ()))
        others = references if attack == "reference" else None
        expected = metrics.attack_auc(forget, holdout, attack, reference=others).value
        cases[f"MembershipAUC, {attack}"] = Case(
            partial(meters.MembershipAUC, attack), pair, expected
        )
    cases["MinK"] = Case(meters.MinK, (forget, holdout), metrics.min_k_auc(forget, holdout))
    cases["MinK, peer"] = Case(
        partial(meters.MinK, conventions=PEER),
        (forget, holdout),
        metrics.min_k_auc(forget, holdout, PEER),
    )
    four = (forget, holdout, *references)
    auc = metrics.min_k_auc(*references)
    leak = metrics.privleak(forget, holdout, auc)
    cases["PrivLeak"] = Case(meters.PrivLeak, four, leak.value)
    cases["PrivLeak, given"] = Case(partial(meters.PrivLeak, auc), (forget, holdout), leak.value)
    cases["PrivLeak, absolute"] = Case(
        partial(meters.PrivLeak, absolute=True), four, metrics.abs_privleak(leak).value
    )
    ours, theirs = (metrics.attack_auc(*p, "min_k_plus_plus") for p in (four[:2], references))
    cases["PrivLeak, min_k_plus_plus"] = Case(
        partial(meters.PrivLeak, attack="min_k_plus_plus"),
        four,
        metrics.privleak_from_auc(ours, theirs.value).value,
    )
    cases["RetainDeviation"] = Case(
        meters.RetainDeviation, four, metrics.retain_deviation(ours, theirs.value).value
    )
    for attack in metrics.PRIVACY_ATTACKS:
        ours, theirs = (metrics.attack_auc(*pair, attack) for pair in (four[:2], references))
        cases[f"RelativeDifference, {attack}"] = Case(
            partial(meters.RelativeDifference, attack),
            four,
            metrics.relative_difference(ours, theirs.value).value,
        )

    def all_of(said, *names):
        # Every set has its rows in every eighth.
        return [
            row
            for eighth in range(8)
            for name in names
            for row in _cut(said[name], eighth, eighth + 1)
        ]

    # TOFU's.
    quality = metrics.forget_quality(forget, retain["forget"])
    for name in ("p_value", "neg_log10", "d_times_n", "floor"):
        cases[f"ForgetQuality, {name}"] = Case(
            partial(meters.ForgetQuality, name),
            (forget, retain["forget"]),
            getattr(quality, name),
        )
    kept, start = all_of(run, *_UTILITY), all_of(target, *_UTILITY)
    utility = metrics.model_utility(run)
    cases["ModelUtility"] = Case(meters.ModelUtility, (kept,), utility.value)
    for part, value in utility.parts.items():
        cases[f"ModelUtility, {part}"] = Case(partial(meters.ModelUtility, part), (kept,), value)

    # Tokens and layers.
    spans = [((0, 4), (6, 9)) for _ in forget]
    marks = metrics.mark_tokens(forget, spans)
    weights = weights_from_records(ETW(), forget)
    auc_of_tokens = metrics.token_auc(weights, marks)
    for name, per_row in (("pooled", False), ("per_row", True)):
        expected = getattr(auc_of_tokens, name)
        cases[f"TokenAUC, {name}"] = Case(
            partial(meters.TokenAUC, per_row), (weights, marks), expected
        )
        cases[f"TokenAUC, {name}, records"] = Case(
            lambda per_row=per_row: meters.TokenAUC(per_row, ETW()), (forget, marks), expected
        )
    gap = probability_gap(token_rows(forget, retain["forget"], marks))
    for name in ("marked", "unmarked"):
        cases[f"TokenGap, {name}"] = Case(
            partial(meters.TokenGap, name),
            (forget, retain["forget"], marks),
            getattr(gap, name),
        )
    histograms = token_histograms(forget)
    for name in ("probabilities", "entropies"):
        one = histograms[f"token_{name}"]
        cases[f"TokenMean, {name}"] = Case(
            partial(meters.TokenMean, name), (forget,), one.total / sum(one.counts)
        )
    deltas = [np.random.default_rng(seed).normal(1, 1, (11, 5)).tolist() for seed in (5, 6)]
    deltas[0][4] = deltas[1][4] = []
    cases["UnlearningDepth"] = Case(
        meters.UnlearningDepth, tuple(deltas), unlearning_depth(*deltas).value
    )

    # Made of others.
    given = Given(
        run,
        retain=retain,
        target=target,
        clean={"run": {"forget": clean.tolist()}, "target": {"forget": clean.flip(0).tolist()}},
    )

    def computed(entry, name=None):
        return CATALOGUE[entry].compute(given, CATALOGUE[entry].sets["tofu"])[name or entry].value

    cases["UtilityDrop"] = Case(
        meters.UtilityDrop, (kept, start), computed("utility_drop_target", "utility_drop_target")
    )
    cases["UtilityScore"] = Case(
        meters.UtilityScore,
        (kept, start, clean, clean.flip(0)),
        computed("unlearning_score", "utility_score"),
    )
    cases["PaperAggregate, target"] = Case(
        meters.PaperAggregate,
        (all_of(run, "forget", *_UTILITY), retain["forget"], start),
        computed("utility_drop_target", "paper_aggregate_target"),
    )
    cases["PaperAggregate, retain"] = Case(
        partial(meters.PaperAggregate, "retain"),
        (all_of(run, "forget", *_UTILITY), all_of(retain, "forget", *_UTILITY)),
        computed("utility_drop_retain", "paper_aggregate_retain"),
    )
    cases["MemorisationScore"] = Case(
        meters.MemorisationScore,
        (run["forget_paraphrased"], target["forget_paraphrased"]),
        computed("memorisation_score"),
    )
    cases["PrivacyScore"] = Case(
        meters.PrivacyScore,
        (all_of(run, "forget", "holdout"), all_of(retain, "forget", "holdout")),
        computed("privacy_score"),
    )
    cases["UnlearningScore"] = Case(
        meters.UnlearningScore,
        (
            all_of(run, *sets),
            all_of(retain, "forget", "holdout"),
            all_of(target, "forget_paraphrased", *_UTILITY),
            clean,
            clean.flip(0),
        ),
        computed("unlearning_score"),
    )
    return cases
