"""What a model has been found to say of a run's evaluation sets before."""

from __future__ import annotations

from collections.abc import Callable

from etw_lightning.catalogue.entries import Part
from etw_lightning.scoring.cache.journals import Known, known_scores
from etw_lightning.scoring.cache.keys import model_identity, score_keys
from etw_lightning.scoring.parts import with_parts
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.scoring_module import Scores

__all__ = ["find_known"]

#: What is said of a part of which no row is missing.
_ALL = "read from cache"


def find_known(
    pretrained: str,
    data: UnlearningDataModule,
    precision: str,
    *,
    whole: bool,
    say: Callable[[str], None],
) -> tuple[Scores, dict[tuple[str, Part], str]]:
    """Look up what has been scored of a model before, and say so.

    Sets of which all is known share a line; one of which some is has its own.

    Args:
        pretrained: The model.
        data: With its evaluation sets.
        precision: Of the weights and of the run, in words.
        whole: Take parts of sets only if no row is missing.
        say: Takes the lines.

    Returns:
        The scores, and the keys under which the missing ones are to be kept.
    """
    identity = model_identity(pretrained)
    known: Scores = {}
    keys: dict[tuple[str, Part], str] = {}
    whole_sets = []
    for name, eval_set in data.eval_sets.items():
        said = []
        for part, key in score_keys(identity, eval_set, data.encoder, precision).items():
            keys[name, part] = key
            found = known_scores(key, with_parts(eval_set, [part]))
            if found.damage:
                say(f"{name}: {found.damage} can't be read; what they held is scored again")
            takes = bool(found.scores) and not (whole and found.pending)
            if takes:
                known[name, part] = found.scores
            said.append(f"{part} {_how(found if takes else None, len(eval_set.examples))}")
        if all(one.endswith(f" {_ALL}") for one in said):
            whole_sets.append(name)
        elif any(name == known_name for known_name, _ in known):
            say(f"{name}: {', '.join(said)}")
    if whole_sets:
        say(f"{_ALL}: what the model says of {', '.join(whole_sets)}")
    return known, keys


def _how(found: Known | None, n: int) -> str:
    if found is None:
        return "scored"
    if not found.pending:
        return _ALL
    return (
        f"of {n - len(found.pending)} of {n} rows read from cache, of {len(found.pending)} scored"
    )
