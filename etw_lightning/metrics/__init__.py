"""Pure functions from records to numbers; no model, no tokenizer, no file.

Losses and log-probabilities are in nats, shapes use ``B`` for rows. Probabilities, ROUGE, truth
ratios and model utility are fractions; MUSE's three numbers are percent. Everything is computed in
float64, also where a published log was made in float32: that moves a probability by 1e-7 of itself
and model utility by less than 1e-8.

Empty input, a missing field, NaN and infinity are an ``InputError`` that names set and row: nothing
is skipped and nothing is replaced. The widely used code (open-unlearning) leaves such rows out of
the mean without a word; no log we hold has one, so no published number differs for it.
"""

from etw_lightning.metrics.aggregate import (
    PRIVACY_ATTACKS,
    abs_privleak,
    membership_similarity,
    memorisation_score,
    neg_log10_forget_quality,
    paper_aggregate,
    privacy_score,
    unlearning_score,
    utility_drop,
    utility_score,
)
from etw_lightning.metrics.attacks import (
    ATTACKS,
    Attack,
    attack_scores,
    min_k_plus_plus_score,
    min_k_score,
)
from etw_lightning.metrics.choice import choice_accuracy, choice_hits, wilson_interval
from etw_lightning.metrics.depth import UnlearningDepthResult, unlearning_depth
from etw_lightning.metrics.fluency import (
    distinct_n,
    empty_generations,
    generation_perplexity,
    generations_as_examples,
    gibberish,
    repetition,
    repetition_values,
)
from etw_lightning.metrics.likelihoods import (
    TruthRatioName,
    closer_to_one,
    mean_probability,
    normalised_probabilities,
    paraphrase_probabilities,
    probabilities,
    true_better,
    truth_probabilities,
    truth_ratio,
    truth_ratios,
)
from etw_lightning.metrics.membership import (
    attack_auc,
    auc_of_scores,
    min_k_auc,
    privleak,
    privleak_from_auc,
    relative_difference,
    retain_deviation,
)
from etw_lightning.metrics.memorisation import (
    exact_memorisation,
    exact_memorisation_values,
    extraction_strength,
    extraction_strength_values,
)
from etw_lightning.metrics.reasoning import (
    answer_rouge,
    trace_rouge,
    trace_step_rouge,
    unfinished_traces,
)
from etw_lightning.metrics.repeated import (
    expected_highest,
    leak_at_k,
    leakage,
    leaks,
    refusal_agreement,
    refusal_shares,
    refusal_stability,
)
from etw_lightning.metrics.sanity import looped_generations, refusals, stuttering_generations
from etw_lightning.metrics.still_said import still_said
from etw_lightning.metrics.text import (
    RougeName,
    knowmem,
    rouge,
    rouge_scores,
    rouge_values,
    verbmem,
)
from etw_lightning.metrics.tofu import (
    ForgetQualityResult,
    ModelUtilityResult,
    forget_quality,
    forget_quality_floor,
    model_utility,
)
from etw_lightning.metrics.token_probabilities import (
    Histogram,
    ProbabilityGapResult,
    TokenRow,
    probability_gap,
    token_histograms,
    token_rows,
)
from etw_lightning.metrics.tokens import Marks, TokenAUCResult, mark_tokens, token_auc
from etw_lightning.metrics.values import Direction, Metric, harmonic_mean

__all__ = [
    "ATTACKS",
    "PRIVACY_ATTACKS",
    "Attack",
    "Direction",
    "ForgetQualityResult",
    "Histogram",
    "Marks",
    "Metric",
    "ModelUtilityResult",
    "ProbabilityGapResult",
    "RougeName",
    "TokenAUCResult",
    "TokenRow",
    "TruthRatioName",
    "UnlearningDepthResult",
    "abs_privleak",
    "answer_rouge",
    "attack_auc",
    "attack_scores",
    "auc_of_scores",
    "choice_accuracy",
    "choice_hits",
    "closer_to_one",
    "distinct_n",
    "empty_generations",
    "exact_memorisation",
    "exact_memorisation_values",
    "expected_highest",
    "extraction_strength",
    "extraction_strength_values",
    "forget_quality",
    "forget_quality_floor",
    "generation_perplexity",
    "generations_as_examples",
    "gibberish",
    "harmonic_mean",
    "knowmem",
    "leak_at_k",
    "leakage",
    "leaks",
    "looped_generations",
    "mark_tokens",
    "mean_probability",
    "membership_similarity",
    "memorisation_score",
    "min_k_auc",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "neg_log10_forget_quality",
    "normalised_probabilities",
    "paper_aggregate",
    "paraphrase_probabilities",
    "privacy_score",
    "privleak",
    "privleak_from_auc",
    "probabilities",
    "probability_gap",
    "refusal_agreement",
    "refusal_shares",
    "refusal_stability",
    "refusals",
    "relative_difference",
    "repetition",
    "repetition_values",
    "retain_deviation",
    "rouge",
    "rouge_scores",
    "rouge_values",
    "still_said",
    "stuttering_generations",
    "token_auc",
    "token_histograms",
    "token_rows",
    "trace_rouge",
    "trace_step_rouge",
    "true_better",
    "truth_probabilities",
    "truth_ratio",
    "truth_ratios",
    "unfinished_traces",
    "unlearning_depth",
    "unlearning_score",
    "utility_drop",
    "utility_score",
    "verbmem",
    "wilson_interval",
]
