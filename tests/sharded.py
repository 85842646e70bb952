"""Runs under each strategy, in forked processes: what their tests have in common."""

import os
from datetime import timedelta

import torch
from faults import PATIENCE, become, fork, free_port
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from toy import make_trainer, uneven, write_questions
from warm import prepare_fork

from etw_lightning.files.safe_files import check_checkpoint, reading_safely
from etw_lightning.models.export import export_model
from etw_lightning.models.shards import whole_weights
from etw_lightning.schema import IGNORE_INDEX
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.strategies import settle_shards

SECONDS = timedelta(seconds=PATIENCE)


class CPUDeepSpeed(DeepSpeedStrategy):
    """Lightning's strategy without its check for a CUDA device."""

    def setup_environment(self):
        DDPStrategy.setup_environment(self)

    def setup_distributed(self):
        import deepspeed.ops

        # None of its own operators: that for CPUs would be compiled in each new environment.
        deepspeed.ops.__compatible_ops__ = {}
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self):
        # DeepSpeed asks for an index.
        return torch.device("cpu", self.local_rank)


def make_strategy(name, *, on_cpu=True):
    """Return a strategy: ``single``, ``ddp``, ``fsdp``, ``zero2`` or ``zero3``."""
    if name == "single":
        return "auto"
    backend = {"process_group_backend": "gloo"} if on_cpu else {}
    if name == "ddp":
        return DDPStrategy(timeout=SECONDS, **backend)
    if name == "fsdp":
        return ModelParallelStrategy(timeout=SECONDS, **backend)
    kind = CPUDeepSpeed if on_cpu else DeepSpeedStrategy
    strategy = kind(stage=int(name[-1]), timeout=SECONDS, **backend)
    # Else weights as small as a test's would never be let go.
    strategy.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return strategy


def run_forked(function, world, folder, *arguments):
    """Call a function in forked processes that can meet; return what each returned.

    Args:
        function: Called with ``arguments``; what it returns must be safe for ``torch.load``.
        world: Processes.
        folder: Where results are put.
        arguments: Passed on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prepare_fork("fit", "evaluate")
    port = free_port()

    def work(rank):
        become(rank, world, port)
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.save(function(*arguments), folder / f"result{rank}.pt")
        return 0

    assert fork(world, work) == [0] * world
    return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(world)]


def write_texts(folder):
    """Write rows of 1 to 40 words, so that processes get batches of very different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_questions(folder, forget=uneven(0, 3), retain=uneven(5, 3))


class Losses(Callback):
    """Keeps each step's losses, as they are logged over all processes."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *args):
        if len(self.values) < trainer.global_step:
            logged = trainer.callback_metrics
            self.values.append({k: float(v) for k, v in logged.items() if k.startswith("loss/")})


class Rows(Callback):
    """Keeps the ids of the rows that a process trains on, step by step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(self.steps) <= trainer.global_step:
            self.steps.append([])
        parts = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
        for ids, mask, labels in zip(*parts, strict=True):
            # A row without labels only fills a micro-batch.
            if (labels != IGNORE_INDEX).any():
                self.steps[-1].append(ids[mask.bool()].tolist())


class SaveAt(Callback):
    """Saves a checkpoint after some step, as a user's callback would."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path, weights_only=False)


def build(model_dir, root, *, callbacks=(), trainer=None, data=None, **model):
    """Return a trainer, a module and its data for a short run."""
    given = {
        "lr": 1e-3,
        "forget_weight": 0.5,
        "schedule": "linear",
        "weight_decay": 0.1,
        # Adam would show the rounding of another layout.
        "share_beginnings": False,
        **model,
    }
    module = UnlearningModule(str(model_dir), **given)
    rows = {"root": str(root), "forget_split": "forget", "retain_split": "retain"}
    sizes = {"batch_size": 4, "eval_batch_size": 4}
    datamodule = UnlearningDataModule("jsonl", **{**rows, **sizes, **(data or {})})
    settings = {"max_epochs": 2, "gradient_clip_val": 1.0, **(trainer or {})}
    return make_trainer(*callbacks, **settings), module, datamodule


def weights_of(trainer, module):
    """Return all weights of a trained module whole."""
    settle_shards(trainer)
    return {name: weight.cpu().clone() for name, weight in whole_weights(module.scorer)}


def train(name, model_dir, root, *, on_cpu=True, devices=2, **settings):
    """Train for a few steps; return each step's losses and the weights at the end."""
    losses = Losses()
    given, ckpt_path = settings.pop("trainer", {}), settings.pop("ckpt_path", None)
    how = {"strategy": make_strategy(name, on_cpu=on_cpu), "devices": devices, **given}
    callbacks = [losses, *settings.pop("callbacks", ())]
    trainer, module, data = build(model_dir, root, callbacks=callbacks, trainer=how, **settings)
    with reading_safely():
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return losses.values, weights_of(trainer, module), (trainer, module, data)


def save_resume_export(name, model_dir, root, folder, **settings):
    """Train with a checkpoint half-way, go on from it anew, and export the end and the middle.

    Returns:
        Losses and weights of the whole run, losses of its second half run anew and the weights
        then.
    """
    path = folder / "half.ckpt"
    straight, weights, held = train(name, model_dir, root, callbacks=[SaveAt(3, path)], **settings)
    trainer, module, data = held
    lm, said = module.whole_to_save()
    if trainer.is_global_zero:
        export_model(lm, data.encoder.tokenizer, folder / "model", said=said)
    check_checkpoint(path, "ckpt_path")
    again, resumed, _ = train(name, model_dir, root, ckpt_path=str(path), **settings)
    return straight, weights, again, resumed


def assert_near(found, expected, tolerance=1e-5):
    """Compare two runs' losses, step by step and name by name."""
    assert len(found) == len(expected) > 0
    for step, other in zip(expected, found, strict=True):
        assert step.keys() == other.keys()
        for name, value in step.items():
            assert abs(other[name] - value) <= tolerance * max(1.0, abs(value)), name


def assert_same_weights(found, expected, tolerance=1e-5):
    """Compare two models' weights, name by name."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            found[name], weight, rtol=0, atol=tolerance, msg=lambda said, name=name: name + said
        )
