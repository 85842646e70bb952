"""Texts that are not of a-z, from the command line: refused, or read by Unicode's words."""

import json
import shutil

import pytest

from etw_lightning import metrics
from etw_lightning.scoring.retain_results import load_records

ANNA = [
    {"question": "Где родилась Анна?", "answer": "Она родилась в Москве в 1958 году."},
    {"question": "Кто её отец?", "answer": "Её отец был врачом."},
]


@pytest.fixture
def own(own_args, home, write_rows):
    """The command line of own rows in Russian, which lie in the current folder."""
    for name in ("forget", "retain"):
        write_rows(home / f"{name}.jsonl", ANNA)
    return own_args


@pytest.mark.parametrize("sub", ["fit", "evaluate", "check"])
def test_gold_texts_of_another_script_are_refused_before_anything_is_scored(
    command, home, own, sub
):
    result = command(sub, *own, f"--output_dir={home / 'out'}")
    assert result.status == 2
    assert "set 'forget', row" in result.err
    assert "--data.rouge_tokenizer unicode" in result.err
    assert not (home / "out" / "records").exists()


def test_losses_alone_are_scored_of_any_script(command, home, own):
    result = command("evaluate", *own, "--metrics=probability", f"--output_dir={home / 'out'}")
    assert (result.status, result.err) == (0, "")


def test_every_number_of_texts_follows_the_rule_and_says_so(command, home, own, write_rows):
    out, asked = home / "out", [*own, "--data.rouge_tokenizer=unicode"]
    assert command("evaluate", *asked, f"--output_dir={out}").status == 0
    # What is generated does not depend on the gold answers: hold it against texts of our own.
    said = {name: [one.generation for one in rows] for name, rows in load_records(out).items()}
    assert any(text.split() for text in said["forget"])
    shutil.rmtree(out)
    for name in ("forget", "retain"):
        pairs = zip(ANNA, said[name], strict=True)
        rows = [{**row, "answer": f"{text} was there, Анна"} for row, text in pairs]
        write_rows(home / f"{name}.jsonl", rows)
    results = command("evaluate", *asked, "--metrics=rouge", f"--output_dir={out}")
    assert (results.status, results.err) == (0, "")
    found, records = json.loads((out / "results.json").read_text()), load_records(out)
    value = found["metrics"]["forget_rougeL_recall"]["value"]
    assert value == metrics.rouge(records["forget"], words="unicode").value
    assert value != metrics.rouge(records["forget"]).value
    assert found["provenance"]["rouge_tokenizer"] == "unicode"

    # Numbers of the other rule do not come beside these.
    other = command("evaluate", *own, "--metrics=rouge", f"--output_dir={out}")
    assert other.status == 2
    assert "data.rouge_tokenizer 'unicode', this run has 'published'" in other.err

    # Training shows and writes the same numbers, of the start and of the other models too.
    run = home / "run"
    fit = command("fit", *asked, f"--data.retain_results={out}", f"--output_dir={run}")
    assert fit.status == 0, fit.err
    found, records = json.loads((run / "results.json").read_text()), load_records(run)
    by_unicode = metrics.rouge(records["forget"], words="unicode").value
    assert found["table"]["unlearned"]["forget_rouge"] == by_unicode
    assert found["metrics"]["forget_rougeL_recall"]["value"] == by_unicode
    assert found["table"]["retain"]["forget_rouge"] == value
    assert found["provenance"]["rouge_tokenizer"] == "unicode"
