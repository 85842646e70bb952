"""One training step: what is computed for it, what is made of it, and what is logged."""

import json
import math
import shutil
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from toy import ExactModule, FixedLogits, jsonl_data, make_trainer, text, write_rows

from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.forget import GA, NPO, ForgetObjective
from etw_lightning.kernels.signals import Counts, TokenSignals
from etw_lightning.models import label_scorer
from etw_lightning.models.loading import LabelScorer, load_model
from etw_lightning.retain import KL, NLL, RetainObjective
from etw_lightning.schema import IGNORE_INDEX, InputError
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.training.references.cached import with_values
from etw_lightning.training.step_log import StepLog
from etw_lightning.weighting import ETW, TokenWeighting, Uniform


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("forget", 8), ("retain", 12)):
        rows = [
            {
                "question": f"What of {name} {number}?",
                "answer": text(number, 1 + 3 * number % 8),
                "alternative_answer": f"I do not know {text(number, 2)}.",
            }
            for number in range(count)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


class Watch(Callback):
    """Keeps gradients, learning rates and logged values of each optimiser step."""

    def __init__(self):
        self.gradients, self.rates, self.logged = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.gradients.append(
            [p.grad.clone() for p in pl_module.scorer.parameters() if p.requires_grad]
        )

    def on_train_batch_end(self, trainer, *args):
        self.logged.append({name: float(v) for name, v in trainer.callback_metrics.items()})


@pytest.fixture
def fit(root, tiny_model_dir):
    """Trains an epoch, two steps of four whole rows of each stream; returns module and watch."""

    def run(*, batch_size=4, trainer=None, kind=UnlearningModule, **settings):
        data = jsonl_data(
            root,
            batch_size=batch_size,
            columns=Columns(),
        )
        module = kind(str(tiny_model_dir), **{"lr": 1e-3, "share_beginnings": False, **settings})
        watch = Watch()
        make_trainer(watch, **(trainer or {})).fit(module, datamodule=data)
        return module, watch

    return run


def first_batch(root, model_dir, module):
    """The batch of the first step, from a data module that knows no trainer."""
    data = UnlearningDataModule(
        "jsonl", str(root), forget_split="forget", retain_split="retain", batch_size=4
    )
    data.uses_alternative = "alternative" in module.needs
    data.load(str(model_dir))
    return next(iter(data.train_dataloader()))


# What is computed.


@pytest.fixture
def calls(monkeypatch):
    """Counts forward passes of the body, by rows, and positions that reach the head."""
    found = {"body": [], "head": [], "entropy": []}
    original_forward, original_scores = LabelScorer.forward, label_scorer.linear_scores

    def forward(self, input_ids, *args, **kwargs):
        hook = self.lm.base_model.register_forward_hook(
            lambda *_: found["body"].append(tuple(input_ids.shape))
        )
        try:
            return original_forward(self, input_ids, *args, **kwargs)
        finally:
            hook.remove()

    def scores(hidden, weight, labels, *args, **kwargs):
        found["head"].append((len(hidden), (labels != IGNORE_INDEX).sum().item()))
        found["entropy"].append(kwargs["entropy"])
        return original_scores(hidden, weight, labels, *args, **kwargs)

    monkeypatch.setattr(LabelScorer, "forward", forward)
    monkeypatch.setattr(label_scorer, "linear_scores", scores)
    return found


def test_one_forward_pass_a_step_and_only_labels_reach_the_head(fit, calls, root, tiny_model_dir):
    module, watch = fit()
    assert len(watch.gradients) == 2
    assert [rows for rows, _ in calls["body"]] == [8, 8]  # forget and retain rows together
    assert all(positions == labels for positions, labels in calls["head"])
    batch = first_batch(root, tiny_model_dir, module)
    assert calls["head"][0][0] == (batch["labels"] != IGNORE_INDEX).sum() < batch["labels"].numel()
    assert calls["entropy"] == [True, True]


def test_entropies_only_where_something_is_forgotten(fit, calls):
    fit(forget=None)
    assert not any(calls["entropy"])


LORA = {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    "parts",
    [{}, {"forget": NPO(), "reference": "live"}, {"peft": LORA}, {"gradient_checkpointing": True}],
    ids=["etw", "npo", "lora", "computed again"],
)
def test_sharing_beginnings_changes_what_is_fed_and_nothing_else(fit, parts, monkeypatch):
    layouts = []
    original = LabelScorer.forward

    def forward(self, *args):
        layouts.append(args[-1])
        return original(self, *args)

    monkeypatch.setattr(LabelScorer, "forward", forward)
    still = {"lr": 1e-15, "weight_decay": 0.0, "kind": ExactModule}
    torch.manual_seed(0)
    _, whole = fit(**parts, **still)
    assert {(layout.packed, layout.widths) for layout in layouts} == {(None, ())}
    layouts.clear()
    torch.manual_seed(0)
    _, shared = fit(**parts, **still, share_beginnings=True)
    assert all(max(len(part.path) for part in one.packed.parts) > 0 for one in layouts)
    for name in ("loss/retain", "loss/forget"):
        seen = [[logged[name] for logged in watch.logged] for watch in (whole, shared)]
        assert seen[0] == pytest.approx(seen[1], abs=1e-7)
    for one, other in zip(whole.gradients, shared.gradients, strict=True):
        for gradient, found in zip(one, other, strict=True):
            # Llama's norms are float32 in any model, and what rows share is summed behind them.
            rounding = 1e-10 + 1e-6 * gradient.abs().max()
            torch.testing.assert_close(found, gradient, rtol=0, atol=rounding)


def test_a_live_reference_model_is_one_more_pass(fit, calls):
    fit(forget=RatioToReference(), reference="live")
    assert [rows for rows, _ in calls["body"]] == [8, 8, 8, 8]


def test_a_cached_reference_model_runs_once_before_training(fit, calls, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path))
    fit(forget=RatioToReference(), trainer={"max_epochs": 2})
    # The eight forget rows, then two steps an epoch of four rows of each stream.
    assert [rows for rows, _ in calls["body"]] == [8, *[8] * 4]
    fit(forget=RatioToReference())
    assert [rows for rows, _ in calls["body"]] == [8, *[8] * 4, *[8] * 2], "read from the file"


@pytest.fixture
def untouched_dir(tiny_model_dir, tmp_path):
    """Another model with the same tokenizer."""
    folder = tmp_path / "untouched"
    shutil.copytree(tiny_model_dir, folder)
    lm = load_model(str(tiny_model_dir))
    with torch.no_grad():
        lm.lm_head.weight *= torch.linspace(0.5, 3.0, len(lm.lm_head.weight))[:, None]
    lm.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("forget", "folder"), [(GA(), None), (NPO(), "values")], ids=["ga", "npo"])
def test_entropies_of_a_named_model(fit, forget, folder, untouched_dir, tmp_path, monkeypatch):
    """Its entropies weigh; what else is compared with stays the target model's."""
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    kept = None if folder is None else str(tmp_path / folder)
    weighting = ETW(temperature=2.0, source="reference", unit="word")
    parts = {"weighting": weighting, "forget": forget, "reference_cache": kept}
    module, _ = fit(**parts, entropy_model=str(untouched_dir))
    references = module.datamodule.references
    assert references.keys() == {"forget"}
    scorer, rows = LabelScorer(load_model(str(untouched_dir))), module.datamodule.streams["forget"]
    target = LabelScorer(load_model(module.pretrained))
    for place, row in enumerate(rows):
        batch = [torch.tensor([row.input_ids]), torch.ones(1, len(row.input_ids)).long()]
        batch.append(torch.tensor([row.labels]))
        with torch.no_grad():
            expected = scorer(*batch, {"entropies"}, 2.0).entropies
            logps = target(*batch, set()).logps
        found = references["forget"].batch([place])
        torch.testing.assert_close(found["reference_entropies"], expected, rtol=1e-4, atol=1e-5)
        assert ("reference_logps" in found) == (forget == NPO())
        if "reference_logps" in found:
            torch.testing.assert_close(found["reference_logps"], logps, rtol=1e-4, atol=1e-5)
    again, _ = fit(**parts, entropy_model=str(untouched_dir))
    own, _ = fit(**{**parts, "reference_cache": None})
    values = [
        one.datamodule.references["forget"].values["reference_entropies"]
        for one in (module, again, own)
    ]
    assert torch.equal(values[0], values[1])
    assert not torch.allclose(values[0], values[2], rtol=1e-2)


def test_a_model_for_entropies_that_nothing_reads_is_refused(tiny_model_dir):
    name = str(tiny_model_dir)
    with pytest.raises(InputError, match=r"entropy_model is '.*', but nothing reads its entropies"):
        UnlearningModule(name, entropy_model=name)
    weighting = ETW(source="reference")
    with pytest.raises(InputError, match=r"model\.reference must be cache; got live"):
        UnlearningModule(name, weighting=weighting, reference="live", entropy_model=name)


def test_entropies_of_other_tokens_are_refused(fit, untouched_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    file = untouched_dir / "tokenizer.json"
    said = json.loads(file.read_text())
    said["added_tokens"].append({**said["added_tokens"][0], "id": 5000, "content": "<|more|>"})
    file.write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"entropy_model '.*untouched' has another vocabulary"):
        fit(weighting=ETW(source="reference"), entropy_model=str(untouched_dir))


@pytest.mark.parametrize("key", ["forget_weight", "retain_weight", "lr", "weight_decay"])
def test_numbers_without_end_are_refused(tiny_model_dir, key):
    with pytest.raises(InputError, match=rf"^model\.{key} must be a finite number; got inf\.$"):
        UnlearningModule(str(tiny_model_dir), **{key: math.inf})


@pytest.mark.parametrize("reference", ["live", None])
def test_a_folder_for_a_cache_that_is_not_made_is_refused(tiny_model_dir, reference):
    said = rf"reference_cache is 'kept', but model\.reference is {reference or 'null'}, so that"
    with pytest.raises(InputError, match=said):
        UnlearningModule(str(tiny_model_dir), reference=reference, reference_cache="kept")


@pytest.mark.parametrize("reference", ["live", "cache", "adapter"])
def test_all_references_say_the_same(fit, reference, tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path))
    torch.manual_seed(0)
    lora = {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}
    parts = {"weighting": FarFromReference(), "forget": Preference(), "peft": lora, "lr": 1e-2}
    _, live = fit(**parts, reference="live")
    torch.manual_seed(0)
    _, other = fit(**parts, reference=reference)
    for one, two in zip(live.gradients, other.gradients, strict=True):
        for gradient, same in zip(one, two, strict=True):
            torch.testing.assert_close(gradient, same, rtol=1e-4, atol=1e-6)


# The design leaves room: parts that read every signal, without a change to the module.


class FarFromReference(TokenWeighting):
    """A weight that reads the reference model and whole distributions."""

    needs: ClassVar = frozenset({"reference_logps", "distributions"})

    def __call__(self, signals):
        told = signals.distributions.map(lambda logps: logps.exp().amax(-1)).detach()
        assert not signals.reference_logps.requires_grad
        return told * torch.sigmoid(signals.logps.detach() - signals.reference_logps)


class RatioToReference(ForgetObjective):
    """One term a sequence, from its log-ratio to the reference model."""

    needs: ClassVar = frozenset({"reference_logps"})
    level: ClassVar = "sequence"

    def __call__(self, signals, weights):
        ratios = signals.row_sums(weights * (signals.logps - signals.reference_logps))
        return -torch.nn.functional.logsigmoid(-0.1 * ratios)


class Preference(ForgetObjective):
    """One term a sequence, from a second answer and its reference."""

    needs: ClassVar = frozenset({"alternative", "reference_logps"})
    level: ClassVar = "sequence"

    def __call__(self, signals, weights):
        other = signals.alternative
        assert other.num_rows == signals.num_rows
        wanted = other.row_sums(other.logps - other.reference_logps)
        unwanted = signals.row_sums(signals.logps - signals.reference_logps)
        return -torch.nn.functional.logsigmoid(0.1 * (wanted - unwanted))


class Misdirection(ForgetObjective):
    """One term a token, from hidden states."""

    needs: ClassVar = frozenset({"states"})
    layers: ClassVar = (1,)

    def __call__(self, signals, weights):
        states = signals.states.layers[1]
        assert states.shape == (len(signals.labels), 32)
        return weights * (states - 1).square().mean(-1)


class StayNear(RetainObjective):
    """Distributions and hidden states of the reference model."""

    needs: ClassVar = frozenset(
        {"distributions", "reference_distributions", "states", "reference_states"}
    )
    layers: ClassVar = (0,)

    def __call__(self, signals):
        def divergence(logps, reference):
            return (reference.logps.exp() * (reference.logps - logps)).sum(-1)

        kl = signals.distributions.map(divergence, signals.reference_distributions)
        moved = signals.states.layers[0] - signals.reference_states.layers[0]
        return kl + moved.square().mean(-1)


PARTS = [
    {"weighting": FarFromReference()},
    {"weighting": ETW(), "forget": RatioToReference()},
    {"forget": Preference()},
    {"forget": Misdirection(), "retain": StayNear(), "reference": "live"},
    {"forget": GA(), "retain": StayNear(), "reference": "live"},
    {"weighting": FarFromReference(), "forget": Preference(), "retain": None},
    {"weighting": FarFromReference(), "forget": Preference(), "reference": "live"},
]


@pytest.mark.parametrize("parts", PARTS)
def test_parts_that_read_other_signals_need_no_change(fit, parts):
    module, watch = fit(**parts)
    assert len(watch.gradients) == 2
    for gradients in watch.gradients:
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any((gradient != 0).any() for gradient in gradients)
    assert all(math.isfinite(value) for logged in watch.logged for value in logged.values())
    is_live = parts.get("reference") == "live"
    assert (module.reference_model is not None) == is_live, "no second model without being asked"


@pytest.mark.parametrize("parts", PARTS)
def test_their_gradients_do_not_depend_on_accumulation(fit, parts):
    still = {"lr": 1e-15, "weight_decay": 0.0, "kind": ExactModule}
    _, whole = fit(**parts, **still)
    _, parted = fit(**parts, **still, batch_size=1, trainer={"accumulate_grad_batches": 4})
    assert len(whole.gradients) == len(parted.gradients) == 2
    for one, other in zip(whole.gradients, parted.gradients, strict=True):
        for gradient, sum_of_parts in zip(one, other, strict=True):
            assert gradient.dtype == torch.float64
            torch.testing.assert_close(gradient, sum_of_parts, rtol=1e-10, atol=1e-10)


def test_the_reference_model_is_the_target_model_and_stays_it(fit, tiny_model_dir):
    module, watch = fit(forget=RatioToReference(), lr=1e-2, reference="live")
    start = load_model(str(tiny_model_dir)).state_dict()
    assert all(
        torch.equal(start[name], v) for name, v in module.reference_model.lm.state_dict().items()
    )
    assert not any(torch.equal(start[name], v) for name, v in module.scorer.lm.state_dict().items())
    assert not module.reference_model.training
    trained = {id(parameter) for parameter in module.scorer.parameters()}
    optimized = module.trainer.optimizers[0].param_groups
    assert {id(parameter) for group in optimized for parameter in group["params"]} == trained
    # At the first step model and reference agree, so each term is -log sigmoid(0) = log 2.
    assert watch.logged[0]["loss/forget"] == pytest.approx(math.log(2), rel=1e-6)


# The loss.


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize(
    ("forget", "retain"), [(GA(), NLL()), (GA(), None), (None, NLL())], ids=str
)
def test_the_loss_is_retain_plus_lambda_forget(
    fit, root, tiny_model_dir, reduction, forget, retain
):
    """Against logits of the whole batch, and weights from their entropies."""
    _, watch = fit(
        weighting=ETW(temperature=2.0),
        forget=forget,
        retain=retain,
        forget_weight=0.3,
        reduction=reduction,
    )
    probe = UnlearningModule(str(tiny_model_dir))
    batch = first_batch(root, tiny_model_dir, probe)
    lm = load_model(str(tiny_model_dir)).double()
    logits = lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    terms = {"forget": [], "retain": []}
    for row in range(8):
        places = [t for t in range(1, logits.shape[1]) if batch["labels"][row, t] >= 0]
        said = logits[row, [t - 1 for t in places]]
        logps = said.log_softmax(-1).gather(-1, batch["labels"][row, places][:, None])[:, 0]
        if row >= 4:
            terms["retain"].append(-logps)
            continue
        entropies = torch.distributions.Categorical(logits=said / 2.0).entropy()
        terms["forget"].append(entropies * len(places) / entropies.sum() * logps)
    expected = {"retain": torch.cat(terms["retain"]).mean().item()}
    if reduction == "token":
        expected["forget"] = torch.cat(terms["forget"]).mean().item()
    else:
        expected["forget"] = torch.stack([part.mean() for part in terms["forget"]]).mean().item()
    expected["total"] = expected["retain"] * (retain is not None)
    expected["total"] += 0.3 * expected["forget"] * (forget is not None)
    logged = watch.logged[0]
    names = {"total"} | ({"forget"} if forget else set()) | ({"retain"} if retain else set())
    assert {name for name in logged if name.startswith("loss")} == {f"loss/{n}" for n in names}
    for name in names:
        assert logged[f"loss/{name}"] == pytest.approx(expected[name], rel=1e-5)


def test_statistics_of_the_weights_are_logged(fit):
    _, watch = fit(weighting=ETW())
    for logged in watch.logged:
        assert logged["weights/max"] >= 1
        assert 0.05 < logged["weights/top_decile_share"] <= 1
        assert 0 < logged["weights/mean_entropy"] < math.log(320)
    _, watch = fit(weighting=Uniform())
    assert {logged["weights/max"] for logged in watch.logged} == {1.0}
    assert all(logged["weights/mean_entropy"] > 0 for logged in watch.logged)


def gini_of(values):
    """Mean absolute difference of all pairs over twice the mean."""
    values, n = values.double(), len(values)
    return ((values[:, None] - values).abs().sum() / (2 * n * values.sum())).item()


def auc_of(values, marks):
    pairs = [(a, b) for a in values[marks] for b in values[~marks]]
    return sum((a > b).item() + (a == b).item() / 2 for a, b in pairs) / len(pairs)


class Keeps(Callback):
    """Keeps the weights of each forget row, by its id, in the order of steps."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        _, rows, weights = pl_module.last_weights
        names = batch["row_ids"][: batch["sizes"]["forget"]]
        self.rows += [(name, weights[rows == row]) for row, name in enumerate(names)]


@pytest.mark.parametrize("settings", [{}, {"share_beginnings": True}, {"weighting": Uniform()}])
def test_an_epoch_logs_how_its_weights_lay(root, tiny_model_dir, tmp_path, settings):
    answers = [json.loads(line)["answer"] for line in (root / "forget.jsonl").open()]
    marks = [{"answer": one, "spans": [[0, min(8, len(one))]]} for one in answers]
    write_rows(tmp_path / "marks.jsonl", marks)
    data = jsonl_data(
        root, batch_size=4, columns=Columns(), annotations=str(tmp_path / "marks.jsonl")
    )
    module = UnlearningModule(
        str(tiny_model_dir), **{"lr": 1e-3, "share_beginnings": False, **settings}
    )
    keeps = Keeps()
    trainer = make_trainer(keeps, max_epochs=2)
    trainer.fit(module, datamodule=data)
    last = keeps.rows[8:]
    assert len({name for name, _ in last}) == len(last) == 8
    examples = {one.id: one for one in data.forget_examples()}
    areas = []
    for name, weights in last:
        spans = data.train_encoder.answer_spans(examples[name])
        flags = torch.tensor([left < 8 and left < right for left, right in spans])
        if 0 < flags.sum() < len(flags):
            areas.append(auc_of(weights, flags))
    assert len(areas) > 4
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    ginis = [gini_of(weights) for _, weights in last]
    assert logged["weights/epoch_gini"] == pytest.approx(sum(ginis) / 8, rel=1e-4, abs=1e-7)
    assert logged["weights/epoch_auc"] == pytest.approx(sum(areas) / len(areas), rel=1e-5)
    assert logged["weights/epoch_max"] == max(weights.max().item() for _, weights in last)
    # The last step's alone are another mean.
    ginis = [gini_of(weights) for _, weights in last[4:]]
    assert logged["weights/gini"] == pytest.approx(sum(ginis) / 4, rel=1e-4, abs=1e-7)


def test_an_epoch_that_is_broken_off_knows_how_its_weights_lay(fit):
    """What a checkpoint holds of it goes on in another module as if it had never stopped."""
    module, _ = fit(trainer={"limit_train_batches": 1})
    signals = TokenSignals(*[torch.tensor([0, 0, 1])] * 2, 2, torch.zeros(3))
    steps = [torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.5, 0.5, 1.0])]
    whole, broken, again = StepLog(), StepLog(), StepLog()
    for log in (whole, broken):
        log.note_weights(signals, steps[0], torch.tensor([True, False, True]))
        log._counted(module)
        log._window.clear()
    again.go_on(broken.epoch_so_far())
    assert all(isinstance(value, float) for value in broken.epoch_so_far().values())
    for log in (whole, again):
        log.note_weights(signals, steps[1], torch.tensor([False, True, True]))
        log._counted(module)
    assert whole.epoch_so_far() == again.epoch_so_far()
    found = whole.epoch_so_far()
    assert found["weights/gini"] == pytest.approx(0.5 + 0.25)
    assert found["weights/auc"] == 1.0
    assert found["weights/annotated_rows"] == 2
    assert found["weights/rows"] == 4
    assert found["weights/max"] == 2.0


def test_an_epoch_begins_without_the_weights_of_the_one_before():
    """A run that goes on from an epoch's last step is told of that epoch, and never ends it."""
    trainer = SimpleNamespace(
        num_training_batches=2,
        accumulate_grad_batches=1,
        world_size=1,
        progress_bar_callback=None,
    )
    module = SimpleNamespace(trainer=trainer, log=lambda *_, **__: None)
    signals = TokenSignals(*[torch.tensor([0, 0])] * 2, 1, torch.zeros(2))
    log = StepLog()
    log.go_on({"weights/rows": 4.0, "weights/gini": 2.0, "weights/max": 9.0})
    for batch, weights in enumerate([torch.tensor([0.5, 1.5]), torch.tensor([1.0, 1.0])]):
        log.note_weights(signals, weights)
        log.log(module, batch)
    found = log.epoch_so_far()
    assert found["weights/rows"] == 2
    assert found["weights/gini"] == pytest.approx(0.25)
    assert found["weights/max"] == 1.5


class Nothing(TokenWeighting):
    """No weight at all, as of rows in which nothing is marked."""

    def __call__(self, signals):
        return torch.zeros_like(signals.logps.detach())


def test_an_epoch_that_pushes_nothing_down_is_told(fit):
    said = "Nothing has given no token any weight in this epoch: nothing is pushed down"
    with pytest.warns(UserWarning, match=said):
        _, watch = fit(weighting=Nothing())
    assert {logged["weights/max"] for logged in watch.logged} == {0.0}


def test_losses_and_weights_are_logged_once_a_step(fit):
    _, whole = fit()
    _, parted = fit(batch_size=1, trainer={"accumulate_grad_batches": 4})
    assert whole.logged[0]["loss/total"] == pytest.approx(parted.logged[3]["loss/total"], rel=1e-5)
    for name in ("weights/max", "weights/mean_entropy"):
        assert whole.logged[0][name] == pytest.approx(parted.logged[3][name], rel=1e-5)


@pytest.fixture
def fixed():
    """A module whose model says given logits, and the batch of 2 forget and 2 retain rows.

    Labels stand at the last 3, 2, 1 and 4 of five places.
    """
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.full((4, 5), IGNORE_INDEX)
    for row, count in enumerate((3, 2, 1, 4)):
        labels[row, -count:] = torch.randint(7, (count,), generator=generator)
    batch = {
        "input_ids": labels.clamp(min=0),
        "attention_mask": torch.ones_like(labels),
        "labels": labels,
        "sizes": {"forget": 2, "retain": 2},
        "counts": {"forget": Counts(5, 2), "retain": Counts(5, 2)},
        "scale": 1.0,
        "row_ids": ["f/0", "f/1", "r/0", "r/1"],
    }

    def make(**settings):
        module = UnlearningModule("none", **settings)
        module.scorer = LabelScorer(FixedLogits(logits))
        # What is logged needs a trainer.
        module._log.log = lambda *_: None
        return module, batch, logits

    return make


def logps_of(logits, labels, row):
    """Log-probabilities of one row's labels, each said at the place before it."""
    places = [place for place in range(1, 5) if labels[row, place] != IGNORE_INDEX]
    said = logits[row].log_softmax(-1)
    return torch.stack([said[place - 1, labels[row, place]] for place in places])


def test_a_mark_stays_with_its_label(fixed):
    """One sliced at the other end would mark the word before."""
    module, batch, _ = fixed()
    marked = torch.zeros(4, 5, dtype=torch.bool)
    marked[0, 2] = marked[1, 4] = True
    words = torch.full((4, 5), -1)
    words[0, 2:] = torch.tensor([0, 0, 1])
    words[1, 4] = 3
    groups = module.forward({**batch, "marked": marked, "words": words})
    assert groups["forget"].words.tolist() == [0, 0, 1, -1, 3]
    assert groups["retain"].words.tolist() == [-1] * 5
    assert batch["labels"][0, :2].tolist() == [IGNORE_INDEX] * 2
    assert groups["forget"].marked.tolist() == [True, False, False, False, True]
    assert groups["retain"].marked.tolist() == [False] * 5


@pytest.mark.parametrize("retain", [NLL(), KL()], ids=str)
def test_weights_of_rows_are_those_of_the_retain_rows(fixed, retain):
    """They stand behind those of the forget rows, which are 1."""
    module, batch, logits = fixed(retain=retain, reference="live", forget_weight=0.3)
    other = logits.detach().roll(1, -1)
    module.reference_model = LabelScorer(FixedLogits(other))
    labels = batch["labels"]

    def term(row):
        if retain == NLL():
            return -logps_of(logits, labels, row).sum()
        count = int((labels[row] != IGNORE_INDEX).sum())
        target, ours = (said[row, -1 - count : -1].log_softmax(-1) for said in (other, logits))
        return (target.exp() * (target - ours)).sum()

    for weights, expected in (
        ([1, 1, 0, 3], 3 * term(3) / 5),
        ([1, 1, 2, 0.5], (2 * term(2) + 0.5 * term(3)) / 5),
        ([1, 1, 1, 1], (term(2) + term(3)) / 5),
    ):
        module.training_step({**batch, "row_weights": torch.tensor(weights)}, 0)
        assert module.losses["retain"].item() == pytest.approx(expected.item(), rel=1e-6)
    module.training_step(batch, 0)
    assert module.losses["retain"].item() == pytest.approx(
        ((term(2) + term(3)) / 5).item(), rel=1e-6
    )


def test_each_group_is_its_own_rows(fixed):
    module, batch, logits = fixed(weighting=Uniform(), forget_weight=0.3, retain_weight=2.0)
    loss = module.training_step({**batch, "scale": 6.0}, 0)
    rows = [logps_of(logits, batch["labels"], row) for row in range(4)]
    forget, retain = torch.cat(rows[:2]).sum() / 5, -torch.cat(rows[2:]).sum() / 5
    found = {name: loss.item() for name, loss in module.losses.items()}
    assert found["forget"] == pytest.approx(forget.item(), rel=1e-6)
    assert found["retain"] == pytest.approx(retain.item(), rel=1e-6)
    assert found["total"] == pytest.approx((2 * retain + 0.3 * forget).item(), rel=1e-6)
    # Lightning divides by micro-batches, DDP by processes.
    assert loss.item() == pytest.approx(6 * found["total"], rel=1e-6)


# The optimiser.


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0.0, [1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.0, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 0.0, [1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.146447]),
        ("constant", 1.0, [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_schedules(fit, schedule, warmup, rates):
    _, watch = fit(schedule=schedule, warmup=warmup, lr=0.1, trainer={"max_epochs": 2})
    assert [rate / 0.1 for rate in watch.rates] == pytest.approx(rates, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 3}, 6),
        ({"max_epochs": 3, "max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 3}, 3),
        ({"max_epochs": 3, "limit_train_batches": 1}, 3),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 3),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 3),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 3),
        # Three batches of 3, 3 and 2 rows: two steps an epoch, of two batches and of one.
        ({"max_epochs": 3, "accumulate_grad_batches": 2, "batch_size": 3}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.5, "batch_size": 1}, 8),
    ],
)
def test_the_rate_falls_to_0_over_the_steps_there_are(fit, settings, steps):
    """However the run is bounded; the trainer's own count would break resuming."""
    trainer = {key: value for key, value in settings.items() if key != "batch_size"}
    rows = {key: value for key, value in settings.items() if key == "batch_size"}
    _, watch = fit(schedule="linear", lr=1.0, trainer=trainer, **rows)
    assert watch.rates == pytest.approx([1 - step / steps for step in range(steps)])


def test_vectors_are_not_decayed(fit):
    module, _ = fit(weight_decay=0.5)
    matrices, vectors = module.trainer.optimizers[0].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.5, 0.0)
    assert {parameter.dim() for parameter in vectors["params"]} == {1}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("algorithm", "norm"), [("norm", None), ("value", float("inf"))], ids=["norm", "value"]
)
def test_gradients_are_clipped_before_a_fused_step(fit, precision, algorithm, norm):
    clip = {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": algorithm}
    limits = {"max_steps": 1, "precision": precision, **clip}
    module, watch = fit(trainer=limits, betas=(0.0, 0.999))
    (optimizer,) = module.trainer.optimizers
    assert optimizer.defaults["fused"]
    # Without a running mean, Adam's first moment is the gradient that it was given.
    given = torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()])
    whole = torch.cat([one.flatten() for one in watch.gradients[0]])
    kind = {} if norm is None else {"ord": norm}
    assert torch.linalg.vector_norm(whole, **kind) > 1e-3
    assert torch.linalg.vector_norm(given, **kind).item() == pytest.approx(1e-4, rel=1e-3)


def test_nothing_to_train_is_refused(tiny_model_dir):
    with pytest.raises(InputError, match=r"model\.forget and model\.retain are both null"):
        UnlearningModule(str(tiny_model_dir), forget=None, retain=None)


def test_gradient_checkpointing_changes_no_number(fit):
    _, plain = fit()
    _, thrifty = fit(gradient_checkpointing=True)
    for one, other in zip(plain.gradients[0], thrifty.gradients[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_retain_term_weighs_what_it_is_given(fit):
    _, watch = fit(forget_weight=0.3, retain_weight=2.5)
    for logged in watch.logged:
        expected = 2.5 * logged["loss/retain"] + 0.3 * logged["loss/forget"]
        assert logged["loss/total"] == pytest.approx(expected, rel=1e-6)


def test_the_rest_of_cached_distributions_reaches_the_signals():
    signals = TokenSignals(torch.tensor([1]), torch.tensor([0]), 1, torch.tensor([-0.1]))
    values = {
        "top_ids": torch.tensor([[1]]),
        "top_logps": torch.tensor([[-0.1]]),
        "top_rest": torch.tensor([-2.5]),
    }
    found = with_values(signals, values).reference_distributions
    assert found.log_rest.item() == -2.5
    assert found.ids.tolist() == [[1]]


def test_epochs_are_scored_merged_and_checkpoints_hold_no_merged_weights(fit):
    pytest.importorskip("peft")
    module, _ = fit(peft={"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}, lr=1e-1)
    apart = {name: value.clone() for name, value in module.state_dict().items()}
    module.on_validation_epoch_start()
    merged = module.state_dict()
    assert any(not torch.equal(merged[name], value) for name, value in apart.items())
    # A run that ends inside a validation saves what it would have had after it.
    checkpoint = {"state_dict": {name: value.clone() for name, value in merged.items()}}
    module.on_save_checkpoint(checkpoint)
    assert all(torch.equal(checkpoint["state_dict"][name], apart[name]) for name in apart)
    module.on_validation_epoch_start()
    module.on_validation_epoch_end()
    assert all(torch.equal(module.state_dict()[name], apart[name]) for name in apart)
