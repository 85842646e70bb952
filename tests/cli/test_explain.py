"""``explain``: the page of a metric, or of a number of ``results.json``."""


def test_explain_prints_the_page(command):
    result = command("explain", "forget_quality")
    assert result.status == 0
    assert result.out.startswith("forget_quality\n")
    assert "Formula:" in result.out
    result = command("explain", "forget_qualty")
    assert result.status == 2
    assert "Did you mean 'forget_quality'?" in result.err
    assert command("explain").err.startswith("error: explain must be given the name of a metric")


def test_explain_lists_its_names_and_takes_a_number_without_its_set(command):
    result = command("explain", "--help")
    assert (result.status, result.err) == (0, "")
    assert "forget_quality" in result.out
    assert "A number of rouge." in command("explain", "rougeL_recall").out
