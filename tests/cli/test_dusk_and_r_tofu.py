"""DUSK and R-TOFU from the command line, on a few made-up rows in the files they come in."""

import json

import pytest

STYLES = ("Chronological", "Interview", "Feature_Story", "Inverted_Pyramid", "Listicle")
NAMES = ("Mara Venn", "Ivo Hale", "Ada Stein")


@pytest.fixture(scope="module")
def dusk_dir(tmp_path_factory):
    """DUSK's files of three short biographies a style."""
    folder = tmp_path_factory.mktemp("Prof")
    (folder / "eval").mkdir()

    def biographies(names, style):
        texts = [f"Title: {name}\n\n{style}: {name} was born by the river." for name in names]
        return "\n\n\n\n".join(texts)

    for style in STYLES:
        (folder / f"{style}.txt").write_text(biographies(NAMES, style.replace("_", " ")))
    unseen = biographies(("Sol Umbra", "Liv Quill", "Ost Mill"), "No style")
    (folder / "eval/holdout.txt").write_text(unseen)
    (folder / "eval/verbatim.json").write_text(
        json.dumps([{"prompt": "Mara Venn was", "gt": " born by the river."}] * 2)
    )
    for name in ("GeneralQA", "SpecificForgetQA", "SpecificRetainQA", "icl"):
        row = {"question": "Where was Mara Venn born?", "answer": "By the river"}
        (folder / f"eval/{name}.jsonl").write_text(json.dumps(row))
    return folder


@pytest.fixture(scope="module")
def r_tofu_dir(tmp_path_factory):
    """R-TOFU's files with two rows a request."""
    folder = tmp_path_factory.mktemp("r_tofu")

    def rows(name, num, trace="Let me see. {} it is.", **more):
        return [
            {
                "question": f"Who is {name} {i}?",
                "answer": f"{name} {i}.",
                "cot": trace.format(f"{name} {i}"),
                **more,
            }
            for i in range(num)
        ]

    requests = [row for task in range(1, 11) for row in rows(f"F{task}", 2, task_id=str(task))]
    files = {
        "forget01": requests,
        "retain90": rows("R", 3),
        "retain_perturbed": rows("R", 2),
        "real_authors_perturbed": rows("A", 2, ""),
        "world_facts_perturbed": rows("W", 2, ""),
    }
    for name, part in files.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture
def results_of(command, home, configs, tiny_model_dir):
    """Run a command on a data file to its end; return what it says and its results."""

    def run(verb, data, *options):
        files = [f"--config={configs / name}.yaml" for name in ("own_data", f"data/{data}")]
        outcome = command(
            verb,
            *files,
            f"--model.pretrained={tiny_model_dir}",
            "--output_dir=run",
            "--data.batch_size=2",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            *options,
        )
        assert outcome.status == 0, outcome.err
        return outcome, json.loads((home / "run/results.json").read_text())

    return run


def test_dusk_is_scored_whole(results_of, dusk_dir, retain_model_dir):
    _, results = results_of(
        "evaluate", "dusk", f"--data.root={dusk_dir}", f"--data.retain_model={retain_model_dir}",
        "--data.max_length=128",
    )  # fmt: skip
    numbers = results["metrics"]
    wanted = {"verbmem", "knowmem_forget", "knowmem_shared", "knowmem_retain", "retain_deviation",
              "privleak_min_k_plus_plus", "privleak", "mia_min_k_plus_plus"}  # fmt: skip
    assert wanted <= set(numbers)
    assert numbers["knowmem_shared"]["direction"] == "up"
    assert numbers["knowmem_forget"]["direction"] == "down"
    assert (numbers["retain_deviation"]["n"], numbers["privleak"]["n"]) == (15, 6)
    assert results["provenance"]["rouge_tokenizer"] == "unstemmed"


def test_r_tofu_is_scored_whole(results_of, r_tofu_dir):
    _, results = results_of(
        "evaluate", "r_tofu", f"--data.root={r_tofu_dir}", "--data.rows=null",
        "--data.max_new_tokens=6",
    )  # fmt: skip
    numbers = results["metrics"]
    for name in ("forget", "retain"):
        for part in ("trace_rougeL_recall", "trace_step_rougeL_recall", "answer_rougeL_recall",
                     "unfinished_traces", "probability"):  # fmt: skip
            assert f"{name}_{part}" in numbers
    assert {"forget_trace_probability", "forget_answer_probability", "retain_answer_probability",
            "real_authors_answer_rougeL_recall"} <= set(numbers)  # fmt: skip
    assert numbers["forget_unfinished_traces"]["value"] == 1.0
    assert "model_utility" not in numbers


def test_only_the_part_is_pushed_down(results_of, r_tofu_dir):
    """Each part is less likely after a run on it than after one on the other; no row is kept."""
    found = {}
    for part in ("trace", "answer"):
        _, results = results_of(
            "fit", "r_tofu", f"--data.root={r_tofu_dir}", "--data.rows=null", "--overwrite",
            "--data.max_new_tokens=2", "--data.max_length=128", f"--data.forget_part={part}",
            "--model.lr=0.01", "--trainer.max_epochs=3", "--model.retain=null",
            "--model.forget=GA", "--model.weighting=Uniform",
        )  # fmt: skip
        numbers = results["metrics"]
        found[part] = {
            one: numbers[f"forget_{one}_probability"]["value"] for one in ("trace", "answer")
        }
    assert found["trace"]["trace"] < found["answer"]["trace"] / 2
    assert found["answer"]["answer"] < found["trace"]["answer"] / 2


def test_parts_are_of_r_tofu_alone(command, home, configs, tiny_model_dir):
    outcome = command(
        "fit", f"--config={configs / 'own_data'}.yaml", f"--model.pretrained={tiny_model_dir}",
        "--data.forget_part=trace",
    )  # fmt: skip
    assert outcome.status == 2
    assert "data.forget_part is 'trace', but only the rows of data.benchmark r_tofu" in outcome.err
