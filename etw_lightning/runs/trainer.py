"""``UnlearningTrainer``: Lightning's trainer, with the commands that do not train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import Trainer

from etw_lightning.catalogue.suite import metric_names
from etw_lightning.memory.check_memory import print_memory
from etw_lightning.runs.row_weights import print_weights, row_weights
from etw_lightning.training.datamodule import UnlearningDataModule
from etw_lightning.training.module import UnlearningModule

__all__ = ["LmEval", "UnlearningTrainer"]


@dataclass(frozen=True)
class LmEval:
    """What to run of lm-evaluation-harness.

    Args:
        tasks: Names of tasks or groups, or task files ending in ``.yaml``.
        num_fewshot: Examples shown first; null for each task's own number.
        limit: First rows of each task; null for all.
        apply_chat_template: Put the model's chat template around prompts.
    """

    tasks: list[str]
    num_fewshot: NonNegativeInt | None = None
    limit: PositiveInt | None = None
    apply_chat_template: bool = False


class UnlearningTrainer(Trainer):
    """Lightning's trainer, which can also evaluate a model without training it."""

    def fit(  # type: ignore[override]  # the command line gives no other path than a string
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, and evaluate epoch by epoch; given again, the command goes on where it was.

        Args:
            model: Holds the model.
            train_dataloaders: Left to ``datamodule``.
            val_dataloaders: Left to ``datamodule``.
            datamodule: Holds the rows.
            ckpt_path: Checkpoint of another run to begin from: a file, a folder of shards, a
                step's folder, or a run's, whose newest step is taken.
            weights_only: Checkpoints are read as plain values whatever this says; false is refused.
        """
        super().fit(
            model,
            train_dataloaders,
            val_dataloaders,
            datamodule,
            ckpt_path=ckpt_path,
            weights_only=weights_only,
        )

    def evaluate(
        self,
        model: UnlearningModule,
        datamodule: UnlearningDataModule,
        metrics: str | list[str] | None = None,
        gibberish_classifier: str | None = None,
        spacy_model: str | None = None,
        lm_eval: LmEval | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Score a model without training; write its records and results.json.

        Args:
            model: Holds the model.
            datamodule: Holds the rows.
            metrics: Names, separated by commas or as a list; null for the whole suite of the
                benchmark. Only what these need is scored.
            gibberish_classifier: Folder or hub name of a sequence classifier with a label
                ``clean``, that judges generations.
            spacy_model: Name or folder of a spaCy model, whose nouns and entities are compared
                with the words marked in ``data.annotations``.
            lm_eval: Tasks of lm-evaluation-harness to run too.
            ckpt_path: Of ``fit`` alone; to score a checkpoint, give it as ``model.pretrained``.
            weights_only: Of ``fit`` alone.
        """
        self.validate(model, datamodule=datamodule, verbose=False)

    def check(
        self,
        model: UnlearningModule,
        datamodule: UnlearningDataModule,
        memory_per_gpu: PositiveFloat | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Verify what fit would verify, and predict memory; train, load and write nothing.

        Args:
            model: Names the model.
            datamodule: Holds the rows.
            memory_per_gpu: GiB of one GPU; null for that of the GPU at hand, and on a CPU for
                what the run needs there.
            ckpt_path: As of ``fit``.
            weights_only: As of ``fit``.
        """
        print_memory(model, datamodule, self, memory_per_gpu)

    def weights(
        self,
        model: UnlearningModule,
        datamodule: UnlearningDataModule,
        row: NonNegativeInt = 0,
        weightings: str | list[str] | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Show how much weightings give each token of one forget row; train and write nothing.

        Args:
            model: Names the model.
            datamodule: Holds the rows.
            row: Number of the forget row, from 0.
            weightings: Names of methods, or uniform, separated by commas or as a list; null for
                the weighting of the run. One that compares with the target model takes
                data.target_model, or the model itself.
            ckpt_path: Of ``fit`` alone.
            weights_only: Of ``fit`` alone.
        """
        print_weights(row_weights(model, datamodule, self, row, metric_names(weightings) or ()))
