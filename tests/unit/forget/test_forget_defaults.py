"""What objectives take where nothing is said: the published numbers."""

from toy import defaults_of

from etw_lightning import forget, retain

FORGET = {
    "AltPO": {"beta": 0.1},
    "CEU": {"skip_first": 1},
    "DPO": {"beta": 0.1},
    "FLAT": {"divergence": "total_variation"},
    "GA": {},
    "IdkNLL": {},
    "JensUn": {},
    "ME": {},
    "NPO": {"beta": 0.1},
    "PALU": {"top_k": 1, "first_n": None, "preservation": 1.0, "chosen": "marked"},
    "PDU": {},
    "RMU": {"layer": 7, "steering_coefficient": 20.0, "seed": 0},
    "SimNPO": {"beta": 4.5, "delta": 0.0},
    "TPO": {"beta": 0.19, "preservation": 1.0},
    "UNDIAL": {"strength": 10.0},
}


def test_each_objective_has_its_published_defaults():
    assert defaults_of(forget) == FORGET
    assert defaults_of(retain) == {
        "EmbedDiff": {"layer": 7},
        "JS": {},
        "KL": {"positions": "labels"},
        "NLL": {},
    }
