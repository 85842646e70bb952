"""What all meters share: rows as they may be given, and values that are gathered without loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from etw_lightning.metrics.values import Floats, mean_of
from etw_lightning.schema import Conventions, InputError, Record

__all__ = [
    "ConventionMeter",
    "MeanMeter",
    "Meter",
    "RecordMeter",
    "Rows",
    "as_lists",
    "as_records",
    "row_values",
]

#: Rows as ``update`` takes them: records; or a mapping of record fields to tensors or lists, as
#: ``as_records`` reads it; or a tensor ``(B,)`` of what the meter reads of each row.
Rows = Sequence[Record] | Mapping[str, Any] | Tensor

_DEFINITIONS = Conventions()
#: Fields of ``Record`` that a mapping may give.
_FIELDS = tuple(one.name for one in fields(Record))


class Meter(torchmetrics.Metric):
    """A number of this package as a ``torchmetrics.Metric``.

    ``update`` keeps what the pure function reads of each row, ``compute`` calls that function on
    the rows of all updates and processes, so the value is the function's, whoever saw which row.
    Values are kept as the 64 bits of a float64: neither a precision plugin nor ``half()`` rounds
    them, and a device needs no float64. An update without rows adds nothing.

    States are named after the class and its settings. ``torchmetrics.MetricCollection`` takes
    metrics whose states have the same names and nearly the same values after the first update for
    one, and updates only one of them from then on.

    Calling a meter, as ``meter(rows)``, also computes the number of those rows alone; call
    ``update`` where they may not have one, such as rows of one side of an AUC.

    Args:
        columns: Names of what is kept, each ``(N,)``.
        settings: What tells this meter from others of its class.
        options: Of ``torchmetrics.Metric``, such as ``dist_sync_on_step``.
    """

    full_state_update = False
    is_differentiable = False
    #: Columns of bytes, not of numbers.
    byte_columns: tuple[str, ...] = ()

    def __init__(
        self, columns: Sequence[str], settings: Sequence[Any] = (), **options: Any
    ) -> None:
        super().__init__(**options)
        own = " ".join(map(str, (type(self).__name__, *settings)))
        self._states = {name: f"{own}: {name}".replace(".", "_") for name in columns}
        for state in self._states.values():
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def number(self) -> float:
        """Return the number of all rows that ``held`` gives."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Return the number over all updates and processes, a float64 scalar.

        Raises:
            InputError: If there are no rows, or whatever else the function refuses.
        """
        # What has no float64 shows the number in float32; it is computed in float64 all the same.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        try:
            return torch.tensor(self.number(), dtype=dtype, device=self.device)
        except InputError:
            # torchmetrics gives a process its own rows back only where all goes well.
            if self._is_synced:
                self.unsync()
            raise

    def add(self, **columns: Sequence[float] | Floats | bytes) -> None:
        """Keep further values of columns; nothing is kept unless all can be."""
        bits = {
            name: torch.frombuffer(bytearray(values), dtype=torch.uint8)
            if isinstance(values, bytes)
            else torch.from_numpy(np.array(values, dtype=np.float64).view(np.int64))
            for name, values in columns.items()
            if len(values)
        }
        for name, tensor in bits.items():
            getattr(self, self._states[name]).append(tensor.to(self.device))

    def held(self, name: str) -> Floats:
        """Return the values of a column, ``(N,)``."""
        return self._bits(name).numpy().view(np.float64)

    def held_bytes(self, name: str) -> bytes:
        """Return the bytes of a column."""
        return self._bits(name).numpy().tobytes()

    def set_dtype(self, dst_type: str | torch.dtype) -> Meter:
        """Leave the values as they are: a metric of this package is computed in float64."""
        return self

    def _bits(self, name: str) -> Tensor:
        state = getattr(self, self._states[name])
        if isinstance(state, Tensor):
            return state.cpu()
        return torch.cat(state).cpu() if state else self._nothing(name, "cpu")

    def _nothing(self, name: str, device: str | torch.device) -> Tensor:
        dtype = torch.uint8 if name in self.byte_columns else torch.int64
        return torch.empty(0, dtype=dtype, device=device)

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., Any] = gather_all_tensors,
        process_group: Any | None = None,
    ) -> None:
        """Gather; a process without rows gives none of the kind the others give.

        torchmetrics would put an empty float32 in their place, and kinds must not be mixed.
        """
        for name, state in self._states.items():
            if isinstance(getattr(self, state), list) and not getattr(self, state):
                setattr(self, state, [self._nothing(name, self.device)])
        super()._sync_dist(dist_sync_fn, process_group)


class MeanMeter(Meter):
    """The mean of one value a row.

    Args:
        settings: What tells this meter from others of its class.
        options: Of ``torchmetrics.Metric``.
    """

    def __init__(self, settings: Sequence[Any] = (), **options: Any) -> None:
        super().__init__(("values",), settings, **options)

    def values(self, records: Sequence[Record]) -> Any:
        """Return the value of each row, ``(B,)``."""
        raise NotImplementedError

    def update(self, rows: Rows) -> None:
        """Take further rows.

        Args:
            rows: Records, their fields, or a tensor ``(B,)`` of the values that are averaged.

        Raises:
            InputError: If a row lacks what is read, or a value is not finite.
        """
        self.add(values=row_values(rows, self.values, type(self).__name__))

    def number(self) -> float:
        """Return the mean."""
        return mean_of(self.held("values"))


class ConventionMeter(MeanMeter):
    """A mean that depends on how the definition is read.

    Args:
        conventions: The choices; the definitions' by default.
        settings: What else tells this meter from others of its class.
        options: Of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    def __init__(
        self,
        conventions: Conventions = _DEFINITIONS,
        settings: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__((conventions, *settings), **options)
        self.conventions = conventions


class RecordMeter(Meter):
    """A number that needs whole records, such as texts; they are kept as JSON lines.

    Args:
        roles: Whose records are kept: ``run``, and ``retain`` or ``target``.
        settings: What tells this meter from others of its class.
        options: Of ``torchmetrics.Metric``.
    """

    def __init__(
        self,
        roles: Sequence[str] = ("run",),
        settings: Sequence[Any] = (),
        *,
        columns: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__((*roles, *columns), settings, **options)
        self.byte_columns = tuple(roles)

    def lines(self, records: Sequence[Record]) -> bytes:
        """Return records as ``add`` keeps them."""
        return "".join(json.dumps(one.to_json()) + "\n" for one in records).encode()

    def records(self, role: str = "run") -> list[Record]:
        """Return all records of a role, in the order of processes and updates."""
        lines = self.held_bytes(role).splitlines()
        return [Record.from_json(json.loads(line)) for line in lines]


def as_records(rows: Sequence[Record] | Mapping[str, Any]) -> list[Record]:
    """Return rows as records.

    A mapping gives fields of ``Record`` by name, each a tensor or a list with one entry a row:
    ``answer_loss`` ``(B,)``, ``perturbed_losses`` ``(B, W)``, ``generation`` texts. Fields of
    tokens (``token_logps`` and its like) are a list of ``(N,)``, or ``(B, T)`` with ``mask``
    beside them, ``(B, T)``, true at the labelled tokens. ``dataset`` names the set, ``rows``
    without it.

    Raises:
        InputError: If there is no such field, or fields have different numbers of rows.

    Example:
        >>> given = {"token_matches": torch.tensor([[1, 0, 9]]), "mask": torch.tensor([[1, 1, 0]])}
        >>> as_records(given)[0].token_matches
        (1, 0)
    """
    if not isinstance(rows, Mapping):
        return list(rows)
    given = dict(rows)
    mask = given.pop("mask", None)
    dataset = given.pop("dataset", "rows")
    unknown = [name for name in given if name not in _FIELDS]
    if unknown or not given:
        raise InputError(
            f"rows: must map fields of a record to values, some of {', '.join(_FIELDS)}; "
            f"got {', '.join(unknown) or 'none'}."
        )
    columns = {
        name: as_lists(values, mask if name.startswith("token_") else None)
        for name, values in given.items()
    }
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) != 1:
        said = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise InputError(f"rows: each field must have one entry a row; got {said}.")
    records = []
    for row in range(next(iter(sizes.values()))):
        found = {name: _frozen(values[row]) for name, values in columns.items()}
        records.append(
            Record(**{"dataset": dataset, "id": f"{dataset}/{row}", "answer": ""} | found)
        )
    return records


def as_lists(values: Any, mask: Any | None = None) -> list[Any]:
    """Return a tensor, or a list of tensors, as lists of numbers; what a mask leaves out is gone.

    Args:
        values: One entry a row: a number, a text, numbers.
        mask: True where a number counts, of the shape of ``values``.

    Raises:
        InputError: If values and mask have other shapes.

    Example:
        >>> as_lists(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]))
        [[1.0]]
    """
    rows = [_plain(one) for one in values]
    if mask is None:
        return rows
    kept = [_plain(one) for one in mask]
    if [len(row) for row in rows] != [len(row) for row in kept]:
        raise InputError("rows: mask must have the shape of the fields of tokens.")
    return [
        [value for value, counts in zip(row, flags, strict=True) if counts]
        for row, flags in zip(rows, kept, strict=True)
    ]


def row_values(rows: Rows, values: Callable[[Sequence[Record]], Any], what: str) -> Floats:
    """Return what a meter reads of each row, ``(B,)``; none of no rows.

    Args:
        rows: Records, their fields, or a tensor of the values themselves.
        values: Reads records.
        what: Names the values of a tensor, for errors.

    Raises:
        InputError: If a value of a tensor is not finite, or there is not one a row.

    Example:
        >>> row_values(torch.tensor([0.25]), len, "share").tolist()
        [0.25]
    """
    if isinstance(rows, Tensor):
        found = rows.detach().cpu().double().numpy()
        if found.ndim != 1:
            raise InputError(f"{what}: a tensor must hold one value a row, got {found.shape}.")
        if not np.isfinite(found).all():
            bad = int(np.flatnonzero(~np.isfinite(found))[0])
            raise InputError(f"{what}: row {bad} must be finite, got {found[bad]}.")
        return found
    records = as_records(rows)
    return np.asarray(values(records), dtype=np.float64) if records else np.empty(0)


def _plain(value: Any) -> Any:
    return value.detach().cpu().tolist() if isinstance(value, Tensor) else value


def _frozen(value: Any) -> Any:
    """Return lists as tuples: records hold nothing that can be changed."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
