"""A callback's numbers and those of the meters are one: both ask the same function."""

import pytest
from meter_cases import rows_of, said_by

from etw_lightning import callbacks, meters
from etw_lightning.catalogue.entries import Given
from etw_lightning.schema import Conventions

SETS = {
    "forget": 7,
    "retain": 9,
    "real_authors": 5,
    "world_facts": 6,
    "verbmem": 7,
    "knowmem_forget": 6,
    "knowmem_retain": 8,
    "privleak_forget": 9,
    "privleak_holdout": 7,
}
RUN = {name: rows_of(name, size, 3) for name, size in SETS.items()}
RETAIN = {name: said_by(rows, 4) for name, rows in RUN.items()}
UTILITY = [*RUN["retain"], *RUN["real_authors"], *RUN["world_facts"]]
PEER = Conventions.peer()

#: A callback; each meter, what it is fed with, and the name of the callback's number.
CASES = {
    "ForgetQuality": {
        "forget_quality": (meters.ForgetQuality(), (RUN["forget"], RETAIN["forget"])),
        "forget_d_times_n": (meters.ForgetQuality("d_times_n"), (RUN["forget"], RETAIN["forget"])),
        "neg_log10_forget_quality": (
            meters.ForgetQuality("neg_log10"),
            (RUN["forget"], RETAIN["forget"]),
        ),
        "forget_probability": (meters.Probability(), (RUN["forget"],)),
        "forget_rougeL_recall": (meters.Rouge("rougeL_recall"), (RUN["forget"],)),
        "forget_truth_ratio_closer_to_one": (meters.TruthRatio(), (RUN["forget"],)),
    },
    "ModelUtility": {
        "model_utility": (meters.ModelUtility(), (UTILITY,)),
        "model_utility_world_facts_rouge": (
            meters.ModelUtility("world_facts_rouge"),
            (UTILITY,),
        ),
    },
    "Muse": {
        "verbmem": (meters.VerbMem(PEER), (RUN["verbmem"],)),
        "knowmem_forget": (meters.KnowMem(), (RUN["knowmem_forget"],)),
        "knowmem_retain": (meters.KnowMem(), (RUN["knowmem_retain"],)),
    },
    "PrivLeak": {
        "privleak": (
            meters.PrivLeak(conventions=PEER),
            tuple(of[f"privleak_{side}"] for of in (RUN, RETAIN) for side in ("forget", "holdout")),
        ),
    },
    "SetScores": {
        "retain_probability": (meters.Probability(), (RUN["retain"],)),
        "retain_rougeL_recall": (meters.Rouge("rougeL_recall"), (RUN["retain"],)),
        "retain_truth_ratio_true_better": (meters.TruthRatio("true_better"), (RUN["retain"],)),
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_callback_gives_what_meters_give(name):
    callback = getattr(callbacks, name)()
    given = Given(
        records={one: RUN[one] for one in callback.needs},
        retain={one: RETAIN[one] for one in callback.retain_needs},
        conventions=PEER if name in ("Muse", "PrivLeak") else Conventions(),
    )
    found = callback.compute(given)
    for number, (meter, rows) in CASES[name].items():
        meter.update(*rows)
        assert float(meter.compute()) == found[number].value, number
