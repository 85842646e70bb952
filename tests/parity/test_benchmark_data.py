"""The readers on the published data, held against the published logs."""

import gzip
import json
from itertools import chain

import pytest

from etw_lightning.benchmarks.dusk import DUSK
from etw_lightning.benchmarks.muse import MUSE
from etw_lightning.benchmarks.r_tofu import RTOFU
from etw_lightning.benchmarks.source import Source
from etw_lightning.benchmarks.tofu import RETAIN_OF, SPLITS, TOFU
from etw_lightning.data.encode import JOINT
from etw_lightning.metrics.reasoning import parted

NUM_ROWS = {
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "forget01_perturbed": 40,
    "forget05_perturbed": 200,
    "forget10_perturbed": 400,
    "full": 4000,
    "holdout01": 40,
    "holdout05": 200,
    "holdout10": 400,
    "real_authors": 100,
    "real_authors_perturbed": 100,
    "retain90": 3600,
    "retain95": 3800,
    "retain99": 3960,
    "retain_perturbed": 400,
    "world_facts": 117,
    "world_facts_perturbed": 117,
}


@pytest.fixture(scope="module")
def tofu(data_dir):
    reader = TOFU(Source(root=data_dir))
    return {split: reader.examples(split, "data.forget_split") for split in SPLITS}


def pairs(examples):
    return [(example.question, example.answer) for example in examples]


def log(data_dir, path):
    with gzip.open(data_dir / "reference_logs" / path, "rt", encoding="utf-8") as file:
        return json.load(file)


def by_row(metric):
    rows = metric["value_by_index"]
    return [rows[str(i)] for i in range(len(rows))]


def cleaned(text):
    """What decoding tokens does to a space before a quote or comma."""
    return text.replace(" '", "'").replace(" ,", ",").strip()


def test_tofu_has_all_rows(tofu):
    assert {split: len(rows) for split, rows in tofu.items()} == NUM_ROWS
    assert len({e.id for rows in tofu.values() for e in rows}) == sum(NUM_ROWS.values())


@pytest.mark.parametrize("forget", RETAIN_OF)
def test_full_is_retain_then_forget(tofu, forget):
    assert pairs(tofu["full"]) == pairs(tofu[RETAIN_OF[forget]]) + pairs(tofu[forget])
    assert pairs(tofu[f"{forget}_perturbed"]) == pairs(tofu[forget])


def test_joined_splits_are_full(tofu, data_dir):
    joined = TOFU(Source(root=data_dir / "tofu")).examples("retain90+forget10", "data.retain_split")
    assert pairs(joined) == pairs(tofu["full"])


def test_tofu_sets_nest(tofu):
    assert pairs(tofu["forget05"]) == pairs(tofu["forget10"])[200:]
    assert pairs(tofu["forget01"]) == pairs(tofu["forget10"])[360:]
    assert pairs(tofu["holdout05"]) == pairs(tofu["holdout10"])[:200]
    assert pairs(tofu["retain_perturbed"]) == pairs(tofu["full"])[:400]
    assert not {q for q, _ in pairs(tofu["holdout10"])} & {q for q, _ in pairs(tofu["full"])}


def test_tofu_repeats_one_question(tofu):
    assert tofu["full"][100].question == tofu["full"][440].question
    assert tofu["full"][100].answer != tofu["full"][440].answer
    assert len({e.question for e in tofu["full"]}) == 3999


def test_tofu_perturbed_answers(tofu):
    for split, rows in tofu.items():
        fictitious = split.startswith(("forget", "retain"))
        num = (5 if fictitious else 3) if split.endswith("_perturbed") else 0
        assert {len(e.perturbed_answers) for e in rows} == {num}
        paraphrased = bool(num) and fictitious
        assert {e.paraphrased_answer is not None for e in rows} == {paraphrased}


def test_tofu_eval_sets_are_the_logged_rows(data_dir):
    path = "tofu_Llama-3.2-1B-Instruct_full/evals_forget10/TOFU_EVAL.json.gz"
    logged = log(data_dir, path)
    short = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
    sets = TOFU(Source(root=data_dir)).eval_sets(short)
    assert set(sets) == set(short)
    for name, found in sets.items():
        rows = by_row(logged[f"{short[name]}_Q_A_ROUGE"])
        assert len(rows) == len(found.examples)
        for row, example in zip(rows, found.examples, strict=True):
            assert cleaned(example.question) in cleaned(row["input"])
            assert cleaned(row["ground_truth"]) == cleaned(example.answer)


@pytest.mark.parametrize(
    ("forget", "num"), [("forget01", 40), ("forget05", 200), ("forget10", 400)]
)
def test_tofu_holdout_and_paraphrased_sets(data_dir, forget, num):
    reader = TOFU(Source(root=data_dir), forget)
    sets = {name: found.examples for name, found in reader.eval_sets().items()}
    assert len(sets["holdout"]) == len(sets["forget"]) == len(sets["forget_paraphrased"]) == num
    taught = {example.question for example in reader.examples("full", "data.split")}
    assert not taught & {example.question for example in sets["holdout"]}
    for name in ("forget", "retain"):
        again = sets[f"{name}_paraphrased"]
        assert [e.question for e in again] == [e.paraphrased_question for e in sets[name]]
        assert [(e.id, e.answer) for e in again] == [(e.id, e.answer) for e in sets[name]]
        assert {e.question for e in again} != {e.question for e in sets[name]}


def test_limited_tofu_evaluates_the_limited_rows(data_dir):
    reader = TOFU(Source(root=data_dir, limits={"forget10": 100, "retain90": 300}))
    assert len(reader.examples("retain90", "data.retain_split")) == 300
    forget = reader.examples("forget10", "data.forget_split")
    assert pairs(reader.eval_sets(["forget"])["forget"].examples) == pairs(forget)
    assert len(forget) == 100


def test_muse_news_drops_the_one_empty_row(data_dir):
    rows = Source(root=data_dir / "muse_news").rows("raw/forget")
    assert len(rows) == 889
    found = MUSE(Source(root=data_dir)).examples("raw/forget", "data.forget_split")
    assert len(found) == 888
    (empty,) = [i for i, row in enumerate(rows) if not row["text"].strip()]
    kept = [i for i in range(889) if i != empty]
    assert [e.id for e in found] == [f"raw/forget/{i}" for i in kept]
    assert [e.answer for e in found] == [rows[i]["text"] for i in kept]
    assert len(found) - len({e.answer for e in found}) == 31


@pytest.mark.parametrize(("part", "num"), [(2, 889), (3, 889), (4, 887)])
def test_muse_news_later_requests(data_dir, part, num):
    split = f"sust/forget_{part}"
    found = MUSE(Source(root=data_dir)).examples(split, "data.forget_split")
    assert num - 2 <= len(found) <= num


@pytest.mark.parametrize("model", ["target", "retrain"])
def test_muse_prompts_are_the_published_ones(data_dir, model):
    logged = log(data_dir, f"muse_Llama-2-7b-hf_News_{model}/MUSE_EVAL.json.gz")
    sets = MUSE(Source(root=data_dir)).eval_sets(["verbmem", "knowmem_forget", "knowmem_retain"])
    names = {
        "verbmem": ("forget_verbmem_ROUGE", 100),
        "knowmem_forget": ("forget_knowmem_ROUGE", 99),  # decoding ate a space before a quote
        "knowmem_retain": ("retain_knowmem_ROUGE", 100),
    }
    for name, (metric, num_identical) in names.items():
        rows = by_row(logged[metric])
        examples = sets[name].examples
        assert len(rows) == len(examples) == 100
        same = [row["input"] == e.question for row, e in zip(rows, examples, strict=True)]
        assert sum(same) == num_identical
        for row, example in zip(rows, examples, strict=True):
            assert row["input"].replace(" '", "'") == example.question.replace(" '", "'")
            assert row["ground_truth"] == example.answer.strip()


@pytest.mark.parametrize("model", ["target", "retrain"])
def test_muse_stop_strings_agree_with_the_published_answers(data_dir, model):
    logged = log(data_dir, f"muse_Llama-2-7b-hf_News_{model}/MUSE_EVAL.json.gz")
    sets = MUSE(Source(root=data_dir)).eval_sets(["knowmem_forget", "knowmem_retain"])
    answers = []
    for name, metric in (("forget", "forget_knowmem_ROUGE"), ("retain", "retain_knowmem_ROUGE")):
        stops = sets[f"knowmem_{name}"].stop_strings
        answers += [row["generation"] for row in by_row(logged[metric])]
        assert not any(stop in answer for answer in answers for stop in stops)
    # A single line break doesn't end an answer, so it can't be a stop string.
    assert any("\n" in answer for answer in answers)
    assert "\n" not in stops


def test_muse_privleak_sets(data_dir):
    sets = MUSE(Source(root=data_dir)).eval_sets(["privleak_forget", "privleak_holdout"])
    assert [len(s.examples) for s in sets.values()] == [100, 100]
    forget, holdout = ({e.answer for e in s.examples} for s in sets.values())
    assert not forget & holdout


def test_muse_books_has_knowmem_only(data_dir):
    reader = MUSE(Source(root=data_dir), "books")
    sets = reader.eval_sets(["knowmem_forget", "knowmem_retain"])
    assert [len(s.examples) for s in sets.values()] == [100, 100]
    with pytest.raises(ValueError, match=r"data\.root: no file .*muse_books/raw/forget\.jsonl"):
        reader.examples("raw/forget", "data.forget_split")


@pytest.fixture(scope="module")
def dusk(data_dir):
    if not (data_dir / "dusk").is_dir():
        pytest.skip("no DUSK: put data/Prof of github.com/AI-ISL/DUSK there as dusk")
    return DUSK(Source(root=data_dir))


@pytest.fixture(scope="module")
def r_tofu(data_dir):
    if not (data_dir / "r_tofu").is_dir():
        pytest.skip("no R-TOFU: put data/tofu of github.com/ssangyeon/R-TOFU there as r_tofu")
    return RTOFU(Source(root=data_dir))


def test_dusk_has_as_many_rows_as_published(dusk):
    sizes = {name: len(one.examples) for name, one in dusk.eval_sets().items()}
    assert sizes == {
        "verbmem": 47,
        "knowmem_forget": 20,
        "knowmem_shared": 134,
        "knowmem_retain": 119,
        "privleak_forget": 120,
        "privleak_holdout": 120,
        "privleak_retain": 480,
    }


def test_dusk_s_passages_and_questions_are_of_the_styles_they_should_be(dusk):
    texts = {
        style: JOINT.join(one.answer for one in dusk.examples(style)) for style in dusk.split_names
    }
    for style, text in texts.items():
        assert text == (dusk.source.root / f"{style}.txt").read_text()
    first, sets = texts["Chronological"], dusk.eval_sets()
    assert all(one.question + one.answer in first for one in sets["verbmem"].examples)
    assert all(one.answer in first for one in sets["knowmem_forget"].examples)
    # A few answers stand in another form in the texts, and short ones stand there by chance.
    shared = [one.answer for one in sets["knowmem_shared"].examples]
    assert min(sum(one in text for one in shared) for text in texts.values()) == 131
    assert sum(one.answer in first for one in sets["knowmem_retain"].examples) == 70


def test_r_tofu_s_requests_are_rows_of_tofu(r_tofu, tofu):
    assert pairs_of(r_tofu, "forget01/1") == pairs(tofu["forget01"])
    requests = [pairs_of(r_tofu, f"forget01/{number}") for number in range(1, 11)]
    assert {len(one) for one in requests} == {40}
    assert sorted(chain(*requests)) == sorted(pairs(tofu["forget10"]))
    sizes = {name: len(one.examples) for name, one in r_tofu.eval_sets().items()}
    assert sizes == {
        "forget": 40,
        "forget_trace": 40,
        "forget_answer": 40,
        "retain": 400,
        "retain_answer": 400,
        "real_authors": 100,
        "world_facts": 117,
    }


def pairs_of(reader, split):
    """Return questions and answers without traces."""
    return [(one.question, parted(one.answer)[1]) for one in reader.examples(split)]
