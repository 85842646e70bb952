"""Token weightings: how much of the forget term each labelled token carries.

A weighting gets the signals of the forget rows and returns one weight a token, detached.
"""

from etw_lightning.weighting.combined import Mixture, Product, Random
from etw_lightning.weighting.entropy import ETW, Uniform
from etw_lightning.weighting.interface import TokenWeighting
from etw_lightning.weighting.learned import ATWU
from etw_lightning.weighting.masks import Annotated, Spacy
from etw_lightning.weighting.probability import TNPO, WGA, WTNPO, SatImp, Surprisal

__all__ = [
    "ATWU",
    "ETW",
    "TNPO",
    "WGA",
    "WTNPO",
    "Annotated",
    "Mixture",
    "Product",
    "Random",
    "SatImp",
    "Spacy",
    "Surprisal",
    "TokenWeighting",
    "Uniform",
]
