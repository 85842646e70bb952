"""The card of a trained model: what it is, how it came about, how it scored, what it is not.

Names and settings come from users, files and the hub: none of them is ever markup.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from etw_lightning.schema import EncodedRow

__all__ = ["Base", "card_text", "find_licence", "rows_fingerprint", "write_card"]

_REPOSITORY = "README.md"
#: Numbers that stand first; all others are folded away below them.
_HEADLINES = (
    "forget_quality",
    "forget_d_times_n",
    "forget_quality_floor",
    "model_utility",
    "verbmem",
    "knowmem_forget",
    "knowmem_retain",
    "forget_probability",
    "retain_probability",
    "forget_rougeL_recall",
    "forget_truth_ratio_closer_to_one",
    "extraction_strength",
    "exact_memorisation",
    "mia_min_k",
    "privleak",
)
_BETTER = {
    "up": "higher",
    "down": "lower",
    "zero": "nearest to 0",
    "retain": "nearest to the retain model's",
    "none": "",
}
#: Settings that decide the weights.
_METHOD: Mapping[str, tuple[str, ...]] = {
    "model": (
        "weighting",
        "forget",
        "retain",
        "forget_weight",
        "retain_weight",
        "forget_unit",
        "surgery",
        "surgery_average",
        "surgery_geometry",
        "reduction",
        "reference",
        "lr",
        "optimizer",
        "weight_decay",
        "schedule",
        "warmup",
        "peft",
        "train_only",
        "freeze_embeddings",
        "dtype",
    ),
    "data": ("batch_size", "anchor", "template", "max_length"),
    "trainer": ("max_epochs", "max_steps", "accumulate_grad_batches", "precision"),
}
_LIMITS = """\
* **Not for proof that something is gone.** Unlearning is not a guarantee: that a model no longer
  says something under these tests does not mean that no prompt, no further training and no look at
  its states brings it back. It meets no legal duty to delete by itself.
* The numbers hold for the rows and the template named here. p-values of other n don't compare.
* What the base model does wrong, this one does as well, and its use is bound by the base model's
  licence and by that of the data."""


@dataclass(frozen=True)
class Base:
    """The model that training started from.

    Args:
        name: As the user gave it.
        identity: Hash of its weights, or name and revision on the hub; None if not known.
        licence: As its own card names it; None if not known.
    """

    name: str
    identity: str | None = None
    licence: str | None = None


def write_card(
    folder: Path,
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    base: Base,
    fingerprints: Mapping[str, tuple[int, str]],
) -> Path:
    """Write the card of a model into its folder.

    Args:
        folder: The model's.
        results: What the run's ``results.json`` holds.
        config: The run's whole configuration.
        base: What training started from.
        fingerprints: Rows of each stream that was trained on, and their fingerprint.
    """
    from huggingface_hub import ModelCard, ModelCardData

    takes_away = config["model"].get("forget") is not None
    data = ModelCardData(
        license=base.licence,
        base_model=base.name if _is_hub_name(base.name) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["etw_lightning", "unlearning" if takes_away else "fine-tuning"],
    )
    text = card_text(results, config, base, fingerprints)
    path = folder / _REPOSITORY
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False).save(path)
    return path


def card_text(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    base: Base,
    fingerprints: Mapping[str, tuple[int, str]],
) -> str:
    """Return the body of the card, as Markdown; arguments as of ``write_card``."""
    takes_away = config["model"].get("forget") is not None
    done = "has unlearned a forget set" if takes_away else "was fine-tuned"
    licence = f"licence {_plain(base.licence)}" if base.licence else "its licence is not known here"
    known = f", weights {_plain(base.identity)}" if base.identity else ""
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    commit = results.get("git_commit")
    blocks = [
        "# A model that " + done,
        f"From {_plain(base.name)} ({licence}{known}), by etw\\_lightning, "
        f"{results['steps']} optimiser steps, seed {results['seed']}.",
        "## What it must not be taken for",
        _LIMITS,
        "## Method",
        _indented(_method(config)),
        "## Data",
        "\n".join(_data(results, config, fingerprints)),
        "## Results",
        *_results(results),
        "## Made with",
        f"{_plain(versions)}; configuration {_plain(results['config_hash'])}"
        + (f"; commit {_plain(commit)}." if commit else "."),
    ]
    return "\n\n".join(blocks) + "\n"


def rows_fingerprint(rows: Sequence[EncodedRow]) -> str:
    """Return a hash of rows as they are trained on: tokens and labels; 24 hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([list(row.input_ids), list(row.labels)]).encode())
    return digest.hexdigest()[:24]


def find_licence(pretrained: str) -> str | None:
    """Return the licence that a model's own card or GGUF file names; no connection is tried.

    Args:
        pretrained: Hub name, folder, ``.gguf`` file or checkpoint.
    """
    from huggingface_hub import try_to_load_from_cache

    path = Path(pretrained).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        from gguf import GGUFReader

        entry = GGUFReader(path).get_field("general.license")
        return str(entry.contents()) if entry is not None else None
    card: Any = path / _REPOSITORY
    if _is_hub_name(pretrained):
        card = try_to_load_from_cache(pretrained, _REPOSITORY)
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    head = re.match(r"---\r?\n(.*?)\r?\n---", Path(card).read_text("utf-8", "replace"), re.DOTALL)
    try:
        said = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return None
    licence = said.get("license") if isinstance(said, dict) else None
    return licence if isinstance(licence, str) else None


def _is_hub_name(pretrained: str) -> bool:
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained) is not None
    return is_name and not Path(pretrained).exists()


def _method(config: Mapping[str, Any]) -> str:
    """Return the settings that decide the weights, as YAML."""
    parts = {
        name: {key: config[name][key] for key in keys if config[name].get(key) is not None}
        for name, keys in _METHOD.items()
    }
    plain = json.loads(json.dumps(parts, default=str))
    return str(yaml.safe_dump(plain, sort_keys=False, width=90))


def _data(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    fingerprints: Mapping[str, tuple[int, str]],
) -> Iterator[str]:
    data = config["data"]
    source = next((data[key] for key in ("root", "hub") if data.get(key)), None)
    yield f"{_plain(data['benchmark'])}" + (f", from {_plain(source)}" if source else "") + "."
    yield ""
    yield "| rows | split | number | fingerprint |"
    yield "| --- | --- | --- | --- |"
    for name, (count, mark) in fingerprints.items():
        key = "split" if data.get("split") else f"{name}_split"
        yield f"| trained on: {name} | {_plain(data.get(key) or '')} | {count} | {mark} |"
    for name, one in results["provenance"]["sets"].items():
        yield f"| scored: {_plain(name)} | | {one['rows']} | {_plain(one['hash'])} |"


def _results(results: Mapping[str, Any]) -> Iterator[str]:
    numbers = results["metrics"]
    first = [name for name in _HEADLINES if name in numbers]
    others = [name for name in numbers if name not in first]
    if not numbers:
        yield "The run scored nothing."
        return
    if results.get("retain_results"):
        yield "Compared with a retain model: one that was trained without the forget set."
    if first:
        yield _table(numbers, first)
    if others:
        yield "<details><summary>All other numbers</summary>"
        yield _table(numbers, others)
        yield "</details>"


def _table(numbers: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    lines = ["| number | value | 95 % interval | better | n |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        one = numbers[name]
        between = one.get("interval")
        span = " to ".join(_number(end) for end in between) if between else ""
        lines.append(
            f"| {_plain(name)} | {_number(one['value'])} | {span} | "
            f"{_BETTER[one['direction']]} | {one['n']} |"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _plain(text: Any) -> str:
    """Return a text as one line in which nothing is markup, however it is read."""
    line = " ".join(str(text).split())
    line = line if len(line) <= 200 else f"{line[:197]}..."
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", line)


def _indented(text: str) -> str:
    """Return a block of code: no line of it can end the block."""
    return "\n".join(f"    {line}" for line in text.splitlines())
