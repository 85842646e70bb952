"""DUSK's files to biographies, prompts and evaluation sets."""

import json

import pytest
from refusals import message

from etw_lightning.benchmarks.dusk import DUSK, STYLES
from etw_lightning.benchmarks.source import Source
from etw_lightning.schema import Example, MissingRowsError

#: The third has a blank line and a title inside it, and the file ends in two of them.
TEXT = "Title: A\n\nBiography: one.\n\n\n\nTitle: B\n\nOn Title: two.\n\n\n\nTitle: C\n\nx\n\n\n\n"
PAIRS = {
    "GeneralQA": [("Where was Dr. A born?", "Ost"), ("Where was Dr. B born?", "Inn")],
    "SpecificForgetQA": [("What is Dr. A's hobby?", "Chess")],
    "SpecificRetainQA": [("What is Dr. C's lab?", "Lab")],
    "icl": [("What is Dr. Z's religion?", "None")],
}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "Prof"
    (folder / "eval").mkdir(parents=True)
    for style in STYLES:
        (folder / f"{style}.txt").write_text(TEXT.replace("one", style))
    (folder / "eval/holdout.txt").write_text("Title: H\n\nUnseen.\n\n\n\nTitle: I\n\nNor this.")
    passages = [{"prompt": "Dr. A was", "gt": " born in Ost."}, {"prompt": "In 19", "gt": "58 she"}]
    (folder / "eval/verbatim.json").write_text(json.dumps(passages))
    for name, pairs in PAIRS.items():
        rows = [json.dumps({"question": asked, "answer": said}) for asked, said in pairs]
        (folder / f"eval/{name}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def reader(root):
    return DUSK(Source(root=root))


def test_a_style_is_a_biography_a_row_and_joined_the_text_of_its_file(reader, root):
    found = reader.examples("Listicle")
    assert [one.id for one in found] == ["Listicle/0", "Listicle/1", "Listicle/2"]
    assert found[1] == Example("Listicle/1", "Title: B\n\nOn Title: two.\n\n")
    assert "\n\n".join(one.answer for one in found) == (root / "Listicle.txt").read_text()


def test_what_stays_is_every_other_style(reader, root):
    assert reader.forget_split == "Chronological"
    assert reader.retain_split == "Interview+Feature_Story+Inverted_Pyramid+Listicle"
    assert len(reader.examples(reader.retain_split)) == 12
    assert DUSK(Source(root=root), "Listicle+Interview").retain_split == (
        "Chronological+Feature_Story+Inverted_Pyramid"
    )


def test_questions_show_the_shots_and_end_as_published(reader):
    sets = reader.eval_sets(["knowmem_shared", "knowmem_retain", "knowmem_forget"])
    assert list(sets) == ["knowmem_forget", "knowmem_shared", "knowmem_retain"]
    assert sets["knowmem_shared"].examples[1] == Example(
        "GeneralQA/1",
        "Inn",
        "Question: What is Dr. Z's religion?\nAnswer: None\n\n"
        "Question: Where was Dr. B born?\nAnswer: ",
        verbatim=True,
    )
    for name, file in (
        ("knowmem_forget", "SpecificForgetQA"),
        ("knowmem_retain", "SpecificRetainQA"),
    ):
        found = sets[name]
        assert (found.losses, found.max_new_tokens) == (False, 32)
        assert found.stop_strings == ("\n\n", "\nQuestion", "Question:")
        assert [one.id for one in found.examples] == [f"{file}/0"]


def test_a_passage_goes_on_without_a_space_of_ours(reader):
    (found,) = reader.eval_sets(["verbmem"]).values()
    assert [one.question + one.answer for one in found.examples] == [
        "Dr. A was born in Ost.",
        "In 1958 she",
    ]
    assert (found.losses, found.max_new_tokens) == (True, 128)
    assert all(one.verbatim for one in found.examples)


def test_membership_is_of_whole_biographies(reader):
    sets = reader.eval_sets(["privleak_forget", "privleak_holdout", "privleak_retain"])
    assert {name: len(one.examples) for name, one in sets.items()} == {
        "privleak_forget": 3,
        "privleak_holdout": 2,
        "privleak_retain": 12,
    }
    assert sets["privleak_holdout"].examples[1] == Example("holdout/1", "Title: I\n\nNor this.")
    assert "Chronological" in sets["privleak_forget"].examples[0].answer


def test_limits_count_biographies_and_rows(root):
    reader = DUSK(Source(root=root, limits={"Chronological": 2, "GeneralQA": 1, "holdout": 1}))
    assert [len(one.examples) for one in reader.eval_sets().values()] == [2, 1, 1, 1, 2, 1, 12]
    assert len(reader.examples("Chronological")) == 2
    assert "has 3 rows" in message(
        DUSK(Source(root=root, limits={"Listicle": 4})).examples, "Listicle"
    )


def test_questions_of_one_style_are_not_asked_of_another(root):
    reader = DUSK(Source(root=root), "Listicle")
    for name in ("verbmem", "knowmem_forget", "knowmem_retain"):
        with pytest.raises(MissingRowsError, match=f"^{name}: .* data.forget_split Chronological"):
            reader.eval_sets([name])
    assert len(reader.eval_sets(["knowmem_shared", "privleak_forget"])) == 2


def test_errors_name_the_key(root):
    source = Source(root=root)
    assert message(DUSK, source, "Listicles").endswith("Did you mean 'Listicle'?")
    assert message(DUSK, source, "Listicle", "raw").startswith("data.retain_split must be Chronol")
    assert message(DUSK, Source(hub="AI-ISL/DUSK")).startswith(
        "data.hub is 'AI-ISL/DUSK', but DUSK"
    )
    assert message(DUSK(Source()).examples, "Listicle").startswith("data.root is missing: DUSK")
    (root / "Listicle.txt").unlink()
    assert "no file" in message(DUSK(source).examples, "Listicle")
    assert message(DUSK, Source(root=root, limits={"Prose": 1})).startswith(
        "each name in data.rows"
    )
