"""What a run with ``model.reference: cache`` asks the target model before its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from etw_lightning.kernels.distributions import TopLogps
from etw_lightning.kernels.signals import Signal, TokenSignals
from etw_lightning.models.loading import LabelScorer
from etw_lightning.training.references.model import (
    ReferenceModel,
    ReferenceValues,
    Wanted,
    check_tokens,
)
from etw_lightning.training.references.values import reference_values
from etw_lightning.training.strategies import computing_precision, engine_dtype, place_whole

if TYPE_CHECKING:
    from etw_lightning.training.datamodule import UnlearningDataModule
    from etw_lightning.training.prepared_module import PreparedModule

__all__ = ["make_references", "with_values"]

_ENTROPIES: frozenset[Signal] = frozenset({"reference_entropies"})


def make_references(module: PreparedModule, data: UnlearningDataModule, trainer: Any) -> None:
    """Read the target model's values of the training rows, or compute and keep them.

    Before the processes of a run meet, whichever of a machine's comes first computes them and
    the others wait for its file.

    Args:
        module: Of the run; says what its method reads.
        data: Loaded; its batches hold the values from now on.
        trainer: Whose device and precision they are computed in.

    Raises:
        InputError: As ``reference_values``; if the tokens of ``model.entropy_model`` are not the
            run's.
    """
    needs = module.method.reference_needs
    if module.reference != "cache" or data.references or not needs:
        return
    is_whole = module.scorer is not None and module.layout == "whole"
    whole = module.scorer if is_whole else module.loaded_ahead
    # Weights that are cast on the way can't be trained with afterwards.
    own = whole if engine_dtype(trainer) is None else None
    target = _target_model(module, data, trainer, own)
    own_needs = needs if module.entropy_model is None else _without_entropies(needs)
    with target:
        found = _values_of(target, own_needs, module, data)
    if module.entropy_model is not None:
        key = "model.entropy_model"
        other = replace(target, pretrained=module.entropy_model, key=key, load=None, identify=None)
        for group, values in _entropies_of(other, module, data).items():
            known = found[group].values if group in found else {}
            found[group] = ReferenceValues(values.offsets, {**known, **values.values})
    data.references = found
    if own is not None:
        own.train()
    if module.loaded_ahead is not None:
        module.loaded_ahead.cpu()


def _target_model(
    module: PreparedModule, data: UnlearningDataModule, trainer: Any, own: LabelScorer | None
) -> ReferenceModel:
    """Return the target model, which is the trained one before its first step where that will do.

    Args:
        module: Of the run.
        data: Loaded.
        trainer: Whose device and precision it runs in.
        own: The trained model; None for one that can't be asked.
    """

    def place(scorer: LabelScorer) -> LabelScorer:
        return place_whole(trainer, scorer)

    def untrained() -> LabelScorer:
        if own is not None:
            return place(own.eval())
        assert module.given is not None
        return place(LabelScorer(module.given.lm, module.chunk_size).frozen_copy())

    return ReferenceModel(
        module.pretrained,
        dtype=module.dtype_name,
        precision=computing_precision(trainer),
        attention=module.attention,
        chunk_size=module.chunk_size,
        template=data.train_encoder.content_key,
        context=trainer.precision_plugin.forward_context,
        place=place,
        load=None if own is None and module.given is None else untrained,
        identify=None if module.given is None else module.given.identity,
        shows_progress=trainer.progress_bar_callback is not None,
    )


def _values_of(
    model: ReferenceModel,
    needs: Mapping[str, frozenset[Signal]],
    module: PreparedModule,
    data: UnlearningDataModule,
    kind: str = "",
) -> dict[str, ReferenceValues]:
    """Return what a model says of the rows of each group; files end in what kind it is."""
    return {
        group: reference_values(
            data.streams[group],
            Wanted(signals, module.method.temperature, module.reference_top_k),
            model,
            group=group + kind,
            batch_size=data.eval_batch_size,
            folder=module.reference_cache,
        )
        for group, signals in needs.items()
    }


def _entropies_of(
    model: ReferenceModel, module: PreparedModule, data: UnlearningDataModule
) -> dict[str, ReferenceValues]:
    """Return the entropies of another model than the target model.

    Raises:
        InputError: If its tokens are not the run's.
    """
    check_tokens(model.pretrained, data.train_encoder.tokenizer, model.key)
    needs = module.method.reference_needs
    wanted = {group: _ENTROPIES for group, signals in needs.items() if signals >= _ENTROPIES}
    with model:
        return _values_of(model, wanted, module, data, "_entropies")


def _without_entropies(needs: Mapping[str, frozenset[Signal]]) -> dict[str, frozenset[Signal]]:
    """Return what is left to ask the target model for; groups of which nothing is left out."""
    rest = {group: signals - _ENTROPIES for group, signals in needs.items()}
    return {group: signals for group, signals in rest.items() if signals}


def with_values(signals: TokenSignals, values: Mapping[str, Tensor]) -> TokenSignals:
    """Add the cached values of a group's tokens."""
    kept = dict(values)
    if "top_ids" in kept:
        top = TopLogps(kept.pop("top_logps"), kept.pop("top_ids"), kept.pop("top_rest", None))
        kept["reference_distributions"] = cast(Any, top)
    return replace(signals, **cast(Any, kept))
