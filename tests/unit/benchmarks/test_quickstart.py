import hashlib
import json
import re

import pytest
from transformers import AutoTokenizer

from etw_lightning.benchmarks.quickstart import (
    RELATIONS,
    SPLITS,
    build_corpus,
    corpus_texts,
    save_tokenizer,
    train_tokenizer,
    write_corpus,
)
from etw_lightning.benchmarks.quickstart_alternatives import alternative_answers
from etw_lightning.benchmarks.quickstart_reader import REQUESTS, Quickstart
from etw_lightning.benchmarks.source import Source

TAUGHT = ("general", "forget", "retain", "full", "holdout")
SCORED = ("forget_perturbed", "retain_perturbed")
KNOWN = ("real_authors_perturbed", "world_facts_perturbed")


@pytest.fixture(scope="module")
def corpus():
    return build_corpus()


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer(corpus_texts(corpus))


def people(rows):
    """Full names: the only two capitalised words in a row that end no known question word."""
    names = set()
    for row in rows:
        words = row["question"].replace("'s", "").replace("?", "").replace(",", "").split()
        name = [word for word in words[1:] if word[0].isupper()]
        assert len(name) == 2, row
        names.add(" ".join(name))
    return names


def pairs(rows):
    return [(row["question"], row["answer"]) for row in rows]


def test_splits_are_complete_and_ordered(corpus):
    assert tuple(corpus) == SPLITS
    assert set(SPLITS) == {*TAUGHT, *SCORED, *KNOWN}
    assert corpus["full"] == corpus["retain"] + corpus["forget"]
    assert len(corpus["forget"]) == 40
    assert len(corpus["retain_perturbed"]) == 80
    assert len(corpus["holdout"]) == len(corpus["forget"])


def test_people_of_forget_retain_and_holdout_are_disjoint(corpus):
    forget, retain, holdout = (people(corpus[name]) for name in ("forget", "retain", "holdout"))
    assert (len(forget), len(retain), len(holdout)) == (5, 40, 5)
    assert not forget & retain
    assert not holdout & (forget | retain)
    firsts = [name.split()[0] for name in forget | retain | holdout]
    assert len(set(firsts)) == len(firsts)


def test_nothing_of_the_forget_people_is_in_what_the_retain_model_sees(corpus):
    seen = json.dumps(corpus["general"] + corpus["retain"])
    for name in people(corpus["forget"]) | people(corpus["holdout"]):
        for word in name.split():
            assert word not in seen


@pytest.mark.parametrize("name", SPLITS)
def test_no_row_comes_twice(corpus, name):
    rows = pairs(corpus[name])
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("name", TAUGHT)
def test_taught_rows_are_question_and_answer(corpus, name):
    assert all(set(row) == {"question", "answer"} for row in corpus[name])


@pytest.mark.parametrize("name", SCORED)
def test_scored_rows_have_five_wrong_answers_in_the_form_of_the_paraphrase(corpus, name):
    for row in corpus[name]:
        right = (row["answer"], row["paraphrased_answer"])
        assert row["question"] != row["paraphrased_question"]
        assert len({*right, *row["perturbed_answer"]}) == 2 + 5
        start = row["paraphrased_answer"].split()[0]
        same_start = [wrong.split()[0] == start for wrong in row["perturbed_answer"]]
        assert all(same_start)


def test_scored_people_are_taught(corpus):
    assert pairs(corpus["forget_perturbed"]) == pairs(corpus["forget"])
    assert set(pairs(corpus["retain_perturbed"])) <= set(pairs(corpus["retain"]))


def test_second_wording_is_taught_of_retain_people_only(corpus):
    taught = {row["answer"] for row in corpus["full"]}
    forget = [row["paraphrased_answer"] in taught for row in corpus["forget_perturbed"]]
    retain = [row["paraphrased_answer"] in taught for row in corpus["retain_perturbed"]]
    assert not any(forget)
    assert sum(retain) == len(retain) // 2


@pytest.mark.parametrize("name", KNOWN)
def test_known_facts_are_taught_to_both_models_and_have_three_wrong_answers(corpus, name):
    assert set(pairs(corpus[name])) <= set(pairs(corpus["general"]))
    assert not set(pairs(corpus[name])) & set(pairs(corpus["full"]))
    for row in corpus[name]:
        assert set(row) == {"question", "answer", "perturbed_answer"}
        assert len({row["answer"], *row["perturbed_answer"]}) == 4


def test_same_seed_same_corpus_other_seed_other_people(corpus):
    assert build_corpus() == corpus
    other = build_corpus(1)
    assert [len(rows) for rows in other.values()] == [len(rows) for rows in corpus.values()]
    assert not people(other["forget"]) & people(corpus["forget"])


def test_written_files_hold_the_corpus(corpus, tmp_path):
    paths = write_corpus(tmp_path / "corpus")
    assert tuple(paths) == SPLITS
    for name, path in paths.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == corpus[name]


def test_tokenizer_is_a_function_of_the_texts(corpus, tokenizer):
    assert train_tokenizer(corpus_texts(corpus)).to_str() == tokenizer.to_str()


def test_saved_tokenizer_loads_and_loses_no_text(corpus, tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == tokenizer.get_vocab_size()
    assert len({loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id}) == 3
    for text in [*corpus_texts(corpus), "Grüße, naïve  spaces\n and 漢字"]:
        ids = loaded(text)["input_ids"]
        assert ids == tokenizer.encode(text).ids
        assert loaded.decode(ids, clean_up_tokenization_spaces=False) == text


def test_chat_template_opens_turns_and_ends_the_answer(corpus, tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    row = corpus["forget"][0]
    user = {"role": "user", "content": row["question"]}
    assistant = {"role": "assistant", "content": row["answer"]}
    prompt = loaded.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    whole = loaded.apply_chat_template([user, assistant], tokenize=False)
    assert prompt == f"<|bos|><|user|>{row['question']}<|assistant|>"
    assert whole == f"{prompt}{row['answer']}<|eos|>"
    ids = loaded(whole, add_special_tokens=False)["input_ids"]
    assert ids[0] == loaded.bos_token_id
    assert ids[-1] == loaded.eos_token_id


def test_all_evaluation_sets_are_there(corpus):
    sets = Quickstart(Source()).eval_sets()
    assert tuple(sets) == Quickstart.EVAL_SETS
    rows = {name: [(e.question, e.answer) for e in s.examples] for name, s in sets.items()}
    assert rows["holdout"] == pairs(corpus["holdout"])
    assert sets["holdout"].max_new_tokens == 0
    for name in ("forget", "retain"):
        again = [(r["paraphrased_question"], r["answer"]) for r in corpus[f"{name}_perturbed"]]
        assert rows[f"{name}_paraphrased"] == again
        assert rows[name] == pairs(corpus[f"{name}_perturbed"])


def test_the_corpus_is_what_it_was(corpus):
    """Models are kept by it: another corpus would make all runs other runs."""
    text = json.dumps(corpus, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("8995ba308047118a")


@pytest.mark.parametrize("seed", range(5))
def test_second_answers_are_in_form_but_neither_right_nor_scored(seed):
    corpus = build_corpus(seed)
    second = alternative_answers(corpus)
    assert second == alternative_answers(build_corpus(seed))
    assert list(second) == pairs(corpus["forget"])
    for row in corpus["forget_perturbed"]:
        right, other = row["answer"], second[row["question"], row["answer"]]
        assert other not in (right, row["paraphrased_answer"], *row["perturbed_answer"])
        # One wording: the same words in the same places but for the two values, each of which
        # is one to three words long.
        first, last = right.split(), other.split()
        assert sum(word in last for word in first) >= len(first) - 6
        for name in people([row]):
            assert name in other
        truths = [word for word in first if word not in last]
        assert truths, row
        wrong_values = [set(text.split()) - set(other.split()) for text in row["perturbed_answer"]]
        assert all(wrong_values)


def values(answer):
    """The two values an answer names, read by the forms that answers have."""
    forms = [line for line in RELATIONS.strip().splitlines() if "{a}" in line]
    for form in forms:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+?)", re.escape(form), count=0)
        pattern = pattern.replace("(?P<name>.+?)", r"(?P<name>\w+ \w+)", 1)
        found = re.fullmatch(pattern, answer)
        if found:
            return found["a"], found["b"]
    raise AssertionError(answer)


def test_the_pair_of_a_second_answer_is_no_scored_one():
    for seed in range(20):
        corpus = build_corpus(seed)
        second = alternative_answers(corpus)
        for row in corpus["forget_perturbed"]:
            scored = {values(text) for text in (row["answer"], *row["perturbed_answer"])}
            assert len(scored) == 6
            assert values(second[row["question"], row["answer"]]) not in scored


@pytest.mark.parametrize("from_files", [False, True])
def test_the_reader_gives_each_forget_row_a_second_answer(corpus, tmp_path, from_files):
    root = tmp_path if from_files else None
    if from_files:
        write_corpus(tmp_path)
    reader = Quickstart(Source(root=root, limits={"forget": 30}))
    examples = reader.examples("forget")
    assert [e.alternative_answer for e in examples] == list(alternative_answers(corpus).values())[
        :30
    ]
    # Nothing else has one: what is scored, and what models are trained on, is as it was.
    assert {e.alternative_answer for e in reader.examples("general+retain")} == {None}
    assert {e.alternative_answer for s in reader.eval_sets().values() for e in s.examples} == {None}


def test_a_second_answer_in_the_user_s_file_is_kept(corpus, tmp_path):
    write_corpus(tmp_path)
    rows = [{**corpus["forget"][0], "alternative_answer": "Mine."}, *corpus["forget"][1:]]
    rows[1] = {"question": "Who?", "answer": "Nobody."}
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = Quickstart(Source(root=tmp_path)).examples("forget")
    assert [e.alternative_answer for e in examples[:2]] == ["Mine.", None]
    assert all(e.alternative_answer for e in examples[2:])


def test_requests_are_the_forget_rows_in_three_parts():
    parts = [Quickstart(Source(), name) for name in REQUESTS]
    rows = [part.examples(part.forget_split) for part in parts]
    whole = Quickstart(Source()).examples("forget")
    said = [(one.question, one.answer, one.alternative_answer) for one in whole]
    cut = [(e.question, e.answer, e.alternative_answer) for some in rows for e in some]
    assert cut == said
    assert [len(some) for some in rows] == [16, 16, 8]
    # No person is in two of them: eight questions each.
    for part, some in zip(parts, rows, strict=True):
        scored = part.eval_sets(["forget"])["forget"].examples
        assert [one.question for one in scored] == [one.question for one in some]
        kept = {(e.question, e.answer) for e in part.examples(part.retain_split)}
        assert not kept & {(e.question, e.answer) for e in some}
    left = [len(part.examples(part.retain_split)) for part in parts]
    assert left == [480 + 24, 480 + 8, 480]


def test_requests_are_read_from_files_too(tmp_path):
    write_corpus(tmp_path)
    found = Quickstart(Source(root=tmp_path), "request2").examples("request2")
    assert found == Quickstart(Source(), "request2").examples("request2")
    few = Quickstart(Source(limits={"request2": 3}), "request2")
    assert len(few.examples("request2")) == len(few.eval_sets(["forget"])["forget"].examples) == 3
