"""Attacks by questions: each number against one worked out by hand, or by a plain forward pass."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from etw_lightning.attacks import (
    BestWording,
    FirstWords,
    LeakJudge,
    Mix,
    Options,
    Reword,
    RougeJudge,
    SaidJudge,
    SameSubject,
    Sample,
    Subject,
    asking,
    beginning,
    hinting,
    mixing,
    sampling,
    wording,
)
from etw_lightning.attacks.beginning import begin_answer
from etw_lightning.attacks.heard import HeardSuite
from etw_lightning.attacks.judges import judged
from etw_lightning.attacks.wording import PREFIXES
from etw_lightning.catalogue.listing import CATALOGUE
from etw_lightning.data.encode import Encoder
from etw_lightning.files.class_paths import path_of
from etw_lightning.models.loading import load_model
from etw_lightning.schema import Conventions, EvalSet, Example, InputError, Record, Turn

FORGET = (
    Example(
        "forget/0",
        "Mara Venn was born in the town of Quillmere.",
        "Where was Mara Venn born?",
        paraphrased_question="What is the birthplace of Mara Venn?",
        paraphrased_answer="It is Quillmere.",
        perturbed_answers=("Mara Venn was born in Ashford.", "Mara Venn was born in Calder."),
    ),
    Example(
        "forget/1",
        "She wrote The Salt Road by the river.",
        "What did Mara Venn write?",
        paraphrased_question="Which book is by Mara Venn?",
    ),
    Example(
        "forget/2",
        "Tolo Brask was the author of the mill.",
        "Who is Tolo Brask?",
        paraphrased_question="What of Tolo Brask?",
    ),
)
RETAIN = (
    Example("retain/0", "The town lies by a river.", "Where does the town lie?"),
    Example("retain/1", "Nobody there knows the answer.", "Who knows the answer there?"),
)


@pytest.fixture(scope="module")
def lm(tiny_model_dir):
    return load_model(str(tiny_model_dir)).double().eval()


@pytest.fixture
def subject(lm, tiny_tokenizer):
    return make_subject(lm, tiny_tokenizer)


def make_subject(lm, tokenizer, template="chat", forget=FORGET, batch_size=2, seed=1):
    sets = {
        "forget": EvalSet("forget", forget, gradient_norm=True, max_new_tokens=6),
        "retain": EvalSet("retain", RETAIN, max_new_tokens=5),
    }
    run = SimpleNamespace(
        data_settings={"eval_batch_size": batch_size},
        seed=seed,
        data=lambda: SimpleNamespace(offered_sets=tuple(sets)),
        examples=lambda name: sets[name].examples,
    )
    return Subject("unlearned", lm, tokenizer, sets, Encoder(tokenizer, template), run)


def say(monkeypatch, module, texts):
    """Have a module's models say given texts of each question; return what was asked."""
    seen = []

    def asked(subject, eval_set):
        seen.append(eval_set)
        return [
            Record(
                eval_set.name,
                one.id,
                one.answer,
                one.question,
                answer_loss=1.0 + len(one.question) / 100,
                generation=texts(one),
            )
            for one in eval_set.examples
        ]

    monkeypatch.setattr(module, "asked", asked)
    return seen


def numbers(attack, subject, *, attacked=True):
    """Return an attack's own numbers, and those of the suite that are read first."""
    heard = attack.hear(subject, attacked=attacked)
    [(name, records)] = heard.records.items()
    assert name == "forget"
    assert len(records) == len({one.id for one in records}), "one record a row"
    # What the question holds is not counted as said: not so what the attack puts into it.
    plain = {one.id: one.question for one in FORGET}
    assert all(plain[one.id] == one.question for one in records)
    kept = list(CATALOGUE)
    data = SimpleNamespace(family="tofu", conventions=Conventions(), rouge_tokenizer="published")
    suite = HeardSuite(kept, data, ("forget",), attack.heard_parts).of(heard.records)
    assert not heard.numbers.keys() & suite.keys() - {"forget_refusals"}
    assert ("forget_probability" in suite) == ("answers" in attack.heard_parts)
    return {**suite, **heard.numbers}


def token_logps(lm, ids, start):
    """Log-probability of each token of a row from a place on."""
    with torch.no_grad():
        logps = lm(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return [float(logps[place - 1, ids[place]]) for place in range(start, len(ids))]


# Sampling


def test_samples_are_counted_row_by_row(monkeypatch, subject):
    gold, no = FORGET[0].answer, "I don't know."
    said = [[gold, no, no, no], [no] * 4, [FORGET[2].answer] * 3 + ["It is late."]]
    monkeypatch.setattr(sampling, "continue_prompts", lambda *given: said)
    found = numbers(Sample(num_samples=4, ks=(1, 2, 4)), subject)
    # One of four, none, three of four leak: of pairs 3 of 6, 0, and 6 of 6 hold a leak.
    assert found["forget_leak_at_1"].value == pytest.approx((1 / 4 + 0 + 3 / 4) / 3)
    assert found["forget_leak_at_2"].value == pytest.approx((3 / 6 + 0 + 1) / 3)
    assert found["forget_leak_at_4"].value == pytest.approx(2 / 3)
    assert found["forget_rouge_at_4"].value == pytest.approx(2 / 3)
    assert found["forget_refusals"].value == pytest.approx((3 + 4 + 0) / 12)
    # The second row is refused in all samples, the third in none.
    assert found["forget_refusal_stability"].value == pytest.approx(2 / 3)
    # Of three rows 3/4, 1 and 1 of the samples do what most of the row's do.
    assert found["forget_refusal_agreement"].value == pytest.approx((3 / 4 + 1 + 1) / 3)
    # The suite reads the sample that says most: two rows in full, and nothing of the second.
    assert found["forget_rougeL_recall"].value == pytest.approx(2 / 3)
    assert found["forget_rougeL_recall"].interval is not None
    assert {one.n for name, one in found.items() if "said" not in name} == {3}


def test_before_samples_stands_the_greedy_answer(monkeypatch, subject):
    say(monkeypatch, sampling, lambda row: FORGET[0].answer if row.id == "forget/0" else "No idea.")
    attack = Sample(num_samples=4, ks=(1, 4))
    found = numbers(attack, subject, attacked=False)
    assert found["forget_leak_at_1"].value == found["forget_leak_at_4"].value == 1 / 3
    assert found["forget_refusals"].value == 2 / 3


def test_samples_hang_on_the_seed_and_not_on_the_batch(lm, tiny_tokenizer):
    attack = Sample(num_samples=5, ks=(1, 5))
    texts = [
        [one.generation for one in attack.sampled(subject, subject.sets["forget"])]
        for subject in (
            make_subject(lm, tiny_tokenizer, batch_size=2),
            make_subject(lm, tiny_tokenizer, batch_size=64),
            make_subject(lm, tiny_tokenizer, seed=2),
        )
    ]
    assert len(texts[0]) == 15
    assert texts[0] == texts[1] != texts[2]
    found = numbers(attack, make_subject(lm, tiny_tokenizer))
    assert found["forget_rouge_at_1"].value <= found["forget_rouge_at_5"].value


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"num_samples": 8, "ks": (1, 9)},
            "attack.ks: k must be from 1 to attack.num_samples, 8; got 9",
        ),
        ({"ks": (0,)}, "attack.ks: k must be from 1"),
        ({"ks": ()}, "attack.ks must name at least one k"),
        ({"num_samples": 0}, "attack.num_samples must be 1 or more; got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_what_sampling_refuses(settings, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        Sample(**settings)
    assert "\n" not in str(caught.value)


class Shouting(LeakJudge):
    def scores(self, records):
        return [float(record.generation.isupper()) for record in records]


class Broken(LeakJudge):
    def __init__(self, found):
        self.found = found

    def scores(self, records):
        return self.found


class Silent(LeakJudge):
    pass


def test_a_judge_of_ones_own(monkeypatch, subject):
    monkeypatch.setattr(
        sampling, "continue_prompts", lambda *given: [["A", "b"], ["c"] * 2, ["D"] * 2]
    )
    found = numbers(Sample(num_samples=2, ks=(1, 2), judge=path_of(Shouting)), subject)
    assert found["forget_leak_at_1"].value == pytest.approx((0.5 + 0 + 1) / 3)
    assert found["forget_leak_at_2"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([1.0], "scores must return one number a record; got 1 for 2"),
        ([0.5, 1.5], "a score must be a number from 0 to 1; row f/1 has 1.5"),
        ([float("nan"), 1.0], "row f/0 has nan"),
        (["yes", 1.0], "row f/0 has 'yes'"),
    ],
)
def test_what_a_judge_may_not_say(found, said):
    records = [Record("f", f"f/{n}", "a", generation="a") for n in range(2)]
    with pytest.raises(InputError, match=re.escape(said)):
        judged(Broken(found), records)


def test_judges_of_ours():
    record = Record(
        "f", "f/0", "She lives in Rome.", "Where?", generation="She is in Rome, I hear."
    )
    # She, in, Rome: three of four words.
    assert judged(RougeJudge(0.75), [record]).tolist() == [1.0]
    assert judged(RougeJudge(0.8), [record]).tolist() == [0.0]
    assert judged(SaidJudge(), [record]).tolist() == [1.0]
    assert judged(SaidJudge(), [replace(record, generation="In Paris.")]).tolist() == [0.0]
    with pytest.raises(InputError, match=r"attack\.threshold must be above 0"):
        RougeJudge(0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shouting", "attack.judge must be rouge, said, or the path of a subclass of"),
        ("no_module.Judge", "attack.judge 'no_module.Judge': there is no module 'no_module'"),
        ("etw_lightning.schema.Example", "must be a subclass of etw_lightning.attacks.LeakJudge"),
        (path_of(Broken), "can't be made: TypeError: Broken.__init__() missing 1 required"),
        (path_of(Silent), "has no method scores; write one that takes records and returns"),
        (
            "etw_lightning.attacks.LeakJudge",
            "got that class itself, which does nothing.",
        ),
    ],
)
def test_a_judge_that_is_none_is_refused_before_anything_is_asked(subject, name, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        Sample(judge=name).check(subject.run)
    assert "\n" not in str(caught.value)
    assert "<class" not in str(caught.value)
    Sample(judge="said").check(subject.run)


# Other wording


def test_reword_asks_every_question_otherwise(subject):
    changed = Reword(how="upper", prefix="Say:").change_rows(subject.sets["forget"], subject.run)
    assert [one.question for one in changed.examples] == [
        "Say: WHERE WAS MARA VENN BORN?",
        "Say: WHAT DID MARA VENN WRITE?",
        "Say: WHO IS TOLO BRASK?",
    ]
    assert [one.answer for one in changed.examples] == [one.answer for one in FORGET]
    raw = EvalSet("forget", (Example("raw/0", "Some text."),))
    assert Reword(prefix="Say:").change_rows(raw, subject.run) == raw
    with pytest.raises(InputError, match=r"attack\.how or attack\.prefix must say"):
        Reword(prefix=" ")


def test_the_best_wording_of_each_row_counts(monkeypatch, subject):
    def texts(row):
        if row.question.startswith("Q: "):
            return "No idea."
        if row.question.isupper() and row.id == "forget/0":
            return FORGET[0].answer
        return "Tolo Brask was the author." if row.id == "forget/2" else "I don't know."

    seen = say(monkeypatch, wording, texts)
    attack = BestWording(formats=("upper", "completion"), prefixes=("Say:",))
    found = numbers(attack, subject)
    # 9, 8 and 8 words; the third row's text holds the first five of its answer's.
    assert found["forget_rougeL_recall"].value == pytest.approx((1 + 0 + 5 / 8) / 3)
    assert found["forget_rouge_of_plain"].value == pytest.approx(5 / 8 / 3)
    assert found["forget_rouge_of_upper"].value == pytest.approx((1 + 5 / 8) / 3)
    # The shortest question is the likeliest here, by what ``say`` makes up.
    likely = np.exp(-1 - np.array([25, 25, 18]) / 100)
    assert found["forget_probability"].value == pytest.approx(likely.mean())
    # Five wordings: plain, paraphrase, upper, completion, prefix.
    assert found["forget_refusals"].value == pytest.approx((4 + 5 + 1) / 15)
    assert found["forget_refusal_stability"].value == pytest.approx(1 / 3)
    assert found["forget_refusal_agreement"].value == pytest.approx((4 + 5 + 4) / 15)
    # Of the retain rows four wordings, as they have no paraphrase.
    assert found["retain_refusals"].value == 1
    assert found["retain_refusal_stability"].value == 1
    asked = [[one.question for one in eval_set.examples] for eval_set in seen]
    assert asked[1] == [one.paraphrased_question for one in FORGET]
    assert asked[4][0] == "Say: Where was Mara Venn born?"
    assert len(asked) == 5 + 4


def test_before_other_wordings_stands_the_question_itself(monkeypatch, subject):
    say(monkeypatch, wording, lambda row: FORGET[0].answer if row.id == "forget/0" else "No idea.")
    attack = BestWording(formats=("upper",), prefixes=())
    before, after = numbers(attack, subject, attacked=False), numbers(attack, subject)
    constant = {
        f"{side}_refusal_{what}"
        for side in ("forget", "retain")
        for what in ("stability", "agreement")
    }
    assert before.keys() == after.keys() - constant
    assert before["forget_rougeL_recall"].value == before["forget_rouge_of_upper"].value
    assert before["retain_refusals"].value == 1


def test_questions_of_a_file_are_asked_by_row(tmp_path, subject):
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"row": 0, "questions": ["Wo?", "O\\u00f9?"]}\n{"row": 1, "question": "Was?"}\n'
        '{"row": "forget/2", "question": "Wer?"}\n'
    )
    attack = BestWording(paraphrase=False, formats=(), prefixes=(), questions=str(path))
    asked = attack.wordings(FORGET, is_forget=True)
    assert list(asked) == ["plain", "question1", "question2"]
    assert [one.question for one in asked["question1"]] == ["Wo?", "Was?", "Wer?"]
    assert [one.question for one in asked["question2"]] == ["Où?", "Was?", "Wer?"]
    assert list(attack.wordings(RETAIN, is_forget=False)) == ["plain"]


def test_retain_rows_that_are_asked_in_one_way_have_no_stability(tmp_path, monkeypatch, subject):
    say(monkeypatch, wording, lambda row: "No idea.")
    path = tmp_path / "q.jsonl"
    path.write_text("".join(f'{{"row": {row}, "question": "Was?"}}\n' for row in range(3)))
    attack = BestWording(paraphrase=False, formats=(), prefixes=(), questions=str(path))
    found = numbers(attack, subject)
    assert found["forget_refusal_stability"].value == found["retain_refusals"].value == 1
    assert "retain_refusal_stability" not in found


def test_prefixes_of_a_file_follow_ours(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("As a friend:\n")
    attack = BestWording(paraphrase=False, formats=(), prefix_file=str(path))
    asked = attack.wordings(FORGET[:1], is_forget=True)
    assert [texts[0].question for texts in asked.values()][1:] == [
        f"{prefix} Where was Mara Venn born?" for prefix in (*PREFIXES, "As a friend:")
    ]


def test_what_other_wording_refuses(tmp_path, subject, lm, tiny_tokenizer):
    with pytest.raises(InputError, match="attack: there is no other wording; give"):
        BestWording(paraphrase=False, formats=(), prefixes=())
    with pytest.raises(InputError, match=r"attack\.prefixes holds a text without a letter"):
        BestWording(prefixes=("",))
    bare = (*FORGET[:2], replace(FORGET[2], paraphrased_question=None))
    without = make_subject(lm, tiny_tokenizer, forget=bare)
    with pytest.raises(InputError, match=r"attack\.paraphrase: row forget/2 has no paraphrased"):
        BestWording().check(without.run)
    BestWording(paraphrase=False).check(without.run)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(InputError, match=r"attack\.prefix_file '.*' holds no prefix"):
        BestWording(prefix_file=str(empty)).check(subject.run)
    with pytest.raises(InputError, match=r"attack\.questions '.*' can't be read"):
        BestWording(questions=str(tmp_path / "no.jsonl")).check(subject.run)


# Mixed questions


def test_both_answers_are_looked_for_in_both_orders(monkeypatch, subject, tiny_tokenizer):
    attack = Mix()
    rows, others = attack.pairs(subject)
    assert rows == list(FORGET)
    assert set(others) <= set(RETAIN)
    prompts, rooms = [], []

    def continued(lm, encoder, given, eval_set, batch_size):
        prompts.append([tiny_tokenizer.decode(one.ids) for one in given])
        rooms.append((eval_set.max_new_tokens, eval_set.stop_strings))
        first = len(prompts) == 1
        return [
            [f"No idea. {other.answer}" if first else one.answer]
            for one, other in zip(rows, others, strict=True)
        ]

    monkeypatch.setattr(mixing, "continue_prompts", continued)
    found = numbers(attack, subject)
    assert rooms == [(11, ())] * 2
    for number, (row, other) in enumerate(zip(rows, others, strict=True)):
        assert f"{row.question} {other.question}" in prompts[0][number]
        assert f"{other.question} {row.question}" in prompts[1][number]
    assert found["retain_rouge_forget_first"].value == 1
    assert found["forget_rouge_retain_first"].value == 1
    assert found["forget_rougeL_recall"].value == 1
    assert found["forget_rouge_forget_first"].value < 0.5
    assert found["retain_rouge_retain_first"].value < 0.5
    assert found["refusals_forget_first"].value == 1
    assert found["refusals_retain_first"].value == 0
    # The better order of each row is what the suite reads.
    assert found["forget_rougeL_recall"].value == 1


def test_before_mixing_stand_the_same_rows_alone(monkeypatch, subject):
    seen = say(monkeypatch, mixing, lambda row: row.answer if row.id == "retain/0" else "No idea.")
    attack = Mix(orders=("retain_first",))
    found = numbers(attack, subject, attacked=False)
    _, others = attack.pairs(subject)
    share = sum(one.id == "retain/0" for one in others) / 3
    assert found["retain_rouge_retain_first"].value == pytest.approx(share)
    assert found["forget_rougeL_recall"].value == found["forget_rouge_retain_first"].value == 0
    assert found["refusals_retain_first"].value == 1
    assert not any(eval_set.losses for eval_set in seen)
    with pytest.raises(InputError, match=r"attack\.orders must name"):
        Mix(orders=())


# Hints


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("words", [1, 3, 6])
def test_given_words_are_the_tokens_that_were_taught(tiny_tokenizer, template, words):
    encoder = Encoder(tiny_tokenizer, template)
    for row in FORGET:
        whole = encoder.encode(row).input_ids
        prompt, num_given, rest = begin_answer(encoder, row, words)
        assert whole[: len(prompt.ids)] == prompt.ids
        said = tiny_tokenizer.decode(prompt.ids)
        given = " ".join(row.answer.split()[:words])
        assert said.endswith(given)
        assert f"{given} {rest}" == row.answer
        assert len(prompt.ids) == len(encoder.encode_prompt(row)) + num_given


def test_what_was_said_before_the_rest_does_not_lose_it(monkeypatch, subject):
    say(monkeypatch, beginning, lambda row: f"Well: {row.answer}")
    found = numbers(FirstWords(words=3), subject, attacked=False)
    assert found["forget_rest_exact"].value == found["forget_rougeL_recall"].value == 1


def test_the_rest_is_scored_alone(monkeypatch, lm, subject, tiny_tokenizer):
    attack = FirstWords(words=3)
    rests = [" ".join(row.answer.split()[3:]) for row in FORGET]
    said = [[rests[0]], ["nothing"], [f"{rests[2]} there"]]
    monkeypatch.setattr(beginning, "continue_prompts", lambda *given: said)
    found = numbers(attack, subject)
    assert found["forget_rest_exact"].value == pytest.approx(1 / 3)
    assert found["forget_rougeL_recall"].value == pytest.approx(2 / 3)
    likely = []
    for row in FORGET:
        prompt, _, _ = begin_answer(subject.encoder, row, 3)
        ids = subject.encoder.encode(row).input_ids
        likely.append(np.exp(np.mean(token_logps(lm, ids, len(prompt.ids)))))
    assert found["forget_rest_probability"].value == pytest.approx(np.mean(likely), rel=1e-9)


def test_before_a_hint_the_same_rest_is_looked_for(monkeypatch, subject):
    say(monkeypatch, beginning, lambda row: " ".join(row.answer.split()[:4]))
    found = numbers(FirstWords(words=3), subject, attacked=False)
    # Of 6, 5 and 5 words left, the first is said; of a probability, the whole answer's stands.
    assert found["forget_rest_exact"].value == 0
    whole = [np.exp(-1 - len(row.question) / 100) for row in FORGET]
    assert found["forget_rest_probability"].value == pytest.approx(np.mean(whole))
    assert found["forget_rougeL_recall"].value == pytest.approx((1 / 6 + 1 / 5 + 1 / 5) / 3)


def test_what_first_words_refuses(lm, tiny_tokenizer):
    subject = make_subject(lm, tiny_tokenizer)
    with pytest.raises(InputError, match=r"attack\.words must be 1 or more; got 0"):
        FirstWords(words=0)
    with pytest.raises(InputError, match=r"attack\.words is 9, and no forget answer has more"):
        FirstWords(words=9).check(subject.run)
    # The first answer has nine words, the others eight.
    assert FirstWords(words=8)._kept(FORGET) == FORGET[:1]
    short = Encoder(tiny_tokenizer, max_length=len(subject.encoder.encode_prompt(FORGET[0])) + 3)
    with pytest.raises(InputError, match=r"row forget/0 is cut by data\.max_length"):
        begin_answer(short, FORGET[0], 8)


def test_facts_of_the_same_subject_come_before_the_question(monkeypatch, subject):
    seen = say(monkeypatch, hinting, lambda row: row.answer if row.turns else "No idea.")
    attack = SameSubject(facts=2)
    found, before = numbers(attack, subject), numbers(attack, subject, attacked=False)
    # Only the first two rows name one person.
    assert [[one.id for one in rows.examples] for rows in seen] == [["forget/0", "forget/1"]] * 2
    assert seen[0].examples[0].turns == (
        Turn("user", FORGET[1].question),
        Turn("assistant", FORGET[1].answer),
    )
    assert seen[1].examples[0].turns == ()
    assert (found["forget_rougeL_recall"].value, before["forget_rougeL_recall"].value) == (1, 0)
    assert (found["forget_refusals"].value, before["forget_refusals"].value) == (0, 1)
    assert found["forget_rougeL_recall"].n == 2


def test_rows_in_a_row_are_of_one_subject_where_that_is_said(monkeypatch, subject):
    seen = say(monkeypatch, hinting, lambda row: "")
    SameSubject(facts=1, rows_per_subject=3).hear(subject, attacked=True)
    assert [one.turns[1].text for one in seen[0].examples] == [
        FORGET[1].answer,
        FORGET[0].answer,
        FORGET[0].answer,
    ]
    with pytest.raises(InputError, match=r"attack\.rows_per_subject must be 2 or more"):
        SameSubject(rows_per_subject=1)
    with pytest.raises(InputError, match=r"attack\.facts must be 1 or more"):
        SameSubject(facts=0)


def test_the_plain_template_shows_facts_as_it_shows_rows(lm, tiny_tokenizer, monkeypatch):
    subject = make_subject(lm, tiny_tokenizer, "plain")
    seen = say(monkeypatch, hinting, lambda row: "")
    SameSubject().hear(subject, attacked=True)
    shown = subject.encoder.prompt(seen[0].examples[0])
    assert shown == (
        f"Question: {FORGET[1].question}\nAnswer: {FORGET[1].answer}\n\n"
        f"Question: {FORGET[0].question}\nAnswer:"
    )


def test_rows_without_a_common_subject_are_refused(lm, tiny_tokenizer):
    lone = make_subject(lm, tiny_tokenizer, forget=FORGET[1:])
    with pytest.raises(InputError, match="no two forget rows name the same subject"):
        SameSubject().check(lone.run)


@pytest.mark.parametrize("shown", [True, False])
def test_the_likeliest_option_per_token_is_chosen(lm, subject, shown):
    attack = Options(options=3)
    found = numbers(attack, subject) if shown else numbers(attack, subject, attacked=False)
    hits = []
    for row in attack._offered(FORGET, subject.run.seed):
        lines = [f"{letter}. {text}" for letter, text in zip("ABC", row.choices, strict=True)]
        question = "\n".join([row.question, *lines]) if shown else row.question
        asked = Example(row.id, row.answer, question)
        start = len(subject.encoder.encode_prompt(asked))
        means = [
            np.mean(token_logps(lm, subject.encoder.encode(asked, text).input_ids, start))
            for text in row.choices
        ]
        hits.append(row.choices[int(np.argmax(means))] == row.answer)
    assert found["forget_choice_accuracy"].value == pytest.approx(np.mean(hits))


def test_options_are_wrong_answers_of_the_row_then_of_others():
    first, second, _ = rows = Options(options=3)._offered(FORGET, 0)
    assert set(first.choices) == {FORGET[0].answer, *FORGET[0].perturbed_answers}
    assert set(second.choices) == {one.answer for one in FORGET}
    assert [row.choices[row.right_choice] for row in rows] == [one.answer for one in FORGET]
    assert rows == Options(options=3)._offered(FORGET, 0)
    places = {Options(options=3)._offered(FORGET, seed)[0].right_choice for seed in range(20)}
    assert places == {0, 1, 2}


def test_what_options_refuses(subject):
    with pytest.raises(InputError, match=r"row forget/1 has 2 wrong answers.*give 3 or less"):
        Options(options=4).check(subject.run)
    for count in (1, 27):
        with pytest.raises(InputError, match=r"attack\.options must be from 2 to 26"):
            Options(options=count)


# What all of them ask


def heard_suite(names, parts=("answers", "generation"), sets=("forget",), family="tofu", **further):
    data = SimpleNamespace(family=family, conventions=Conventions(), rouge_tokenizer="published")
    return HeardSuite(names, data, sets, parts, **further)


def test_the_suite_is_computed_as_far_as_the_records_go():
    every = heard_suite(list(CATALOGUE))
    assert set(every.entries) == {
        "probability", "rouge", "extraction_strength", "exact_memorisation", "repetition",
        "sanity", "still_said", "distinct_n", "token_histograms",
    }  # fmt: skip
    texts = heard_suite(list(CATALOGUE), ("generation",))
    assert set(texts.entries) == {"rouge", "repetition", "sanity", "still_said", "distinct_n"}
    questions = heard_suite(["knowmem"], sets=("knowmem_forget",), family="muse")
    rows = [Record("knowmem_forget", "k/0", "Rome", "Where?", generation="Rome")]
    assert {name: one.value for name, one in questions.of({"knowmem_forget": rows}).items()} == {
        "knowmem_forget": 100.0
    }


def test_metrics_that_were_named_are_computed_or_refused():
    with pytest.raises(InputError, match="--metrics forget_quality can't be computed under Mix"):
        heard_suite(["rouge", "forget_quality"]).require("Mix")
    heard_suite(["rouge"]).require("Mix")
    rows = [Record("forget", "f/0", "by the river.", "Where?", generation="no")]
    with pytest.raises(InputError, match="still_said"):
        heard_suite(["still_said"], is_asked=True).of({"forget": rows})
    whole = heard_suite(["still_said", "rouge"])
    assert whole.of({"forget": rows})["forget_rougeL_recall"].value == 0
    assert list(whole.left_out) == ["still_said"]


def test_rows_that_can_not_be_asked_are_named(lm, tiny_tokenizer):
    raw = make_subject(lm, tiny_tokenizer, forget=(Example("raw/0", "Some text."),))
    done = make_subject(lm, tiny_tokenizer, forget=(replace(FORGET[0], verbatim=True),))
    for attack in (BestWording(), Mix(), SameSubject(), Options(), FirstWords(), Reword("upper")):
        with pytest.raises(InputError, match="row raw/0 of 'forget' is raw text"):
            attack.check(raw.run)
    for attack in (BestWording(), Mix(), SameSubject(), Reword("upper")):
        with pytest.raises(InputError, match="row forget/0 is a finished prompt"):
            attack.check(done.run)
    with pytest.raises(InputError, match="row raw/0 of 'forget' is raw text"):
        Sample().check(raw.run)


def test_sets_without_questions_or_generation_are_refused(subject):
    assert asking.side_name(["verbmem", "knowmem_retain"], "retain") == "knowmem_retain"
    with pytest.raises(InputError, match="no questions of the forget set, which this asks; it has"):
        asking.side_name(["verbmem"], "forget")
    subject.sets["forget"] = replace(subject.sets["forget"], max_new_tokens=0)
    with pytest.raises(InputError, match=r"give --data\.max_new_tokens"):
        asking.question_set(subject, "forget")


def test_only_answers_and_generations_are_scored(subject):
    (first, *_) = asking.asked(subject, asking.question_set(subject, "forget"))
    assert first.generation is not None
    assert first.answer_loss is not None
    assert first.gradient_norm is first.paraphrase_loss is None
    assert first.perturbed_losses == ()
