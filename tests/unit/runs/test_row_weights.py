"""The weights of a row as they are shown: colours on a terminal alone, rows as they are written."""

import io

from rich.console import Console

from etw_lightning.runs.row_weights import RowWeights, print_weights

ROW = RowWeights(
    "forget/3",
    "Who [red]is[/red] it?\x1b[31m",
    ["[b]Mara[/b]", "\x1b[31m", "<|eos|>"],
    [0.5, 2.0, 1.0],
    [0.9, 0.1, 0.5],
    {"etw": [1.0, 2.0, 0.0], "imp": [0.0, 0.0, 0.0]},
    (False, True, None),
    {"etw": "ETW()", "imp": "SatImp()"},
)


def shown(**settings):
    page = io.StringIO()
    print_weights(ROW, Console(file=page, width=100, **settings))
    return page.getvalue()


def test_a_terminal_gets_colours_and_the_answer_as_text():
    page = shown(force_terminal=True, color_system="truecolor")
    assert "48;2;230;90;60" in page, "the largest weight has the full colour"
    assert page.count("48;2;255;255;255") >= 4, "no weight is white"
    assert "4;30;48;2;230;90;60" in page.replace("30;4;", "4;30;"), "marked text is underlined"
    assert "[red]is[/red]" in page
    assert "\\x1b[31m" in page
    assert "\x1b[31m" not in page


def test_a_log_gets_none():
    page = shown(force_terminal=False)
    assert "\x1b" not in page
    assert page.count("[b]Mara[/b]") == 1


def test_auc_is_of_the_marked_tokens_of_the_answer():
    assert ROW.auc([1.0, 2.0, 9.0]) == 1.0
    assert ROW.auc([2.0, 1.0, 9.0]) == 0.0
    assert ROW.auc([1.0, 1.0, 0.0]) == 0.5
    unmarked = RowWeights("f/0", None, ["a"], [1.0], [1.0], {}, (False,))
    assert unmarked.auc([1.0]) is None
