"""Parts of an evaluation set, apart from one another."""

from dataclasses import replace

import pytest

from etw_lightning.schema import EvalSet, Example
from etw_lightning.scoring.parts import PARTS, parts_of, with_parts
from etw_lightning.scoring.scores import TOKEN_FIELDS, expected_scores

EXAMPLE = Example(
    "s/0", "a", "q", paraphrased_answer="b", perturbed_answers=("c", "d"), choices=("e", "f", "g")
)
WHOLE = EvalSet("s", (EXAMPLE,), gradient_norm=True, max_new_tokens=4, stop_strings=("x",))
ALONE = {
    "answers": replace(WHOLE, gradient_norm=False, max_new_tokens=0, stop_strings=()),
    "generation": replace(WHOLE, losses=False, gradient_norm=False),
    "gradient_norm": replace(WHOLE, losses=False, max_new_tokens=0, stop_strings=()),
}
FIELDS = {
    "answers": [
        *[(name, 0) for name in ("answer_loss", *TOKEN_FIELDS, "token_spans", "paraphrase_loss")],
        ("perturbed_losses", 0),
        ("perturbed_losses", 1),
        *[("choice_logps", place) for place in range(3)],
        *[("choice_num_tokens", place) for place in range(3)],
    ],
    "generation": [("generation", 0)],
    "gradient_norm": [("gradient_norm", 0)],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_the_set_with_all_else_off(part):
    assert with_parts(WHOLE, [part]) == ALONE[part]
    assert parts_of(ALONE[part]) == (part,)
    assert expected_scores(ALONE[part], EXAMPLE) == FIELDS[part]


@pytest.mark.parametrize(("count", "is_asked"), [(0, False), (1, True)])
def test_one_new_token_is_a_generation(count, is_asked):
    assert ("generation" in parts_of(replace(WHOLE, max_new_tokens=count))) == is_asked


def test_all_parts_are_the_whole():
    assert with_parts(WHOLE, PARTS) == WHOLE
    assert parts_of(WHOLE) == PARTS
    assert with_parts(ALONE["generation"], PARTS) == replace(WHOLE, losses=False)
    plain = replace(EXAMPLE, paraphrased_answer=None, perturbed_answers=(), choices=())
    assert expected_scores(ALONE["answers"], plain) == FIELDS["answers"][:6]
