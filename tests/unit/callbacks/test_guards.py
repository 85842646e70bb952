"""What is not finite stops a run before the step, on all processes, with the rows' names."""

import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from toy import forked_ddp, jsonl_data, make_trainer, write_questions

from etw_lightning.callbacks.findings import TrainingStoppedError
from etw_lightning.callbacks.guards import FiniteGuard
from etw_lightning.training.module import UnlearningModule
from etw_lightning.weighting import Uniform

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    lengths = range(3, 11)
    return write_questions(tmp_path_factory.mktemp("rows"), forget=lengths, retain=lengths)


class Watch(Callback):
    """Keeps the rows of each micro-batch, and the weights after each step."""

    def __init__(self):
        self.rows, self.weights = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        sizes = batch["sizes"]["forget"], batch["sizes"]["retain"]
        ids = batch["row_ids"]
        self.rows.append((ids[: sizes[0]], ids[sizes[0] :]))
        self.weights.append(pl_module.scorer.lm.get_input_embeddings().weight.detach().clone())


class Breaks(UnlearningModule):
    """Breaks one thing in one micro-batch: a group's likelihoods, or a weight's gradient."""

    broken, at, rank, value = None, (2,), 0, math.nan

    def forward(self, batch):
        self.calls = getattr(self, "calls", -1) + 1
        groups = super().forward(batch)
        here = self.calls in self.at and self.trainer.global_rank == self.rank
        if here and self.broken in groups:
            logps = groups[self.broken].logps
            groups[self.broken] = replace(groups[self.broken], logps=logps * self.value)
        elif here and self.broken is not None:
            weight = dict(self.scorer.lm.named_parameters())[self.broken]
            weight.register_hook(lambda grad: torch.full_like(grad, self.value))
        return groups


@pytest.fixture
def fit(root, tiny_model_dir):
    """Train two rows of each set a micro-batch; return the module, what was seen and the error."""

    def run(*callbacks, broken=None, at=(2,), rank=0, value=math.nan, guards=True, **trainer):
        module = Breaks(str(tiny_model_dir), weighting=Uniform(), lr=1e-3)
        module.broken, module.at, module.rank, module.value = broken, at, rank, value
        data = jsonl_data(
            root,
            batch_size=2,
        )
        watch = Watch()
        guard = [FiniteGuard()] if guards else []
        own = make_trainer(*guard, *callbacks, watch, **trainer)
        error = None
        try:
            own.fit(module, datamodule=data)
        except TrainingStoppedError as stopped:
            error = stopped
        return SimpleNamespace(module=module, watch=watch, error=error, trainer=own)

    return run


def test_a_sound_run_is_the_same_with_and_without_the_guard(fit):
    one, other = fit(), fit(guards=False)
    assert one.error is None
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(("group", "value"), [("forget", math.nan), ("retain", math.inf)])
def test_a_loss_stops_before_its_step_and_names_the_rows(fit, group, value):
    run = fit(broken=group, value=value)
    finding = run.error.finding
    assert (finding.kind, finding.step, finding.epoch) == ("loss", 3, 1)
    assert run.trainer.global_step == 2
    forget, retain = run.watch.rows[2]
    assert finding.rows == tuple((forget + retain) if group == "forget" else (retain + forget))
    said = str(value) if group == "retain" else "nan"
    assert (
        f"at step 3, in epoch 1: the {group} loss is {said}; the step was not made"
        in finding.reason
    )
    assert ", ".join(finding.rows) in finding.reason
    assert "\n" not in finding.reason
    weight = run.module.scorer.lm.get_input_embeddings().weight
    assert torch.equal(weight, run.watch.weights[2])


def test_all_micro_batches_of_the_step_are_named_those_at_fault_first(fit):
    run = fit(broken="forget", at=(3,), accumulate_grad_batches=2)
    finding = run.error.finding
    assert finding.step == 2
    (before, kept), (forget, retain) = run.watch.rows[2:4]
    assert finding.rows == (*forget, *before, *kept, *retain)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_stops_before_its_step_and_names_the_weight(fit, value):
    run = fit(broken=WEIGHT, value=value)
    finding = run.error.finding
    assert (finding.kind, finding.step) == ("gradient", 3)
    assert f"the gradient is not finite ({WEIGHT}); the step was not made" in finding.reason
    assert set(finding.rows) == {row for part in run.watch.rows[2] for row in part}
    assert all(bool(weight.isfinite().all()) for weight in run.module.parameters())


def test_a_large_gradient_is_no_fault(fit):
    assert fit(broken=WEIGHT, value=1e15).error is None


def test_a_gradient_whose_norm_overflows_is_one(fit):
    """Clipping would make it zero, and the step would be lost without a word."""
    finding = fit(broken=WEIGHT, value=1e30).error.finding
    assert "the gradient is not finite (its norm); the step was not made" in finding.reason


def test_the_trainer_leaves_infinite_gradients_to_a_loss_scale(fit, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer.precision", "16-mixed")
    assert fit(broken=WEIGHT, value=math.inf, at=(3,)).error is None
    assert fit(broken="forget").error.finding.kind == "loss"


class BreaksWeights(Callback):
    """Breaks a weight after the step that it is told."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            with torch.no_grad():
                dict(pl_module.scorer.lm.named_parameters())[WEIGHT][0, 0] = math.nan


def test_broken_weights_are_never_saved_over_good_ones(fit, tmp_path):
    saves = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    run = fit(BreaksWeights(3), saves)
    finding = run.error.finding
    assert (finding.kind, finding.step) == ("weights", 3)
    assert f"weights are not finite ({WEIGHT})" in finding.reason
    assert {path.stem for path in tmp_path.iterdir()} == {"epoch=0-step=1", "epoch=0-step=2"}


def test_broken_weights_show_in_the_next_losses(fit):
    finding = fit(BreaksWeights(2)).error.finding
    assert (finding.kind, finding.step) == ("loss", 3)
    assert "the retain loss is nan and the forget loss is nan" in finding.reason


def test_the_norm_that_an_engine_of_its_own_has_stepped_with_is_read():
    """DeepSpeed's engine, whose gradients no callback sees, stands in the strategy's model."""
    norms = iter([2.0, None, math.inf])
    engine = SimpleNamespace(get_global_grad_norm=lambda: next(norms))
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(model=engine),
        precision="bf16-mixed",
        global_step=0,
        global_rank=0,
        world_size=1,
        current_epoch=0,
    )
    losses = {name: torch.tensor(1.0) for name in ("retain", "total")}
    guard, module = FiniteGuard(), SimpleNamespace(losses=losses)
    batch = {"sizes": {"retain": 1}, "row_ids": ["retain/0"]}
    guard.on_train_start(trainer, module)
    module.parameters, module.device = (lambda: iter(())), "cpu"

    def step():
        guard.on_train_batch_start(trainer, module, batch, 0)
        guard.on_before_backward(trainer, module, torch.ones(()))
        guard.on_before_optimizer_step(trainer, module, None)
        trainer.global_step += 1
        guard.on_train_batch_end(trainer, module, None, batch, 0)

    step()
    step()
    with pytest.raises(TrainingStoppedError, match="gradient is not finite") as caught:
        step()
    assert (caught.value.finding.step, caught.value.finding.rows) == (3, ("retain/0",))


class Noting(FiniteGuard):
    """Writes down what ends the run on each process; a forked one has no other way to tell."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rows = [row for one in self._micro_batches for part in one.rows.values() for row in part]
        try:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
        except TrainingStoppedError as error:
            seen = trainer.global_step, error.finding.to_json(), rows
            torch.save(seen, self.folder / f"rank{trainer.global_rank}.pt")
            # The first to end takes the other with it.
            trainer.strategy.barrier()
            raise


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("broken", ["forget", WEIGHT])
def test_both_of_two_processes_stop_when_one_sees_it(fit, tmp_path, broken):
    strategy = forked_ddp()
    settings = {"devices": 2, "strategy": strategy, "max_epochs": 2}
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="TrainingStopped"):
        fit(Noting(tmp_path), broken=broken, rank=1, guards=False, **settings)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first[:2] == second[:2]
    steps, found, _ = first
    assert (steps, found["step"], found["epoch"]) == (2, 3, 2)
    if broken == "forget":
        assert found["rows"] == second[2]
        assert "the forget loss is nan, on process 1 of 2; the step was not made" in found["reason"]
    else:
        # What one process adds to the mean of all breaks it for all.
        assert set(found["rows"]) == {*first[2], *second[2]}


def _check_shards(rank, folder, broken_rank):
    """Check, as one of two processes, the gradients of two weights that are spread over both."""
    store = distributed.FileStore(str(folder / f"store{broken_rank}"), 2)
    distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    mesh = init_device_mesh("cpu", (2,))
    # Of the single row the second process has nothing.
    weights = {
        name: nn.Parameter(distribute_tensor(torch.zeros(rows, 3), mesh, [Shard(0)]))
        for name, rows in (("matrix", 4), ("row", 1))
    }
    for name, weight in weights.items():
        part = torch.ones_like(weight.to_local())
        if name == "matrix" and rank == broken_rank:
            part[0, 0] = math.inf
        weight.grad = DTensor.from_local(part, mesh, [Shard(0)], shape=weight.shape, stride=(3, 1))

    def reduce(flag, reduce_op):
        assert reduce_op == "max"
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return flag

    trainer = SimpleNamespace(
        strategy=SimpleNamespace(reduce=reduce),
        precision="32-true",
        global_step=4,
        global_rank=rank,
        world_size=2,
        current_epoch=0,
    )
    module = SimpleNamespace(
        parameters=weights.values, named_parameters=weights.items, device="cpu", losses={}
    )
    guard = FiniteGuard()
    guard.on_train_batch_start(
        trainer, module, {"sizes": {"forget": 1}, "row_ids": [f"forget/{rank}"]}, 0
    )
    guard.on_before_backward(trainer, module, torch.ones(()))
    try:
        guard.on_before_optimizer_step(trainer, module, None)
        said = None
    except TrainingStoppedError as error:
        said = error.finding.to_json()
    torch.save(said, folder / f"shard{rank}.pt")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("broken_rank", [None, 1])
def test_a_sharded_gradient_is_looked_at_where_it_lies(tmp_path, broken_rank):
    torch.multiprocessing.start_processes(
        _check_shards, (tmp_path, broken_rank), nprocs=2, start_method="fork"
    )
    first, second = (torch.load(tmp_path / f"shard{rank}.pt") for rank in (0, 1))
    assert first == second
    if broken_rank is None:
        assert first is None
    else:
        assert (first["kind"], first["step"], first["rows"]) == ("gradient", 5, ["forget/1"])
        assert "not finite (matrix), on process 1 of 2" in first["reason"]
