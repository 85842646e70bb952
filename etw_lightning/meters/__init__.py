"""Every number of ``metrics`` as a ``torchmetrics.Metric``, for any LightningModule or loop.

Thin over the pure functions: equal to them to 1e-12 however rows are spread over updates and
processes. ``update`` takes records of ``schema``, their fields as tensors and lists, or what the
number reads of each row as a tensor; see ``columns.as_records``.
"""

from etw_lightning.meters.aggregate import (
    MemorisationScore,
    PaperAggregate,
    PrivacyScore,
    UnlearningScore,
    UtilityDrop,
    UtilityScore,
)
from etw_lightning.meters.columns import MeanMeter, Meter, RecordMeter, as_records
from etw_lightning.meters.likelihoods import ChoiceAccuracy, Probability, TruthRatio
from etw_lightning.meters.membership import (
    MembershipAUC,
    MinK,
    PrivLeak,
    RelativeDifference,
    RetainDeviation,
)
from etw_lightning.meters.memorisation import ExactMemorisation, ExtractionStrength
from etw_lightning.meters.reasoning import AnswerRouge, TraceRouge, UnfinishedTraces
from etw_lightning.meters.repeated import LeakAtK, RefusalAgreement, RefusalStability
from etw_lightning.meters.sanity import Looped, Refusals, StillSaid, Stutter
from etw_lightning.meters.text import (
    DistinctN,
    EmptyGenerations,
    GenerationPerplexity,
    Gibberish,
    KnowMem,
    Repetition,
    Rouge,
    VerbMem,
)
from etw_lightning.meters.tofu import ForgetQuality, ModelUtility
from etw_lightning.meters.tokens import TokenAUC, TokenGap, TokenMean, UnlearningDepth

__all__ = [
    "AnswerRouge",
    "ChoiceAccuracy",
    "DistinctN",
    "EmptyGenerations",
    "ExactMemorisation",
    "ExtractionStrength",
    "ForgetQuality",
    "GenerationPerplexity",
    "Gibberish",
    "KnowMem",
    "LeakAtK",
    "Looped",
    "MeanMeter",
    "MembershipAUC",
    "MemorisationScore",
    "Meter",
    "MinK",
    "ModelUtility",
    "PaperAggregate",
    "PrivLeak",
    "PrivacyScore",
    "Probability",
    "RecordMeter",
    "RefusalAgreement",
    "RefusalStability",
    "Refusals",
    "RelativeDifference",
    "Repetition",
    "RetainDeviation",
    "Rouge",
    "StillSaid",
    "Stutter",
    "TokenAUC",
    "TokenGap",
    "TokenMean",
    "TraceRouge",
    "TruthRatio",
    "UnfinishedTraces",
    "UnlearningDepth",
    "UnlearningScore",
    "UtilityDrop",
    "UtilityScore",
    "VerbMem",
    "as_records",
]
