"""Adapters (LoRA and its kin) through ``peft``: added, switched off exactly, merged."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from etw_lightning.schema import InputError
from etw_lightning.tuning.adapter_settings import MERGEABLE, REFUSALS, make_config, refused
from etw_lightning.tuning.decoder import body_of

__all__ = ["MERGEABLE", "Adapter", "add_adapter", "wrap_model"]


class Adapter:
    """Small weights beside those of a frozen model, trained in their place.

    The model stays the object it was; some of its layers are wrapped in place. This object is no
    module and holds no weights of its own, so a state dict lists the adapter once.

    Args:
        wrapper: peft's wrapper around the model.
        settings: The settings as they were given, for ``add_adapter`` to rebuild it.
    """

    def __init__(self, wrapper: Any, settings: Mapping[str, Any]) -> None:
        self._wrapper = wrapper
        self.settings = dict(settings)
        #: Whether the model is what ``merged_copy`` returns.
        self.is_merged = False

    @property
    def lm(self) -> Any:
        """The model that carries the adapter."""
        return self._wrapper.base_model.model

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Have the model say what it said before the adapter was added, bit for bit.

        In evaluation mode, as a frozen copy is; afterwards every weight trains that did before.
        """
        # peft unmerges a merged layer that is switched off, which rounds the model's weights.
        assert not self.is_merged, "the model can't be merged and switched off at a time"
        lm, tuner = self.lm, self._wrapper.base_model
        was_training = lm.training
        trains = [(weight, weight.requires_grad) for weight in lm.parameters()]
        lm.eval()
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()
            for weight, flag in trains:
                weight.requires_grad_(flag)
            lm.train(was_training)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Have the model be what ``merged_copy`` returns, in place; afterwards it is as before.

        What is scored so is what will be exported: rounding, and gradients by the model's own
        weights, included. Costs a copy of the adapted layers' weights.
        """
        self.is_merged = True
        try:
            with _merged(self._layers()):
                yield
        finally:
            self.is_merged = False

    def check_merge(self) -> None:
        """Merge layer by layer, which may fail, and undo it.

        Raises:
            ValueError: If peft can't merge a layer.
        """
        for layer in self._layers():
            with _merged([layer]):
                pass

    def _layers(self) -> list[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [part for part in self.lm.modules() if isinstance(part, BaseTunerLayer)]

    def merged_copy(self) -> Any:
        """Return a plain model that says what the adapted one says, which stays as it is.

        Returns:
            A ``transformers`` model in evaluation mode, without a trace of the adapter.
        """
        return Adapter(copy.deepcopy(self._wrapper), self.settings).merge_for_good()

    def merge_for_good(self) -> Any:
        """Merge in place, and return the plain model; this object is of no use afterwards."""
        lm = self._wrapper.merge_and_unload()
        return lm.requires_grad_(True).eval()


@contextmanager
def _merged(layers: Sequence[Any]) -> Iterator[None]:
    """Merge layers in place, and give their weights back bit for bit."""
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    kept = [weight.detach().clone() for weight in weights]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            # That some kinds come off inexactly, which is seen to below.
            warnings.simplefilter("ignore")
            for layer in layers:
                layer.unmerge()
        # Adding and subtracting the same numbers does not give back the same bits.
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


def add_adapter(lm: Any, settings: Mapping[str, Any], key: str = "model.peft") -> Adapter:
    """Freeze a model and add an adapter that trains in its place.

    Random first weights come from torch's global generator, so a seed fixes them.

    Args:
        lm: A ``transformers`` causal language model, changed in place: layers are wrapped, names
            of their weights gain ``base_layer``, adapter weights are added in float32.
        settings: In peft's own names: ``peft_type``, one of ``MERGEABLE``, and the arguments of
            its configuration (``r``, ``lora_alpha``, ``target_modules``, ...).
        key: Configuration key that errors name.

    Raises:
        InputError: If peft is not installed or refuses the settings, a module name matches
            nothing, or the adapter could not be switched off or merged without a difference.
    """
    own = {id(weight) for weight in lm.parameters()}
    before = _says(lm)
    wrapper, config = wrap_model(lm, settings, key)
    adapter = Adapter(wrapper, settings)
    try:
        adapter.check_merge()
    except REFUSALS as error:
        raise refused(error, config, settings, key) from error
    _check_adapter(adapter, own, before, key)
    return adapter


def wrap_model(lm: Any, settings: Mapping[str, Any], key: str = "model.peft") -> tuple[Any, Any]:
    """Freeze a model and put an adapter's weights beside its own; ``add_adapter`` also checks them.

    Args:
        lm: As of ``add_adapter``; its tensors may be of the meta device.
        settings: As of ``add_adapter``.
        key: Configuration key that errors name.

    Returns:
        peft's wrapper and configuration.

    Raises:
        InputError: If peft is not installed or refuses the settings.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"{key} needs the package peft: pip install 'etw-lightning[peft]', or leave it out."
        ) from error
    config = make_config(lm, settings, key)
    try:
        with warnings.catch_warnings():
            # A name of transformers' that peft has yet to follow, and norms, which LN_TUNING trains
            # though peft does not know their classes.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            warnings.filterwarnings("ignore", "Unsupported layer type .*Norm", UserWarning)
            return peft.get_peft_model(lm, config), config
    except REFUSALS as error:
        raise refused(error, config, settings, key) from error


def _check_adapter(adapter: Adapter, own: set[int], before: Tensor, key: str) -> None:
    """Refuse an adapter that is not all that trains, or without which the model is another."""
    lm = adapter.lm
    head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
    is_tied = head.weight is embeddings.weight
    if _is_wrapped(head) or (is_tied and _is_wrapped(embeddings)):
        raise InputError(
            f"{key} must leave the output head as it is{', which the embeddings are' * is_tied}: "
            "it is read without an adapter. Take it out of target_modules and modules_to_save."
        )
    if any(id(weight) in own for weight in lm.parameters() if weight.requires_grad):
        raise InputError(f"{key} must train the adapter alone; it trains the model's own weights.")
    if not any(weight.requires_grad for weight in lm.parameters()):
        raise InputError(f"{key} leaves nothing to train.")
    with adapter.switched_off():
        is_exact = torch.equal(_says(lm), before)
    tolerance = 1e-3 if before.dtype.itemsize >= 4 else 0.05
    is_near = (_says(lm) - before).double().norm() <= tolerance * before.double().norm()
    if not (is_exact and is_near):
        name = next((name for name in adapter.settings if name.startswith("init_")), "init_weights")
        what = "starts away from" if is_exact else "changes the weights of"
        raise InputError(
            f"{key}.{name} must make an adapter that begins as the model does; this one {what} "
            "the model it is added to. Leave it out, or set it to true."
        )


def _is_wrapped(part: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)


@torch.no_grad()
def _says(lm: Any) -> Tensor:
    """Return the last hidden states of a few tokens, in evaluation mode."""
    was_training = lm.training
    weight = lm.get_input_embeddings().weight
    ids = (torch.arange(8, device=weight.device) * 7919 % weight.shape[0])[None]
    hidden: Tensor = body_of(lm.eval())(input_ids=ids, use_cache=False).last_hidden_state
    lm.train(was_training)
    return hidden
