"""Forget objectives: what pushes the forget set down."""

from etw_lightning.forget.bounded import FLAT, JensUn
from etw_lightning.forget.distributions import CEU, ME, PDU, UNDIAL
from etw_lightning.forget.interface import ForgetObjective
from etw_lightning.forget.likelihoods import GA, NPO, IdkNLL, SimNPO
from etw_lightning.forget.preferences import DPO, TPO, AltPO
from etw_lightning.forget.prefixes import PALU
from etw_lightning.forget.states import RMU

__all__ = [
    "CEU",
    "DPO",
    "FLAT",
    "GA",
    "ME",
    "NPO",
    "PALU",
    "PDU",
    "RMU",
    "TPO",
    "UNDIAL",
    "AltPO",
    "ForgetObjective",
    "IdkNLL",
    "JensUn",
    "SimNPO",
]
