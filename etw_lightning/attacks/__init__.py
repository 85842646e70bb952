"""Attacks on a run's model: does what it forgot come back?

``interface`` says what an attack is; ``running`` scores a model before and under one, and the
retain model beside it.
"""

from etw_lightning.attacks.beginning import FirstWords
from etw_lightning.attacks.hinting import Options, SameSubject
from etw_lightning.attacks.interface import Attack, Heard, Subject
from etw_lightning.attacks.judges import LeakJudge, RougeJudge, SaidJudge
from etw_lightning.attacks.merging import Merge
from etw_lightning.attacks.mixing import Mix
from etw_lightning.attacks.pruning import Prune
from etw_lightning.attacks.quantising import Quantise
from etw_lightning.attacks.relearning import Relearn
from etw_lightning.attacks.sampling import Sample
from etw_lightning.attacks.wording import BestWording, Reword

__all__ = [
    "Attack",
    "BestWording",
    "FirstWords",
    "Heard",
    "LeakJudge",
    "Merge",
    "Mix",
    "Options",
    "Prune",
    "Quantise",
    "Relearn",
    "Reword",
    "RougeJudge",
    "SaidJudge",
    "SameSubject",
    "Sample",
    "Subject",
]
