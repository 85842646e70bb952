"""Judges generated text with a sequence classifier of the user's choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from etw_lightning.files.foreign_models import NO_CODE, check_attention, check_weights, refusal
from etw_lightning.files.hub import hub_answers
from etw_lightning.files.misfit import refuse_misfit
from etw_lightning.models.weight_fit import read_report, without_reports
from etw_lightning.schema import InputError

__all__ = ["check_classifier", "clean_probabilities"]

_KEY = "gibberish_classifier"


def check_classifier(classifier: str, label: str = "clean") -> None:
    """Check what can be told without the weights, before anything is scored.

    Args:
        classifier: Folder or hub name.
        label: The label that stands for clean text.

    Raises:
        InputError: If there is no classifier, it has no such label or can't pad.
    """
    from transformers import AutoConfig

    with _loading(classifier) as (name, offline):
        config = AutoConfig.from_pretrained(name, local_files_only=offline, **NO_CODE)
        check_attention(config, classifier, _KEY)
        if Path(name).is_dir():
            check_weights(Path(name), _KEY, "AutoModelForSequenceClassification")
    _load_tokenizer(classifier)
    _place_of(label, config.id2label, classifier)


@torch.no_grad()
def clean_probabilities(
    texts: Sequence[str],
    classifier: str,
    *,
    label: str = "clean",
    batch_size: int = 32,
    max_length: int = 512,
    device: str | torch.device = "cpu",
) -> list[float]:
    """Return the probability of being clean that a classifier gives to each text, 0 to 1.

    Args:
        texts: What to judge, in any order; an empty text is judged too.
        classifier: Folder or hub name of a sequence classifier, such as
            ``madhurjindal/autonlp-Gibberish-Detector-492513457``.
        label: The label that stands for clean text, case aside.
        batch_size: Texts at a time.
        max_length: Tokens kept of a text.
        device: Where the classifier runs.

    Raises:
        InputError: If the classifier can't be loaded, or has no such label.
    """
    model, tokenizer = _load(classifier)
    place = _place_of(label, model.config.id2label, classifier)
    model = model.to(device).eval()
    # Longest first, so that texts of a batch are of one length; the order is undone below.
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    found = [0.0] * len(texts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [texts[row] for row in rows],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        logits = model(**batch.to(device)).logits.double()
        for row, value in zip(rows, logits.softmax(-1)[:, place].tolist(), strict=True):
            found[row] = value
    return found


def _load(classifier: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification

    tokenizer = _load_tokenizer(classifier)
    with _loading(classifier) as (name, offline), torch.device("cpu"):
        model, misfit = read_report(
            AutoModelForSequenceClassification,
            name,
            dtype=torch.float32,
            local_files_only=offline,
            use_safetensors=True,
            **NO_CODE,
        )
    refuse_misfit(misfit, classifier, _KEY, "give a sequence classifier, saved as one")
    # Models that read the last token find it by the padding after it.
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _load_tokenizer(classifier: str) -> Any:
    from transformers import AutoTokenizer

    with _loading(classifier) as (name, offline):
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=offline, **NO_CODE)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"{_KEY} {classifier!r} has a tokenizer without a padding token, and without an "
                "end token to pad with; set one in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _loading(classifier: str) -> Iterator[tuple[str, bool]]:
    """Give the name to load and whether to stay offline; a failure is one line."""
    from safetensors import SafetensorError

    is_folder = Path(classifier).expanduser().is_dir()
    name = str(Path(classifier).expanduser()) if is_folder else classifier
    offline = not is_folder and not hub_answers()
    try:
        with without_reports():
            yield name, offline
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if offline:
            reason = "the hub can't be reached and there is no local copy"
        reason = refusal(error) or reason
        raise InputError(
            f"{_KEY} {classifier!r} could not be loaded: {reason.rstrip('.')}. Give the folder of "
            "a sequence classifier with its tokenizer, or leave gibberish out of --metrics."
        ) from error


def _place_of(label: str, labels: dict[int, str], classifier: str) -> int:
    for place, name in labels.items():
        if name.lower() == label.lower():
            return int(place)
    raise InputError(
        f"{_KEY} {classifier!r} has no label {label!r}; its labels are "
        f"{', '.join(labels.values())}. Give a classifier that tells clean text from gibberish."
    )
