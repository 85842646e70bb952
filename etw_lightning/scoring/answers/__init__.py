"""Answers of an evaluation set: laid out in rows, put into batches, and what a model says of them.

All answers of an example go into one row, which feeds what they begin with once.
"""

from etw_lightning.scoring.answers.batches import answer_batches
from etw_lightning.scoring.answers.gradients import gradient_batches, score_gradients
from etw_lightning.scoring.answers.losses import score_answers
from etw_lightning.scoring.answers.rows import answers_of, hidden_id, kept_answers, lay_out

__all__ = [
    "answer_batches",
    "answers_of",
    "gradient_batches",
    "hidden_id",
    "kept_answers",
    "lay_out",
    "score_answers",
    "score_gradients",
]
