"""Records of other models beside own rows: what makes them incomparable is named."""

import shutil

import pytest

#: What makes another run of the same rows incomparable, and what is said of it.
OTHERWISE = {
    "template": (["--data.template=plain"], "data.template 'chat', this run has 'plain'"),
    "length": (["--data.max_length=300"], "data.max_length 512, this run has 300"),
    "rows": (["--data.rows={forget: 3}"], "holds 4 rows of 'forget', this run scores 3"),
    "conventions": (["--conventions=peer"], "was made with conventions.attention_mask 'length'"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the first test that needs it leaves such a run for the others."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def scored(run, own, home, kept):
    """Folder of a run whose records are given as another model's; the cache has them too."""
    places = {home / "scored": kept / "scored", home.parent / "cache": kept / "cache"}
    if not (kept / "scored").is_dir():
        run("evaluate", *own, into="scored")
        for place, copy in places.items():
            shutil.copytree(place, copy)
        return "scored"
    for place, copy in places.items():
        shutil.copytree(copy, place)
    return "scored"


@pytest.mark.parametrize("name", OTHERWISE)
def test_records_made_otherwise_are_never_a_row_of_the_table(command, own, home, scored, name):
    more, said = OTHERWISE[name]
    for role in ("retain", "target"):
        words = [*own, "--trainer.callbacks=[]", f"--data.{role}_results={scored}", *more]
        result = command("fit", *words, f"--output_dir={home / 'out'}")
        assert result.status == 2
        assert result.err.startswith(f"error: data.{role}_results: scored ")
        assert said in result.err
        assert result.err.count("\n") == 1
    assert not (home / "out").exists()


def test_records_of_other_rows_are_refused(command, own, home, rows, scored, write_rows):
    asked = [{**row, "question": f"{row['question']} Tell me."} for row in rows["forget"]]
    said = [{**row, "answer": f"{row['answer']} So it is."} for row in rows["forget"]]
    for changed, what in ((asked, "another question"), (said, "another answer")):
        write_rows(home / "forget.jsonl", changed)
        words = [*own, "--trainer.callbacks=[]", f"--data.retain_results={scored}"]
        result = command("fit", *words, f"--output_dir={home / 'out'}")
        assert result.status == 2
        assert f"holds {what} in row forget/0" in result.err


@pytest.mark.parametrize("name", ["fit", "evaluate"])
def test_numbers_of_another_precision_are_marked(run, own, scored, name):
    """Rounding alone is no reason to refuse them; what the rows are is said, where they stand."""
    words = [*own, f"--data.retain_results={scored}", "--model.dtype=bfloat16"]
    words += ["--trainer.precision=bf16-true"]
    # No metric needs these records: they stand in the table alone.
    words += ["--trainer.callbacks=[]"] if name == "fit" else ["--metrics=probability"]
    said = "dtype 'float32', this run has 'bfloat16', precision '32-true', this run has 'bf16-true'"
    with pytest.warns(
        UserWarning, match=f"data.retain_results: scored was made with {said}: round"
    ):
        out, results, _ = run(name, *words)
    assert results["precision_of_others"] == {"retain": said}
    assert f"retain was scored with {said}: rounding differs\n" in out


def test_records_made_alike_are_a_row(run, own, scored):
    words = [*own, "--trainer.callbacks=[]", f"--data.retain_results={scored}"]
    out, results, _ = run("fit", *words)
    assert "precision_of_others" not in results
    assert "rounding differs" not in out
    numbers = results["table"]["retain"]
    assert numbers["forget_probability"] == results["table"]["target"]["forget_probability"]
