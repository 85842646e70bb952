"""``configs`` lists what is shipped: whole lines for a pipe, broken between words for a person."""

import sys

from etw_lightning.commands.configs import configs
from etw_lightning.files.config_files import about, shipped


def test_in_a_terminal_descriptions_stay_beside_their_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert configs([]) == 0
    piped = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in piped] == list(shipped())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert configs([]) == 0
    shown = capsys.readouterr().out.splitlines()
    column = piped[0].index(about(shipped()[piped[0].split()[0]]))
    assert len(shown) > len(piped)
    assert max(map(len, shown)) <= 80
    assert all(line[:column].strip() in ("", *shipped()) for line in shown)
    assert " ".join(" ".join(shown).split()) == " ".join(" ".join(piped).split())
