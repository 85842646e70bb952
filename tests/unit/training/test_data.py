"""Pairs of streams as batches, where a resumed run goes on, and the user's own files."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from toy import make_trainer, text, write_rows

from etw_lightning.benchmarks.tofu import Columns
from etw_lightning.callbacks.evaluation import SetScores
from etw_lightning.forget import GA
from etw_lightning.retain import NLL
from etw_lightning.schema import IGNORE_INDEX, InputError
from etw_lightning.scoring.batches import Score
from etw_lightning.scoring.parts import parts_of
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule
from etw_lightning.weighting import ETW

NUM_FORGET, NUM_RETAIN = 10, 14


def question_rows(name, count):
    return [
        {"question": f"What of {name} {number}?", "answer": text(number, 1 + 3 * number % 8)}
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "forget.jsonl", question_rows("forget", NUM_FORGET))
    write_rows(folder / "retain.jsonl", question_rows("retain", NUM_RETAIN))
    pairs = [{**row, "other": "I do not know."} for row in question_rows("forget", 4)]
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "raw.jsonl", [{"text": text(0, length)} for length in range(3, 30)])
    return folder


@pytest.fixture
def make_data(root, tiny_model_dir):
    """Makes a data module, loaded unless told otherwise."""

    def make(load=True, **settings):
        defaults = {"forget_split": "forget", "retain_split": "retain", "batch_size": 3}
        data = UnlearningDataModule("jsonl", root=str(root), **{**defaults, **settings})
        if load:
            data.load(str(tiny_model_dir))
        return data

    return make


def pretend(data, rank=0, accumulate=1, world=1):
    """Let the data module believe that it is one process of a run."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    data.trainer = SimpleNamespace(
        strategy=None,
        accumulate_grad_batches=accumulate,
        world_size=world,
        global_rank=rank,
        fit_loop=SimpleNamespace(epoch_progress=progress),
        state=SimpleNamespace(fn="fit"),
    )
    return data


def labelled(batch, start, stop):
    return int((batch["labels"][start:stop] != IGNORE_INDEX).sum())


# Batches.


def test_a_batch_is_forget_rows_then_retain_rows(make_data):
    data = make_data()
    by_id = {row.id: row for rows in data.streams.values() for row in rows}
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    for batch in batches:
        num_forget, num_retain = batch["sizes"]["forget"], batch["sizes"]["retain"]
        names = [name.split("/")[0] for name in batch["row_ids"]]
        assert names == ["forget"] * num_forget + ["retain"] * num_retain
        for place, name in enumerate(batch["row_ids"]):
            row, width = by_id[name], len(by_id[name].input_ids)
            assert batch["input_ids"][place, :width].tolist() == list(row.input_ids)
            assert batch["labels"][place, :width].tolist() == list(row.labels)
            assert batch["attention_mask"][place].tolist() == [1] * width + [0] * (
                batch["input_ids"].shape[1] - width
            )
            assert (batch["labels"][place, width:] == IGNORE_INDEX).all()
    seen = [name for batch in batches for name in batch["row_ids"] if name.startswith("forget")]
    assert sorted(seen) == sorted(f"forget/{number}" for number in range(NUM_FORGET))


@pytest.mark.parametrize("anchor", ["forget", "retain"])
@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 3)])
def test_counts_are_those_of_the_effective_batch(make_data, anchor, accumulate, world):
    """Counted here from the labels of all micro-batches of all processes of each step."""
    ranks = [
        list(pretend(make_data(anchor=anchor), rank, accumulate, world).train_dataloader())
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    for start in range(0, len(ranks[0]), accumulate):
        parts = [batch for batches in ranks for batch in batches[start : start + accumulate]]
        sizes = [batch["sizes"]["forget"] for batch in parts]
        filled = [batch["row_ids"].count("filler") for batch in parts]
        for name in ("forget", "retain"):
            bounds = [(0, size) if name == "forget" else (size, None) for size in sizes]
            tokens = sum(
                labelled(batch, *bound) for batch, bound in zip(parts, bounds, strict=True)
            )
            rows = sum(
                (batch["labels"][slice(*bound)] != IGNORE_INDEX).any(1).sum()
                for batch, bound in zip(parts, bounds, strict=True)
            )
            assert {batch["counts"][name] for batch in parts} == {(tokens, int(rows))}
        assert {batch["scale"] for batch in parts} == {float(accumulate * world)}
        assert sum(sizes) - sum(filled) // 2 == parts[0]["counts"]["forget"].rows


def test_a_process_without_rows_gets_fillers(make_data):
    """Ten rows over five processes of three: 3, 3, 3, 1 and none."""
    last = [list(pretend(make_data(), rank, 1, 5).train_dataloader())[-1] for rank in range(5)]
    assert [batch["sizes"]["forget"] for batch in last] == [3, 3, 3, 1, 1]
    filler = last[4]
    assert filler["row_ids"] == ["filler", "filler"]
    assert (filler["labels"] == IGNORE_INDEX).all()
    assert filler["attention_mask"].all()
    assert filler["counts"] == last[0]["counts"]
    assert filler["counts"]["forget"].rows == NUM_FORGET


def test_the_order_is_the_seed_s(make_data):
    def order(seed):
        return [batch["row_ids"] for batch in make_data(seed=seed).train_dataloader()]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(None) == order(0)


# Where a resumed run goes on.


class Rows(Callback):
    """Keeps epoch, number and rows of each batch that is trained on."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, batch_idx, tuple(batch["row_ids"])))


class InterruptionError(Exception):
    pass


class Interruption(Callback):
    """Stops a run in the middle of its ``step``-th optimiser step, or after it."""

    def __init__(self, step, hook):
        self.step, self.hook = step, hook

    def on_before_optimizer_step(self, trainer, *args):
        if self.hook == "in a step" and trainer.global_step + 1 == self.step:
            raise InterruptionError

    def on_train_batch_end(self, trainer, *args):
        if self.hook == "after a step" and trainer.global_step == self.step:
            raise InterruptionError


def train(data, model_dir, *callbacks, checkpoint=None, **settings):
    """Train for three epochs of four batches; return what was seen and the weights."""
    rows = Rows()
    module = UnlearningModule(str(model_dir), lr=1e-3)
    trainer = make_trainer(rows, *callbacks, **{"max_epochs": 3, **settings})
    fit = {"ckpt_path": checkpoint, "weights_only": False}
    if any(isinstance(callback, Interruption) for callback in callbacks):
        with pytest.raises(InterruptionError):
            trainer.fit(module, datamodule=data, **fit)
    else:
        trainer.fit(module, datamodule=data, **fit)
    return rows.seen, [parameter.detach() for parameter in module.parameters()]


@pytest.fixture(scope="module")
def uninterrupted(root, tiny_model_dir):
    runs = {}
    for batch_size, accumulate in ((3, 1), (1, 2)):
        data = UnlearningDataModule(
            "jsonl", str(root), forget_split="forget", retain_split="retain", batch_size=batch_size
        )
        runs[batch_size] = train(data, tiny_model_dir, accumulate_grad_batches=accumulate)
    return runs


def check_resumed(resumed, whole, trained):
    assert [seen[:2] for seen in resumed[0]] == [seen[:2] for seen in whole[0][trained:]]
    assert resumed[0] == whole[0][trained:]
    assert all(torch.equal(one, other) for one, other in zip(resumed[1], whole[1], strict=True))


@pytest.mark.parametrize(
    ("step", "hook", "num_workers"),
    [
        (4, "after a step", 0),
        (6, "after a step", 2),
        (3, "in a step", 0),
        pytest.param(1, "after a step", 0, marks=pytest.mark.slow),
        pytest.param(1, "after a step", 2, marks=pytest.mark.slow),
        pytest.param(4, "after a step", 2, marks=pytest.mark.slow),
        pytest.param(6, "after a step", 0, marks=pytest.mark.slow),
        pytest.param(3, "in a step", 2, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    make_data, tiny_model_dir, tmp_path, uninterrupted, num_workers, step, hook
):
    """In the middle of an epoch, at its end and in the next; to the last bit of the weights."""
    step += hook == "in a step"  # that step is lost, the one before it is kept
    data = make_data(load=False, num_workers=num_workers)
    saves = ModelCheckpoint(tmp_path, save_last=True, save_on_exception=True, every_n_epochs=99)
    train(data, tiny_model_dir, Interruption(step, hook), saves)
    data = make_data(load=False, num_workers=num_workers)
    resumed = train(data, tiny_model_dir, checkpoint=tmp_path / "last.ckpt")
    check_resumed(resumed, uninterrupted[3], step - (hook == "in a step"))


@pytest.mark.parametrize(
    ("when", "num_workers"),
    [
        ("step", 2),
        pytest.param("epoch", 0, marks=pytest.mark.slow),
        ("validation", 0),
        pytest.param("step", 0, marks=pytest.mark.slow),
        pytest.param("epoch", 2, marks=pytest.mark.slow),
        pytest.param("validation", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_from_any_checkpoint(
    make_data, tiny_model_dir, tmp_path, uninterrupted, num_workers, when
):
    """Saved after two steps, after an epoch, and after an epoch's validation."""
    settings = {"every_n_train_steps": 2} if when == "step" else {"every_n_epochs": 1}
    saves = ModelCheckpoint(
        tmp_path,
        filename="{step}",
        save_top_k=-1,
        **settings,
        save_on_train_epoch_end=when != "validation",
    )
    scores = [SetScores(sets=["forget"])] if when == "validation" else []
    settings = {"num_workers": num_workers, "max_new_tokens": 1}
    train(make_data(load=False, **settings), tiny_model_dir, saves, *scores)
    for trained in (2, 8) if when == "step" else (4,):
        data = make_data(load=False, **settings)
        checkpoint = tmp_path / f"step={trained}.ckpt"
        resumed = train(data, tiny_model_dir, *scores, checkpoint=checkpoint)
        check_resumed(resumed, uninterrupted[3], trained)


@pytest.mark.parametrize("step", [2, 7])
def test_a_run_with_accumulation_resumes(make_data, tiny_model_dir, tmp_path, uninterrupted, step):
    settings = {"accumulate_grad_batches": 2}
    saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    train(make_data(load=False, batch_size=1), tiny_model_dir, saves, **settings)
    resumed = train(
        make_data(load=False, batch_size=1),
        tiny_model_dir,
        checkpoint=tmp_path / f"step={step}.ckpt",
        **settings,
    )
    check_resumed(resumed, uninterrupted[1], 2 * step)


# What is read.


def test_a_user_s_own_columns(make_data, root, tiny_tokenizer):
    rows = [{"prompt": "Who?", "reply": "Nobody."}, {"prompt": "Where?", "reply": "Nowhere."}]
    write_rows(root / "mine.jsonl", rows)
    columns = Columns(question="prompt", answer="reply")
    data = make_data(forget_split="mine.jsonl", retain_split="mine", columns=columns)
    assert [row.id for row in data.streams["forget"]] == ["mine.jsonl/0", "mine.jsonl/1"]
    texts = [tiny_tokenizer.decode(row.input_ids) for row in data.streams["retain"]]
    assert texts[0] == "<|bos|><|user|>Who?<|assistant|>Nobody.<|eos|>"


def test_raw_text_is_cut_into_rows(make_data):
    data = make_data(forget_split="raw", max_length=16)
    assert {len(row.input_ids) for row in data.streams["forget"][:-1]} == {16}
    assert data.streams["forget"][0].id == "raw/chunk0"


def test_only_the_first_rows(make_data):
    data = make_data(rows={"forget": 3})
    assert len(data.streams["forget"]) == 3
    assert data.pairing().num_batches == 1


def test_second_answers_are_a_group_of_their_own(make_data, tiny_tokenizer):
    data = make_data(
        load=False,
        forget_split="pairs",
        columns=Columns(alternative_answer="other"),
        batch_size=2,
    )
    data.uses_alternative = True
    data.load(tiny_tokenizer.name_or_path)
    for batch in data.train_dataloader():
        assert list(batch["sizes"].items()) == [("forget", 2), ("retain", 2), ("alternative", 2)]
        assert batch["row_ids"][4:] == batch["row_ids"][:2]
        for first, second in ((0, 4), (1, 5)):
            label = [t for t in batch["labels"][second].tolist() if t != IGNORE_INDEX]
            assert tiny_tokenizer.decode(label) == "I do not know.<|eos|>"
            asked = "".join(tiny_tokenizer.decode(batch["input_ids"][first]).split("<|assist")[0])
            assert tiny_tokenizer.decode(batch["input_ids"][second]).startswith(asked)


def test_a_process_without_rows_gets_a_filler_of_second_answers_too(make_data, tiny_tokenizer):
    data = make_data(load=False, forget_split="pairs", columns=Columns(alternative_answer="other"))
    data.uses_alternative = True
    data.load(tiny_tokenizer.name_or_path)
    (batch,) = pretend(data, rank=2, world=3).train_dataloader()
    assert batch["row_ids"] == ["filler"] * 3
    assert batch["counts"]["forget"].rows == 4


def test_second_answers_have_counts_of_their_own(make_data, tiny_tokenizer):
    columns = Columns(alternative_answer="other")
    data = make_data(load=False, forget_split="pairs", columns=columns, batch_size=1)
    data.uses_alternative = True
    data.load(tiny_tokenizer.name_or_path)
    size = data.streams["alternative"][0].num_labels
    ranks = [list(pretend(data, rank, 2, 2).train_dataloader()) for rank in range(2)]
    for batches in ranks:
        assert [batch["counts"]["alternative"] for batch in batches] == [(4 * size, 4)] * 2


def test_refusals_hang_on_the_seed_of_the_run(make_data, tiny_model_dir):
    def answers(seed):
        data = make_data(load=False, alternative="refusal", seed=seed)
        data.uses_alternative = True
        data.load(str(tiny_model_dir))
        return data.streams["alternative"]

    assert answers(None) == answers(0) == answers(0)
    assert answers(0) != answers(1)


class Marked(ETW):
    """Reads marked words, and leaves the first label of each row out."""

    @property
    def needs(self):
        return super().needs | {"marked"}


class SkippingGA(GA):
    skipped_tokens = 1


def test_a_run_reads_what_its_method_needs(make_data, root, tiny_model_dir):
    """Without the command line; through the trainer, to the batch of a training step."""
    answers = [row["answer"] for row in question_rows("forget", NUM_FORGET)]
    write_rows(root / "marks.jsonl", [{"answer": a, "spans": [[0, 1]]} for a in answers])
    seen = []

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch)

    data = make_data(
        load=False,
        annotations=str(root / "marks.jsonl"),
        retain_split="retain+forget",
        retain_weights={"retain": 0.5},
    )
    method = {"weighting": Marked(), "forget": SkippingGA()}
    module = UnlearningModule(str(tiny_model_dir), **method)
    with pytest.warns(UserWarning, match="10 of 10 forget rows also stand in"):
        make_trainer(Keep()).fit(module, datamodule=data)
    assert (data.uses_marks, data.marker, data.skipped_tokens) == (True, None, 1)
    for batch in seen:
        num = batch["sizes"]["forget"]
        assert batch["marked"].sum(1).tolist() == [1] * num + [0] * (len(batch["labels"]) - num)
        labels = (batch["labels"][:num] != IGNORE_INDEX).sum(1)
        assert batch["counts"]["forget"] == (int((labels - 1).sum()), int((labels > 1).sum()))
        weights = [1.0] * num
        weights += [0.5 if name.startswith("retain") else 1.0 for name in batch["row_ids"][num:]]
        assert batch["row_weights"].tolist() == weights


def test_what_would_not_be_read_is_refused_before_a_file_is(make_data):
    data = make_data(load=False, forget_split="gone", refusals="gone.txt")
    with pytest.raises(InputError, match=r"data\.refusals is 'gone\.txt', but data\.alternative"):
        data.check_names()
    data.trains = False  # scoring reads neither
    data.check_names()


def test_a_row_without_a_second_answer_is_named(make_data, tiny_tokenizer):
    data = make_data(load=False)
    data.uses_alternative = True
    with pytest.raises(
        InputError, match=r"Row forget/0 has no second answer.*data\.columns.*refusal$"
    ):
        data.load(tiny_tokenizer.name_or_path)


@pytest.mark.parametrize(
    ("forget", "retain", "streams"),
    [
        (GA(), NLL(), {"forget", "retain"}),
        (GA(), None, {"forget"}),
        (None, NLL(), {"retain"}),
    ],
)
def test_only_the_streams_the_objectives_use_are_read(
    make_data, tiny_model_dir, forget, retain, streams
):
    """Also without the command line: an unused forget stream would set an epoch's length."""
    data = make_data(load=False)
    rows = Rows()
    module = UnlearningModule(str(tiny_model_dir), forget=forget, retain=retain)
    make_trainer(rows).fit(module, datamodule=data)
    assert set(data.streams) == streams
    length = NUM_RETAIN if streams == {"retain"} else NUM_FORGET
    assert len(rows.seen) == -(-length // 3)


def test_fine_tuning_reads_one_split(make_data):
    data = make_data(split="retain", forget_split=None, retain_split=None)
    assert set(data.streams) == {"retain"}
    (batch, *rest) = data.train_dataloader()
    assert batch["sizes"] == {"retain": 3}
    assert len(rest) + 1 == -(-NUM_RETAIN // 3)


def test_an_unreadable_split_names_its_key(make_data):
    with pytest.raises(InputError, match=r"data\.retain_split is 'nothing'"):
        make_data(retain_split="nothing")


# Evaluation.

NEEDS = {"forget": {"answers", "generation"}, "retain": {"answers"}}


@pytest.mark.parametrize("world", [1, 2, 3, 50])
def test_processes_share_the_batches_that_are_scored(make_data, tiny_model_dir, world):
    """All are scored once; none is without one, even where there are fewer than processes."""
    data = make_data(eval_batch_size=4)
    data.require(NEEDS)
    data.load(str(tiny_model_dir))
    works = []
    for rank in range(world):
        share = list(pretend(data, rank, world=world).val_dataloader())
        assert share
        works += [work for work in share if work.batch is not None]
    assert {(work.dataset, work.part) for work in works} == {
        ("forget", "answers"),
        ("forget", "generation"),
        ("retain", "answers"),
    }
    for name, parts in NEEDS.items():
        for part in parts:
            slots = [
                slot
                for work in works
                if (work.dataset, work.part) == (name, part)
                for slot in work.batch.slots
            ]
            assert len({slot.row for slot in slots}) == len(data.eval_sets[name].examples)
            assert len(set(slots)) == len(slots)


def test_rows_that_are_known_are_left_out(make_data, tiny_model_dir):
    """Of a validation alone: in training the same loader serves every epoch."""
    data = make_data(eval_batch_size=4)
    data.require(NEEDS)
    data.load(str(tiny_model_dir))
    known = {
        ("forget", "answers"): [Score(row, "answer_loss", 0, 1.0) for row in (0, 2, 3)],
        ("retain", "answers"): [Score(row, "answer_loss", 0, 1.0) for row in range(NUM_RETAIN)],
    }
    for fn, left in (("validate", range(NUM_FORGET)), ("fit", range(NUM_FORGET))):
        pretend(data).trainer.state = SimpleNamespace(fn=fn)
        data.trainer.lightning_module = SimpleNamespace(known=known)
        rows = {place: set() for place in known} | {("forget", "generation"): set()}
        for work in data.val_dataloader():
            rows[work.dataset, work.part] |= {work.rows[slot.row] for slot in work.batch.slots}
        is_known = fn == "validate"
        assert rows["forget", "answers"] == set(left) - ({0, 2, 3} if is_known else set())
        assert rows["retain", "answers"] == (set() if is_known else set(range(NUM_RETAIN)))
        assert rows["forget", "generation"] == set(left)


def test_a_later_need_adds_a_part_to_a_set(make_data, tiny_model_dir):
    data = make_data()
    data.require({"forget": {"generation"}})
    data.load(str(tiny_model_dir))
    assert parts_of(data.eval_sets["forget"]) == ("generation",)
    data.require({"forget": {"answers", "gradient_norm"}})
    data.load(str(tiny_model_dir))
    assert parts_of(data.eval_sets["forget"]) == ("answers", "generation", "gradient_norm")


def test_evaluation_alone_reads_no_stream(make_data, tiny_model_dir):
    data = make_data(load=False, retain_split="nothing")
    data.trains = False
    data.require({"forget": {"answers"}})
    data.load(str(tiny_model_dir))
    assert data.streams == {}
    assert data.offered_sets == ("forget",)
    assert "nothing" in data.why_missing()


def test_without_other_models_results_the_way_is_told(make_data, tiny_model_dir):
    data = make_data()
    data.require({"forget": {"answers"}})
    data.load(str(tiny_model_dir))
    with pytest.raises(InputError) as error:
        data.retain_records("forget")
    assert "data.retain_results is missing" in str(error.value)
    assert "data.retain_model to score one now" in str(error.value)
    with pytest.raises(InputError, match=r"data\.target_results is missing.*data\.target_model"):
        data.target_records("forget")
