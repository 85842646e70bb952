"""Choice tests: rows to prompts and options, and options to accuracy."""

import json
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
from refusals import message

from etw_lightning.benchmarks import Benchmark
from etw_lightning.benchmarks.choice import TESTS, Choice, ChoicePrompt, choice_prompt
from etw_lightning.benchmarks.source import Source
from etw_lightning.metrics import choice_accuracy, choice_hits, wilson_interval
from etw_lightning.schema import EvalSet, Example, Record

BIO = [
    {"question": " Which? \n", "choices": ["w", "x", "y", "z"], "answer": 2},
    {"question": "What?", "choices": ["p", "q", "r", "s"], "answer": 0},
]


def mmlu(subject, n):
    return [
        {"question": f"{subject} {i}?", "choices": list("wxyz"), "answer": i, "subject": subject}
        for i in range(n)
    ]


FILES = {
    "wmdp/bio": BIO,
    "wmdp/chem": BIO[:1],
    "mmlu/test": mmlu("us_foreign_policy", 2) + mmlu("anatomy", 1),
    "mmlu/dev": mmlu("anatomy", 3) + mmlu("us_foreign_policy", 2),
    "own": [{"question": "Yes?", "choices": ["yes", "no"], "answer": "B"}],
}


def write(root, files):
    for name, rows in files.items():
        path = root / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, FILES)


def test_a_wmdp_question_has_its_head_its_options_and_letters_to_choose_from(root):
    reader: Benchmark = Choice(Source(root=root), "wmdp_bio")
    (found,) = reader.eval_sets().values()
    prompt = (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert found == EvalSet("wmdp_bio", found.examples)
    assert found.examples[0] == Example(
        "wmdp_bio/0",
        " C",
        question=prompt,
        verbatim=True,
        choices=(" A", " B", " C", " D"),
        right_choice=2,
    )


def test_text_form_scores_the_options_themselves(root):
    reader = Choice(Source(root=root), "wmdp_bio", prompt=ChoicePrompt("text"))
    (first, _) = reader.eval_sets()["wmdp_bio"].examples
    head = "The following are questions (with answers) about biology.\n\n"
    assert first.question == f"{head}Question: Which?\nAnswer:"
    assert (first.choices, first.answer) == ((" w", " x", " y", " z"), " y")


def test_mmlu_shows_the_first_dev_rows_of_the_subject(root):
    reader = Choice(Source(root=root), "mmlu", prompt=ChoicePrompt(mmlu_shots=2))
    found = reader.eval_sets()["mmlu"].examples
    options = "A. w\nB. x\nC. y\nD. z\nAnswer:"
    shots = (
        f"us_foreign_policy 0?\n{options} A\n\nus_foreign_policy 1?\n{options} B\n\n",
        f"anatomy 0?\n{options} A\n\nanatomy 1?\n{options} B\n\n",
    )
    head = "The following are multiple choice questions (with answers) about"
    assert found[1].question == (
        f"{head} us foreign policy.\n\n{shots[0]}us_foreign_policy 1?\n{options}"
    )
    assert found[2].question == f"{head} anatomy.\n\n{shots[1]}anatomy 0?\n{options}"
    plain = Choice(Source(root=root), "mmlu").eval_sets()["mmlu"].examples
    assert plain[2].question == f"{head} anatomy.\n\nanatomy 0?\n{options}"


def test_a_file_of_the_users_own_has_no_head_and_any_number_of_options(root):
    (found,) = Choice(Source(root=root), "own.jsonl").eval_sets(["own"]).values()
    (example,) = found.examples
    assert (
        example.question == choice_prompt("Yes?", ["yes", "no"]) == "Yes?\nA. yes\nB. no\nAnswer:"
    )
    assert (example.id, example.answer, example.choices) == ("own.jsonl/0", " B", (" A", " B"))


def test_tests_of_what_must_go_come_first_and_are_named(root):
    reader = Choice(Source(root=root, limits={"wmdp_bio": 1}), "wmdp_bio+wmdp_chem", "mmlu+own")
    assert reader.EVAL_SETS == ("wmdp_bio", "wmdp_chem", "mmlu", "own")
    assert reader.forget_sets == ("wmdp_bio", "wmdp_chem")
    assert [len(s.examples) for s in reader.eval_sets().values()] == [1, 1, 3, 1]
    assert list(reader.eval_sets(["own", "mmlu"])) == ["mmlu", "own"]


def test_the_published_tests_are_read_from_their_data_sets(monkeypatch):
    asked = []

    def read(hub, name):
        asked.append((hub, name))
        return mmlu("anatomy", 1)

    monkeypatch.setattr("etw_lightning.benchmarks.source.read_hub", read)
    Choice(retain_split="mmlu", prompt=ChoicePrompt(mmlu_shots=1)).eval_sets()
    assert sorted(asked) == [
        ("cais/mmlu", "all/dev"),
        ("cais/mmlu", "all/test"),
        ("cais/wmdp", "wmdp-bio/test"),
        ("cais/wmdp", "wmdp-chem/test"),
        ("cais/wmdp", "wmdp-cyber/test"),
    ]
    assert set(TESTS) == {"wmdp_bio", "wmdp_chem", "wmdp_cyber", "mmlu"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["a", "b"]}, "own/1: column 'answer' must be a place from 0 to 1 or a letter"),
        ({"choices": ["a", "b"], "answer": 2}, "got 2."),
        ({"choices": ["a", "b"], "answer": -1}, "got -1."),
        ({"choices": ["a", "b"], "answer": True}, "got True."),
        ({"choices": ["a", "b"], "answer": "AB"}, "got 'AB'."),
        ({"choices": ["a", "b"], "answer": "C"}, "a letter from A to B; got 'C'."),
        ({"answer": 0}, "own/1: no column 'choices'; its columns are question, answer."),
        ({"choices": [], "answer": 0}, "own/1: column 'choices' must hold a list of texts"),
        ({"choices": ["a"], "answer": 0}, "own/1: column 'choices' must hold 2 to 26 options"),
        ({"choices": ["a", " "], "answer": 0}, "own/1: column 'choices[1]' is empty"),
        ({"choices": ["a", "b", "c"], "answer": 0}, "own/1: 3 options, own/0 has 2;"),
    ],
)
def test_a_broken_row_is_named(root, row, said):
    write(root, {"own": [*FILES["own"], {"question": "q", **row}]})
    assert said in message(Choice(Source(root=root), "own").eval_sets)


def test_errors_name_the_key(root):
    source = Source(root=root)
    assert message(ChoicePrompt, "letters") == (
        "data.choice_prompt.form must be letter or text; got 'letters'. Did you mean 'letter'?"
    )
    assert message(ChoicePrompt, mmlu_shots=6).startswith("data.choice_prompt.mmlu_shots must be")
    assert message(Choice, source, "").startswith("data.forget_split must name tests")
    assert "would both be the set 'own'" in message(Choice, source, "own", "own.jsonl")
    reader = Choice(source, "wmdp_bio", "missing")
    assert message(reader.eval_sets).startswith("data.retain_split is 'missing': no file ")
    assert message(reader.eval_sets, ["wmdp"]).startswith("data.eval_sets must be wmdp_bio or")
    assert "run evaluate instead of fit" in message(reader.examples, "wmdp_bio")
    text = message(Choice, Source(root=root, limits={"wmdp": 1}), "wmdp_bio")
    assert text.startswith("each name in data.rows must be wmdp_bio; got 'wmdp'.")


def test_missing_shots_are_an_error(root):
    few = Choice(Source(root=root), "mmlu", prompt=ChoicePrompt(mmlu_shots=3))
    assert "mmlu/dev has 2 rows of subject 'us foreign policy'" in message(few.eval_sets)
    write(root, {"mmlu/dev": mmlu("anatomy", 3)})
    assert message(few.eval_sets).startswith("mmlu/0: no dev rows of subject 'us foreign policy'")


ROW = Record(
    "mmlu",
    "mmlu/0",
    " long one",
    choices=(" long one", " b", " c"),
    choice_logps=(-6.0, -2.0, -4.0),
    choice_num_tokens=(4, 1, 2),
    right_choice=0,
)


def test_accuracy_by_each_normalisation():
    # Sums -6, -2, -4; per token -1.5, -2, -2; per character -6/8, -2, -4.
    assert choice_hits([ROW]).tolist() == [0.0]
    assert choice_hits([ROW], "tokens").tolist() == [1.0]
    assert choice_hits([ROW], "characters").tolist() == [1.0]
    # Here tokens and characters part: per token -6, -6; per character -1.5, -6.
    row = replace(ROW, choices=(" ab", " abcd"), choice_num_tokens=(1, 2), right_choice=1)
    row = replace(row, choice_logps=(-6.0, -12.0))
    assert choice_hits([row], "tokens").tolist() == [0.0], "of equal ones the first"
    assert choice_hits([replace(row, right_choice=0)], "characters").tolist() == [1.0]
    assert choice_hits([replace(row, choice_logps=(-7.0, -12.0))], "characters").tolist() == [1.0]


def test_a_constant_model_takes_the_first_option():
    rows = [replace(ROW, choice_logps=(-1.0,) * 3, right_choice=right) for right in (0, 1, 2, 0)]
    found = choice_accuracy(rows, direction="down")
    assert (found.value, found.direction, found.n) == (0.5, "down", 4)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 2), (318, 1273)])
def test_the_interval_holds_the_shares_that_the_count_does_not_refute(hits, n):
    # Wilson's ends are where the share lies 1.96 standard errors of the end from the count.
    low, high = wilson_interval(hits, n)
    for end, outside in ((low, hits == 0), (high, hits == n)):
        if outside:
            assert end in (0.0, 1.0)
        else:
            distance = (hits / n - end) ** 2
            assert distance == pytest.approx(1.959963984540054**2 * end * (1 - end) / n, rel=1e-9)
    assert 0 <= low <= hits / n <= high <= 1


@pytest.mark.parametrize("n", [1, 2, 40, 1273, 14042])
def test_the_interval_is_wilsons_formula(n):
    """In decimals of 40 digits; 95 % of the normal distribution lie within z of its middle."""
    with localcontext(prec=40):
        z = Decimal("1.959963984540054235524594430520551527956")
        for hits in {0, 1, n // 3, n - 1, n}:
            share = Decimal(hits) / n
            middle = share + z * z / (2 * n)
            half = z * (share * (1 - share) / n + (z / (2 * n)) ** 2).sqrt()
            expected = [float((middle + side * half) / (1 + z * z / n)) for side in (-1, 1)]
            assert wilson_interval(hits, n) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": ()}, "choices is missing"),
        ({"choice_logps": ()}, "choice_logps is missing"),
        ({"choice_logps": (-1.0, -2.0)}, "do not belong together"),
        ({"right_choice": 3}, "do not belong together"),
        ({"right_choice": None}, "right_choice is missing"),
        ({"choice_logps": (-1.0, float("nan"), -2.0)}, "choice_logps must be finite, got nan"),
        ({"choice_num_tokens": ()}, "choice_num_tokens is missing"),
        ({"choice_num_tokens": (1, 0, 2)}, "each must be at least 1"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(change, said):
    text = message(choice_accuracy, [ROW, replace(ROW, id="mmlu/1", **change)], "tokens")
    assert said in text
    assert "row 1 (mmlu/1)" in text


def test_no_rows_are_an_error():
    assert "empty" in message(choice_accuracy, [])
