"""The benchmark of one scoring pass: both of its ways, on a few rows."""

import copy
import json
import sys

import pytest
from toy import text, write_rows

from etw_lightning.data.encode import Encoder
from etw_lightning.models.loading import LabelScorer, load_model, load_tokenizer
from etw_lightning.schema import EvalSet, Example

ROWS = 5


@pytest.fixture(scope="module")
def evaluation(program):
    return program("evaluation")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of TOFU's shape."""
    folder = tmp_path_factory.mktemp("tofu")

    def rows(seed, wrong, *, paraphrased):
        for number in range(seed, seed + ROWS + 1):
            row = {
                "question": f"What of {text(number, 3)}?",
                "answer": text(number, 3 + number % 4),
            }
            if paraphrased:
                row["paraphrased_question"] = f"And {text(number, 2)}?"
                row["paraphrased_answer"] = text(number + 1, 4)
            if wrong:
                row["perturbed_answer"] = [text(number + place, 4) for place in range(2, 2 + wrong)]
            yield row

    write_rows(folder / "forget10_perturbed.jsonl", rows(0, 5, paraphrased=True))
    write_rows(folder / "retain_perturbed.jsonl", rows(20, 5, paraphrased=True))
    write_rows(folder / "real_authors_perturbed.jsonl", rows(40, 3, paraphrased=False))
    write_rows(folder / "world_facts_perturbed.jsonl", rows(60, 3, paraphrased=False))
    write_rows(folder / "holdout10.jsonl", rows(80, 0, paraphrased=False))
    return folder


@pytest.fixture(scope="module")
def line(evaluation, root, tiny_model_dir):
    """What the command prints."""
    out = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "write", out.append)
        folders = ["--model", tiny_model_dir, "--reference", tiny_model_dir, "--root", root]
        evaluation.main([*map(str, folders), "--rows", str(ROWS), "--system_prompt", ""])
    return json.loads("".join(out))


@pytest.mark.slow
def test_one_line_says_what_both_ways_took(line):
    both = {"one_pass", "by_metric"}
    for key in ("process_seconds", "padding_share", "peak_memory_mb"):
        assert line[key].keys() == both
    for key in ("answer_positions", "generation_positions"):
        assert 0 < line[key]["one_pass"] < line[key]["by_metric"]
    seconds = line["process_seconds"]
    assert line["ratio"] == pytest.approx(seconds["by_metric"] / seconds["one_pass"], rel=0.3)
    assert 0 < line["largest_difference"] < 2e-5
    assert line["rows"] == dict.fromkeys(
        ("forget", "retain", "real_authors", "world_facts", "holdout"), ROWS
    )


@pytest.mark.slow
def test_every_metric_is_fed_its_own_pass(line, evaluation, root, tiny_tokenizer):
    """One batch a pass, so each feeds rows times the longest of them."""
    encoder = Encoder(tiny_tokenizer)
    sets = evaluation.TOFU(evaluation.Source(root=root)).eval_sets(evaluation.SETS)

    def widths(name, answers):
        examples = sets[name].examples[:ROWS]
        columns = zip(*map(answers, examples), strict=True)
        return sum(
            ROWS
            * max(
                len(encoder.encode(*pair).input_ids) for pair in zip(examples, column, strict=True)
            )
            for column in columns
        )

    gold = {name: widths(name, lambda one: [one.answer]) for name in ("forget", "holdout")}
    every = [
        widths(
            name,
            lambda one: [
                one.answer,
                *filter(None, [one.paraphrased_answer]),
                *one.perturbed_answers,
            ],
        )
        for name in ("forget", "retain", "real_authors", "world_facts")
    ]
    # Exact memorisation, extraction strength; loss, zlib, Min-K, twice for Min-K++, reference.
    expected = sum(every) + 2 * gold["forget"] + 6 * sum(gold.values())
    assert line["answer_positions"]["by_metric"] == expected
    assert line["needed_positions"] <= line["answer_positions"]["one_pass"]


@pytest.mark.parametrize("key", [("retain", "perturbed"), ("forget", "text"), ("holdout", "zlib")])
def test_another_number_or_text_is_refused(evaluation, key):
    values = {
        ("retain", "perturbed"): [[1.0, 2.0], [3.0, 4.0]],
        ("forget", "text"): ["a", "b"],
        ("holdout", "zlib"): [0.1, 0.2],
    }
    assert evaluation.largest_difference(values, copy.deepcopy(values)) == 0
    other = copy.deepcopy(values)
    other[key][1] = {"perturbed": [3.0, 4.1], "text": "c", "zlib": 0.2001}[key[1]]
    with pytest.raises(AssertionError, match=f"row 1 of {key[0]}, {key[1]}"):
        evaluation.largest_difference(values, other)
    with pytest.raises(AssertionError, match="holdout"):
        evaluation.largest_difference(values, {k: v for k, v in values.items() if k[1] != "zlib"})


@pytest.mark.slow
def test_the_other_way_gives_the_numbers_of_the_code_it_stands_for(evaluation, data_dir):
    """Stored evaluations of open-unlearning; padding and end token are one in this model."""
    from by_metric import Fed, Suite, by_metric

    folder = data_dir.parent / "oracle"
    if not folder.is_dir():
        pytest.skip("no stored evaluations beside the benchmark data")
    model, count = str(folder / "model_a"), 8
    names = {
        "forget": ("forget10_perturbed", "forget_Q_A"),
        "retain": ("retain_perturbed", "retain_Q_A"),
        "real_authors": ("real_authors_perturbed", "ra_Q_A"),
        "world_facts": ("world_facts_perturbed", "wf_Q_A"),
        "holdout": ("holdout10", None),
    }
    sets = {}
    for name, (file, _) in names.items():
        rows = json.loads((folder / "tofu" / f"{file}.json").read_text(encoding="utf-8"))
        examples = [
            Example(
                id=f"{file}/{number}",
                question=row["question"],
                answer=row["answer"],
                paraphrased_answer=row.get("paraphrased_answer"),
                perturbed_answers=tuple(row.get("perturbed_answer", ())),
            )
            for number, row in enumerate(rows[:count])
        ]
        sets[name] = EvalSet(name, tuple(examples), max_new_tokens=200)
    scorer, other = (
        LabelScorer(load_model(path)).eval() for path in (model, str(folder / "model_retain"))
    )
    prompt = "You are a helpful assistant."
    suite = Suite(scorer, load_tokenizer(model), sets, 16, prompt, other)
    found = by_metric(suite, Fed())
    log = json.loads((folder / "evals/tofu_model_a/TOFU_EVAL.json").read_text(encoding="utf-8"))

    def stored(part, field):
        return [part["value_by_index"][str(row)][field] for row in range(count)]

    expected = {
        ("forget", "memorisation"): stored(log["exact_memorization"], "score"),
        ("forget", "extraction"): stored(log["extraction_strength"], "score"),
    }
    for name, (_, key) in names.items():
        if key is not None:
            expected[name, "answer"] = stored(log[f"{key}_Prob"], "avg_loss")
            expected[name, "perturbed"] = stored(log[f"{key}_PERT_Prob"], "avg_loss")
            expected[name, "rouge"] = stored(log[f"{key}_ROUGE"], "rougeL_recall")
            texts = stored(log[f"{key}_ROUGE"], "generation")
            assert ["".join(one.split()) for one in found.pop((name, "text"))] == [
                "".join(one.split()) for one in texts
            ]
        if name in ("forget", "retain"):
            expected[name, "paraphrase"] = stored(log[f"{key}_PARA_Prob"], "avg_loss")
        if name in ("forget", "holdout"):
            for attack in suite.attacks:
                expected[name, attack] = stored(log[f"mia_{attack}"][name], "score")
    assert evaluation.largest_difference(found, expected) < 5e-6


def test_clocks_count_what_a_generator_does_and_not_what_is_done_between(program, monkeypatch):
    parts, now, spent = program("scoring_parts"), [0.0], [0.0]
    monkeypatch.setattr(parts.time, "process_time", lambda: now[0])

    def some():
        for one in range(3):
            now[0] += 2.0
            yield one
        now[0] += 5.0

    def plain(seconds, *, more):
        now[0] += seconds + more
        return "done"

    found = []
    for one in parts.clocked(some, spent)():
        found.append(one)
        now[0] += 100.0
    assert (found, spent) == ([0, 1, 2], [11.0])
    assert parts.clocked(plain, spent)(1.0, more=0.5) == "done"
    assert spent == [12.5]
