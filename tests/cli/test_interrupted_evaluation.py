"""``evaluate`` that is interrupted: what is done is kept, and the same command goes on."""

import os
import re
import shutil
import signal

import pytest

from etw_lightning.scoring import record_cache
from etw_lightning.scoring.retain_results import load_records
from etw_lightning.training import scoring_module


@pytest.fixture
def stop_after(monkeypatch):
    """Let something happen instead of a batch, once some have been scored."""

    def arrange(count, happen):
        left = [count]
        original = scoring_module.score_in_turn

        def score(*args):
            if left[0] == 0:
                happen()
            left[0] -= 1
            return original(*args)

        monkeypatch.setattr(scoring_module, "score_in_turn", score)
        return lambda: monkeypatch.setattr(scoring_module, "score_in_turn", original)

    return arrange


def interrupt():
    raise KeyboardInterrupt


def rows_of(batches):
    return sum(rows for _, _, rows in batches)


def test_an_interrupted_evaluation_goes_on_from_its_last_batch(
    command, evaluate, args, home, scored, stop_after
):
    names = ("--metrics=model_utility,forget_quality", "--data.eval_batch_size=1")
    _, whole, expected = evaluate(*names, name="whole")
    total = len(scored)
    shutil.rmtree(home.parent / "cache")
    scored.clear()
    resume = stop_after(6, interrupt)
    folder = home.parent / "out"
    result = command(*args, *names, f"--output_dir={folder}")
    assert result.status != 0
    assert "the same command goes on from there" in result.out
    assert len(scored) == 6
    assert not (folder / "results.json").exists()
    finished = load_records(folder)
    assert finished
    assert all(rows == expected[name] for name, rows in finished.items())

    resume()
    before = rows_of(scored)
    scored.clear()
    out, results, records = evaluate("--metrics=model_utility,forget_quality")
    assert "rows read from cache" in out
    assert rows_of(scored) == total - before
    assert len(scored) < total - before, "other batches than the first time"
    for name, rows in expected.items():
        for row, other in zip(rows, records[name], strict=True):
            assert other.answer_loss == pytest.approx(row.answer_loss, rel=1e-5)
            assert other.generation == row.generation
    assert results["metrics"].keys() == whole["metrics"].keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process to be killed is forked")
def test_a_killed_evaluation_goes_on_too(command, evaluate, args, home, scored, stop_after):
    names = ("--metrics=model_utility", "--data.eval_batch_size=1")
    resume = stop_after(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if child == 0:
        command(*args, *names, f"--output_dir={home.parent / 'out'}")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    resume()
    evaluate(*names)
    # Three sets, both parts, a row a batch; a question's answers are one row.
    assert len(scored) == 2 * (3 + 2 + 2) - 5


def test_a_journal_that_was_cut_costs_its_own_rows_only(evaluate, scored, home):
    names = ("--metrics=forget_quality", "--data.eval_batch_size=1")
    _, whole, _ = evaluate(*names)
    assert len(scored) == 4
    scored.clear()
    loss = load_records(home.parent / "out")["forget"][0].answer_loss
    journals = (home.parent / "cache" / "scores").glob("*/*.jsonl")
    (journal,) = [path for path in journals if str(loss) in path.read_text()]
    lines = journal.read_bytes().splitlines(keepends=True)
    changed = lines[1].replace(b"answer_loss", b"answer_lost")
    journal.write_bytes(lines[0] + changed + lines[2] + lines[3][:-20])
    out, again, _ = evaluate(*names, name="again")
    assert f"forget: 2 of 4 lines of {journal} can't be read" in out
    assert "forget: answers of 2 of 4 rows read from cache, of 2 scored" in out
    assert len(scored) == 2
    assert again["metrics"] == whole["metrics"]


def test_a_records_file_that_was_cut_is_written_anew(evaluate, scored, home):
    _, _, expected = evaluate("--metrics=forget_quality,rouge")
    path = home.parent / "out" / "records" / "forget.jsonl.gz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    scored.clear()
    out, _, records = evaluate("--metrics=forget_quality,rouge")
    assert f"forget: {path} was cut; it is written anew" in out
    assert records == expected
    # A poorer evaluation leaves what the folder holds of other parts.
    _, _, records = evaluate("--metrics=forget_quality")
    assert records["forget"] == expected["forget"]
    assert scored == []


def test_a_number_that_is_none_names_its_row_and_keeps_what_is_done(
    command, evaluate, args, home, scored, monkeypatch
):
    original = scoring_module.score_in_turn

    def spoil(scorer, batch, tokenizer):
        for scores in original(scorer, batch, tokenizer):
            if batch.dataset != "world_facts":
                yield scores
                continue
            yield [
                score._replace(value=float("nan"))
                if (score.field, score.row) == ("answer_loss", 1)
                else score
                for score in scores
            ]

    monkeypatch.setattr(scoring_module, "score_in_turn", spoil)
    folder = home.parent / "out"
    result = command(*args, "--metrics=model_utility", f"--output_dir={folder}")
    assert result.status == 2
    assert re.fullmatch(r"error: [^\n]+\n", result.err)
    assert "world_facts_perturbed/1" in result.err
    assert "ended early; records written of retain, real_authors\n" in result.out
    assert " world_facts " in result.err
    assert set(load_records(folder)) == {"retain", "real_authors"}
    monkeypatch.setattr(scoring_module, "score_in_turn", original)
    scored.clear()
    evaluate("--metrics=model_utility")
    assert {(name, part) for name, part, _ in scored} == {
        ("world_facts", "answers"),
        ("world_facts", "generation"),
    }


@pytest.mark.parametrize(
    ("happen", "status"),
    [
        (interrupt, 130),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143),
        # Slurm's before a time limit; the job scripts requeue on 143 alone.
        (lambda: os.kill(os.getpid(), signal.SIGUSR1), 143),
    ],
    ids=["SIGINT", "SIGTERM", "SIGUSR1"],
)
def test_an_end_before_the_end_is_no_success(command, args, home, stop_after, happen, status):
    before = signal.getsignal(signal.SIGUSR1)
    stop_after(1, happen)
    folder = home.parent / "out"
    result = command(*args, "--metrics=model_utility", f"--output_dir={folder}")
    assert result.status == status
    assert "the same command goes on from there" in result.out
    assert not (folder / "results.json").exists()
    signal.signal(signal.SIGUSR1, before)


def test_what_is_scored_for_good_is_noted_for_job_scripts(
    command, args, tofu_args, home, stop_after, monkeypatch, retain_model_dir
):
    notes = home.parent / "no folder yet" / "out.scored"
    monkeypatch.setenv("ETW_SCORED", str(notes))

    def num_noted():
        return len(notes.read_text().splitlines()) if notes.exists() else 0

    more = ["--metrics=model_utility", "--data.eval_batch_size=1"]
    resume = stop_after(4, interrupt)
    command(*args, *more, f"--output_dir={home.parent / 'out'}")
    assert num_noted() == 4, "evaluate goes on from each batch"
    resume()

    # Three rows of the retain set, their answers first.
    for count, parts_done in ((2, 0), (3, 0), (4, 1), (8, 2)):
        notes.unlink(missing_ok=True)
        shutil.rmtree(home.parent / "cache", ignore_errors=True)
        resume = stop_after(count, interrupt)
        callback = '--trainer.callbacks=[{"class_path": "ModelUtility"}]'
        run = [*tofu_args, f"--data.retain_model={retain_model_dir}", callback, *more[1:]]
        assert command(*run, f"--output_dir={home.parent / str(count)}").status == 130
        assert num_noted() == parts_done, "fit goes on from whole parts"
        resume()


def test_notes_that_can_not_be_written_are_named(command, args, home, monkeypatch):
    (home.parent / "file").touch()
    monkeypatch.setenv("ETW_SCORED", str(home.parent / "file" / "out.scored"))
    result = command(*args, "--metrics=model_utility", f"--output_dir={home.parent / 'out'}")
    assert result.status == 2
    assert result.err.startswith(f"error: ETW_SCORED: {home.parent}/file/out.scored can't be ")


def test_an_interruption_before_the_pass_is_one_line(command, args, home, monkeypatch):
    monkeypatch.setattr(record_cache, "score_in_turn", lambda *_: interrupt())
    result = command(*args, "--metrics=forget_quality")
    assert (result.status, result.err) == (130, "interrupted; what was scored is kept\n")
