"""Attacks on a run's model: does what it forgot come back?

``interface`` says what an attack is; ``running`` scores a model before and under one, and the
retain model beside it.
"""

from etw_lightning.attacks.interface import Attack, Subject
from etw_lightning.attacks.merging import Merge
from etw_lightning.attacks.pruning import Prune

__all__ = ["Attack", "Merge", "Prune", "Subject"]
