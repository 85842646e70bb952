"""Scores found again: what their key depends on, and what is left of a journal after a crash."""

import json
import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, RobertaConfig

import etw_lightning
from etw_lightning.data.encode import Encoder
from etw_lightning.models.loading import LabelScorer, load_model, load_tokenizer
from etw_lightning.schema import Conventions, EvalSet, Example, InputError
from etw_lightning.scoring import record_cache
from etw_lightning.scoring.batches import Score, expected_scores, make_records
from etw_lightning.scoring.cache import journals
from etw_lightning.scoring.cache import keys as keys_module
from etw_lightning.scoring.cache.journals import Journal, known_scores, note_progress
from etw_lightning.scoring.cache.keys import model_identity, score_keys
from etw_lightning.scoring.parts import with_parts

EXAMPLES = tuple(
    Example(f"set/{row}", f"Answer {row}.", f"Question {row}?", perturbed_answers=("No.", "Never."))
    for row in range(5)
)
SET = EvalSet("set", EXAMPLES, gradient_norm=True, max_new_tokens=4, stop_strings=("\n",))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def encoder(tiny_tokenizer):
    return Encoder(tiny_tokenizer)


def keys(encoder, eval_set=SET, identity="model", precision="float32 32-true"):
    return score_keys(identity, eval_set, encoder, precision)


def test_each_part_has_a_key_whatever_else_is_scored(encoder):
    found = keys(encoder)
    assert list(found) == ["answers", "generation", "gradient_norm"]
    assert len(set(found.values())) == 3
    for part, key in found.items():
        assert keys(encoder, with_parts(SET, [part])) == {part: key}


def test_keys_are_of_24_hexadecimal_digits(encoder):
    for key in (*keys(encoder).values(), keys_module.rows_hash(SET)):
        assert len(key) == 24
        assert set(key) <= set("0123456789abcdef")


OTHERS = {
    "weights": {"identity": "other"},
    "precision": {"precision": "bfloat16 32-true"},
    "rows": {"eval_set": replace(SET, examples=EXAMPLES[:4])},
    "one answer": {
        "eval_set": replace(SET, examples=(*EXAMPLES[:4], replace(EXAMPLES[4], answer="Else.")))
    },
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_key_depends_on_what_decides_a_score(encoder, what):
    first, other = keys(encoder), keys(encoder, **OTHERS[what])
    assert not set(first.values()) & set(other.values())


def test_a_key_depends_on_the_tokens_and_the_code(tiny_tokenizer, encoder, monkeypatch):
    first = keys(encoder)
    for other in (
        Encoder(tiny_tokenizer, template="plain"),
        Encoder(tiny_tokenizer, max_length=64),
        Encoder(tiny_tokenizer, conventions=Conventions(attention_mask="token_id")),
    ):
        assert not set(first.values()) & set(keys(other).values())
    # The floor is of a metric; records are the same.
    assert keys(Encoder(tiny_tokenizer, conventions=Conventions(floor="peer"))) == first
    monkeypatch.setattr(keys_module, "code_hash", lambda _: "other")
    assert not set(first.values()) & set(keys(encoder).values())


def test_only_generation_depends_on_how_long_it_is(encoder):
    first, longer = keys(encoder), keys(encoder, replace(SET, max_new_tokens=5))
    assert {part for part in first if first[part] != longer[part]} == {"generation"}


def test_the_same_weights_elsewhere_are_the_same_model(tiny_model_dir, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tiny_model_dir.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    before = model_identity(str(copy))
    assert before == model_identity(str(tiny_model_dir))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert model_identity(str(copy)) != before


ANSWERS = with_parts(SET, ["answers"])


def scores_of(row):
    """All scores of one row, as the scorer makes them."""
    values = {"token_spans": ((0, 3), (3, 6)), "token_matches": (1, 0)}
    made = []
    for field, place in expected_scores(ANSWERS, EXAMPLES[row]):
        number = 0.1 * (row + 1) + place
        value = (number, -number) if field.startswith("token") else number
        made.append(Score(row, field, place, values.get(field, value)))
    return made


def write(rows, key="key"):
    journal = Journal(key, of_rows=True)
    for row in rows:
        journal.append(scores_of(row))
    journal.close()


def test_a_journal_gives_back_what_was_scored_bit_by_bit():
    write(range(3))
    write([4])
    known = known_scores("key", ANSWERS)
    assert known.pending == (3,)
    assert known.damage == ""
    assert sorted(known.scores) == sorted(score for row in (0, 1, 2, 4) for score in scores_of(row))
    write([3])
    again = make_records(ANSWERS, known_scores("key", ANSWERS).scores)
    assert again == make_records(ANSWERS, [score for row in range(5) for score in scores_of(row)])


def test_a_row_scored_in_part_is_pending():
    journal = Journal("key", of_rows=True)
    journal.append(scores_of(0)[:-1])
    assert known_scores("key", ANSWERS).pending == (0, 1, 2, 3, 4)
    journal.append(scores_of(0)[-1:])
    journal.close()
    assert known_scores("key", ANSWERS).pending == (1, 2, 3, 4)


def test_wherever_a_journal_is_cut_the_lines_before_are_kept(cache):
    write(range(5))
    (path,) = cache.glob("scores/key/*.jsonl")
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        known = known_scores("key", ANSWERS)
        # The line's end itself holds nothing.
        done = sum(end - 1 <= cut for end in ends)
        assert known.pending == tuple(range(done, 5)), cut
        is_torn = cut not in (0, *ends) and cut + 1 not in ends
        assert bool(known.damage) == is_torn, cut


def test_a_line_that_was_changed_costs_its_own_rows(cache):
    write(range(5))
    (path,) = cache.glob("scores/key/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0.3", b"0.4", 1)
    path.write_bytes(b"".join(lines))
    known = known_scores("key", ANSWERS)
    assert known.pending == (2,)
    assert known.damage == f"1 of 5 lines of {path}"


def test_what_is_damaged_is_named_in_order(cache):
    folder = cache / "scores" / "key"
    folder.mkdir(parents=True)
    paths = [folder / f"{name}.jsonl" for name in "gbhadfce"]
    for path in paths:
        path.write_bytes(b"00000000 []\n")
    said = ", ".join(f"1 of 1 lines of {path}" for path in sorted(paths))
    assert known_scores("key", ANSWERS).damage == said


def test_a_batch_with_nan_is_not_kept(cache):
    journal = Journal("key", of_rows=True)
    bad = [score._replace(value=math.nan) for score in scores_of(0)[:1]]
    journal.append([*bad, *scores_of(0)[1:]])
    spoiled = [
        score._replace(value=(1.0, math.inf)) if score.field == "token_logps" else score
        for score in scores_of(1)
    ]
    journal.append(spoiled)
    journal.close()
    assert list(cache.rglob("*.jsonl")) == []


def test_lines_can_be_read_by_others(cache):
    write([1])
    (path,) = cache.glob("scores/key/*.jsonl")
    head, _, text = path.read_text().partition(" ")
    assert len(head) == 8
    assert json.loads(text)[0][:3] == [1, "answer_loss", 0]


def test_another_models_scores_are_made_once_and_in_any_batches(
    tiny_model_dir, tiny_tokenizer, monkeypatch
):
    encoder = Encoder(load_tokenizer(str(tiny_model_dir)))
    first = record_cache.score_model(str(tiny_model_dir), {"set": SET}, encoder, 2)

    def refuse(*args):
        raise AssertionError("it is known")

    monkeypatch.setattr(record_cache, "score_in_turn", refuse)
    with pytest.raises(AssertionError, match="it is known"):
        record_cache.score_model(str(tiny_model_dir), {"set": SET}, encoder, 2, attention="eager")
    part = with_parts(SET, ["generation"])
    again = record_cache.score_model(str(tiny_model_dir), {"set": SET}, encoder, 4)
    assert again == first
    fewer = record_cache.score_model(str(tiny_model_dir), {"set": part}, encoder, 4)
    assert [row.generation for row in fewer["set"]] == [row.generation for row in first["set"]]
    assert fewer["set"][0].answer_loss is None


def save_small(config, tokenizer, folder, **fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    special = {"num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
    made = config(vocab_size=len(tokenizer), **sizes, **special, **fields)
    lm = AutoModelForCausalLM.from_config(made).eval()
    lm.save_pretrained(folder)
    return lm


def test_another_models_logits_are_its_own(tiny_tokenizer, tmp_path):
    scaled = {"logits_scaling": 0.125, "initializer_range": 0.5}
    lm = save_small(GraniteConfig, tiny_tokenizer, tmp_path, **scaled)
    encoder = Encoder(tiny_tokenizer)
    (record, *_) = record_cache.score_model(str(tmp_path), {"set": SET}, encoder, 2)["set"]
    row = encoder.encode(SET.examples[0])
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    with torch.no_grad():
        logits = lm(input_ids=ids).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:]).item()
    assert record.answer_loss == pytest.approx(loss, abs=1e-5)


def test_what_an_interruption_left_is_scored_under_its_own_numbers(
    tiny_model_dir, tiny_tokenizer, monkeypatch, tmp_path
):
    """Rows 0 and 1 of four are in the journal; 2 and 3 are the first two that are scored."""
    encoder = Encoder(load_tokenizer(str(tiny_model_dir)))
    four = replace(SET, examples=EXAMPLES[:4])
    whole = record_cache.score_model(str(tiny_model_dir), {"set": four}, encoder, 2)["set"]
    found = score_keys(model_identity(str(tiny_model_dir)), four, encoder, "float32 32-true")
    scores = {
        part: known_scores(key, with_parts(four, [part])).scores for part, key in found.items()
    }

    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "broken off"))
    for part, key in found.items():
        journal = Journal(key, of_rows=True)
        journal.append([score for score in scores[part] if score.row < 2])
        journal.close()
        assert known_scores(key, with_parts(four, [part])).pending == (2, 3)
    again = record_cache.score_model(str(tiny_model_dir), {"set": four}, encoder, 2)["set"]
    for row, expected in zip(again, whole, strict=True):
        assert row.id == expected.id
        assert row.generation == expected.generation
        assert row.answer_loss == pytest.approx(expected.answer_loss, rel=1e-5)
        assert row.perturbed_losses == pytest.approx(expected.perturbed_losses, rel=1e-5)
    for part, key in found.items():
        assert known_scores(key, with_parts(four, [part])).pending == ()


def test_another_models_logits_are_checked_too(tiny_tokenizer, tmp_path):
    save_small(RobertaConfig, tiny_tokenizer, tmp_path, is_decoder=True)
    encoder = Encoder(tiny_tokenizer)
    for key in ("data.retain_model", "data.target_model"):
        with pytest.raises(InputError, match=f"^{key}: RobertaForCausalLM transforms its hidden"):
            record_cache.score_model(str(tmp_path), {"set": SET}, encoder, 2, key=key)


def test_attention_is_that_of_the_run(tiny_model_dir, tiny_tokenizer, monkeypatch):
    seen = []

    def load(pretrained, dtype, attention, key):
        seen.append(attention)
        return load_model(pretrained, dtype, attention, key)

    monkeypatch.setattr(record_cache, "load_model", load)
    encoder = Encoder(tiny_tokenizer)
    for attention in ("eager", None):
        record_cache.score_model(
            str(tiny_model_dir), {"set": ANSWERS}, encoder, 4, attention=attention
        )
    assert seen == ["eager", None]


@pytest.mark.parametrize("parts", [["answers"], ["generation"], ["answers", "generation"]])
def test_how_prompts_are_continued_is_found_out_where_some_are(
    tiny_model_dir, encoder, monkeypatch, tmp_path, parts
):
    asked = []
    check = LabelScorer.check_head

    def noting(self, key, *, continues=False):
        asked.append((key, continues))
        check(self, key, continues=continues)

    monkeypatch.setattr(LabelScorer, "check_head", noting)
    monkeypatch.setenv("ETW_SCORED", str(tmp_path / "scored"))
    some = {"set": with_parts(SET, parts)}
    record_cache.score_model(str(tiny_model_dir), some, encoder, 8, key="data.target_model")
    assert asked == [("data.target_model", "generation" in parts)]
    # The next run reads what this one has kept.
    assert "scored" in (tmp_path / "scored").read_text()


def test_each_thing_that_is_kept_is_a_line_of_the_file_that_a_job_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("ETW_SCORED", raising=False)
    note_progress()
    path = tmp_path / "runs" / "of" / "news.scored"
    monkeypatch.setenv("ETW_SCORED", str(path))
    note_progress()
    note_progress()
    assert path.read_text() == "scored\nscored\n"
    # A batch of which the next run reads the rows counts; one of which it does not, does not.
    for of_rows, lines in ((False, 2), (True, 3)):
        journal = Journal("key", of_rows=of_rows)
        journal.append(scores_of(0))
        journal.close()
        assert path.read_text() == "scored\n" * lines
    monkeypatch.setenv("ETW_SCORED", str(path / "below"))
    with pytest.raises(InputError, match=rf"^ETW_SCORED: {path}/below can't be written \("):
        note_progress()


#: Modules that a score passes through and that can't change it: who reads and keeps it, names of
#: parts, messages, and what the key itself is made of.
NEUTRAL = {
    "catalogue.entries",
    "files.code_hash",
    "files.foreign_models",
    "files.hub",
    "files.places",
    "files.safe_files",
    "notices",
    "scoring.cache.journals",
    "scoring.cache.keys",
    "scoring.parts",
    "scoring.record_cache",
    "value_checks",
}


def test_every_module_that_a_score_passes_through_counts(tiny_model_dir):
    """Else a changed formula would be answered by what the old one had given."""
    package = Path(etw_lightning.__file__).parent
    seen = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_name != "<module>":
            seen.add(frame.f_code.co_filename)

    encoder = Encoder(load_tokenizer(str(tiny_model_dir)))
    sys.setprofile(note)
    try:
        record_cache.score_model(str(tiny_model_dir), {"set": SET}, encoder, 2)
    finally:
        sys.setprofile(None)
    ours = [Path(name).relative_to(package) for name in seen if name.startswith(str(package))]
    names = {".".join(path.with_suffix("").parts) for path in ours}
    assert {"kernels.head", "scoring.answers.losses", "models.generation"} <= names
    assert names - NEUTRAL <= {*keys_module._CODE}


def test_the_code_that_loads_weights_counts():
    assert {"models.checkpoints", "models.loading", "models.positions"} <= {*keys_module._CODE}


def test_what_another_process_is_at_is_waited_for_last(monkeypatch):
    """Of three parts the second is taken by another process until the rest is done."""
    todo = {("set", part): part for part in ("answers", "generation", "gradient_norm")}
    asked = []

    @contextmanager
    def locked(key, *, waits):
        asked.append((key, waits))
        yield waits or key != "generation"

    monkeypatch.setattr(record_cache, "_locked", locked)
    done = record_cache._share_out(todo, lambda place: [place])
    assert done == {place: [place] for place in todo}
    first = [(key, False) for key in todo.values()]
    assert asked == [*first, ("generation", True)]
    assert list(done) == [("set", one) for one in ("answers", "gradient_norm", "generation")]


def test_a_lock_is_one_processs_and_is_let_go():
    with record_cache._locked("key", waits=False) as mine:
        assert mine
        with record_cache._locked("key", waits=False) as other:
            assert not other
    with record_cache._locked("key", waits=True) as mine:
        assert mine


def test_a_batch_is_on_the_disk_two_seconds_later_at_most(monkeypatch):
    now, synced = [100.0], []
    monkeypatch.setattr(journals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(journals.os, "fsync", lambda _: synced.append(now[0]))
    journal = Journal("key", of_rows=True)
    for now[0] in (101.0, 102.0, 102.5, 104.0, 104.5, 104.75, 107.0):
        journal.append(scores_of(0))
    assert synced == [102.5, 104.75, 107.0]
    journal.close()
    journal.close()
    assert synced == [102.5, 104.75, 107.0, 107.0]


def test_the_cache_lies_where_it_is_told_to(monkeypatch, tmp_path):
    monkeypatch.setenv("ETW_CACHE", str(tmp_path / "own"))
    assert record_cache.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("ETW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert record_cache.cache_dir() == tmp_path / "xdg" / "etw_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert record_cache.cache_dir() == tmp_path / "home" / ".cache" / "etw_lightning"


def test_what_of_a_folder_is_the_model(tmp_path, monkeypatch):
    """Weights, sizes and ends of generations; texts beside them are not."""
    (tmp_path / "model.safetensors").write_bytes(b"w")
    found = {model_identity(str(tmp_path))}
    for name in ("README.md", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"x")
        found.add(model_identity(str(tmp_path)))
    assert len(found) == 1
    for name in ("config.json", "generation_config.json", "more.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
        found.add(model_identity(str(tmp_path)))
    assert len(found) == 4
    assert all(len(one) == 64 for one in found)
    one = tmp_path / "model.safetensors"
    alone = model_identity(str(one))
    one.write_bytes(b"other")
    assert model_identity(str(one)) != alone
    config = SimpleNamespace(_commit_hash="123abc")
    monkeypatch.setattr(keys_module, "load_config", lambda *_: config)
    assert model_identity("some/model") == "some/model@123abc"
    del config._commit_hash
    assert model_identity("some/model") == "some/model@None"


def test_what_can_not_be_told_from_others_is_refused_under_its_key(tmp_path, monkeypatch):
    key = "data.retain_model"
    folder = tmp_path / "step.ckpt"
    folder.mkdir()
    with pytest.raises(InputError, match=rf"^{key}: checkpoint '{folder}' holds no checkpoint;"):
        model_identity(str(folder), key)
    asked = []
    monkeypatch.setattr(keys_module, "load_config", lambda *given: asked.append(given))
    assert model_identity("some/model", key) == "some/model@None"
    assert asked == [("some/model", key)]


def test_a_cache_that_can_not_be_written_is_named(monkeypatch, cache):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the folder would be")
    with pytest.raises(InputError, match=r"^ETW_CACHE: .*cache can't be written"):
        Journal("key", of_rows=True).append(scores_of(0))


@pytest.mark.parametrize("line", [b"", b"x", b"00000000 [", b"00000000"])
def test_what_is_no_line_of_a_journal(line):
    assert journals._read_line(line) is None


@pytest.mark.parametrize(("waits", "seconds"), [(True, -1), (False, 0)])
def test_a_lock_is_waited_for_without_end_or_not_at_all(monkeypatch, waits, seconds):
    asked = []

    class Lock:
        def __init__(self, path):
            assert path.name == "key.lock"

        def acquire(self, timeout):
            asked.append(timeout)

        def release(self):
            asked.append("released")

    monkeypatch.setattr("filelock.FileLock", Lock)
    with record_cache._locked("key", waits=waits) as mine:
        assert mine
        assert asked == [seconds]
    assert asked == [seconds, "released"]
