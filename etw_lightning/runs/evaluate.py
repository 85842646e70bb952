"""``evaluate``: scores a model without training, once, and writes its records and numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from etw_lightning.catalogue.entries import Part
from etw_lightning.judging.judgement import Judgement, judge, print_judgement
from etw_lightning.metrics import Metric
from etw_lightning.notices import for_screen
from etw_lightning.runs.results import (
    MUSE_SETS,
    left_out_line,
    model_row,
    precision_lines,
    print_metrics,
    write_results,
)
from etw_lightning.schema import InputError, Record
from etw_lightning.scoring.batches import make_records
from etw_lightning.scoring.cache.journals import known_scores
from etw_lightning.scoring.parts import parts_of, with_parts
from etw_lightning.scoring.provenance import generating
from etw_lightning.scoring.retain_results import (
    differing,
    load_provenance,
    load_set,
    made_of,
    save_provenance,
    save_records,
    write_atomically,
    write_lines,
)
from etw_lightning.training.datamodule import Role, UnlearningDataModule

__all__ = ["WORST_ROWS", "Evaluation", "sources"]

_KEY = "output_dir"
#: Page of the rows that went worst.
WORST_ROWS = "worst_rows.md"
#: What the evaluated model is called in its judgement.
THIS = "this model"


def sources(data: UnlearningDataModule) -> dict[str, Any]:
    """Return where the records of the retain and the target model come from."""
    roles: tuple[Role, ...] = ("retain", "target")
    return {
        f"{role}_results": data.results[role].source if role in data.results else None
        for role in roles
    }


def _fields_of(record: Record, parts: Collection[str]) -> dict[str, Any]:
    """Return the fields that some parts of a set fill; those that name the row go with them."""
    alone = {"generation", "gradient_norm"}
    return {
        name: value
        for name, value in record.to_json().items()
        if (name if name in alone else "answers") in parts
    }


class Evaluation:
    """What one evaluation leaves in its folder.

    Args:
        folder: The folder.
        provenance: What the records are made with.
        data: With the evaluation sets.
    """

    def __init__(
        self, folder: Path, provenance: Mapping[str, Any], data: UnlearningDataModule
    ) -> None:
        self.folder, self.data = folder, data
        split = {"benchmark": data.benchmark_name, "forget_split": data.forget_split}
        self.provenance = {**provenance, "data": split}

    def check_folder(self) -> None:
        """Refuse a folder with records of another model or other rows, or made in another way."""
        try:
            then = load_provenance(self.folder, _KEY)
        except InputError:
            place = self.folder / "records" / "provenance.json"
            sys.stdout.write(f"warning: {place} was cut; it is written anew\n")
            then = self._provenance_then()
        for key, what in (
            ("model", "another model"),
            ("conventions", "other conventions"),
            ("template", "another template"),
            ("dtype", "weights of another precision"),
            ("precision", "another trainer.precision"),
        ):
            mine, theirs = self.provenance[key], then.get(key)
            if key == "model" and theirs is not None:
                mine, theirs = mine["hash"], theirs.get("hash")
            if then and mine != theirs:
                raise self._holds(what)
        mine, theirs = _words_of(self.provenance), _words_of(then)
        if then and mine != theirs:
            raise self._holds(f"data.rouge_tokenizer {theirs!r}, this run has {mine!r}")
        for key, mine in self.provenance["data"].items():
            theirs = then.get("data", {}).get(key, mine)
            if mine != theirs:
                raise self._holds(f"data.{key} {theirs!r}, this run has {mine!r}")
        for name, held in then.get("sets", {}).items():
            scored = self.provenance["sets"].get(name)
            if scored is not None and held.get("hash") not in (None, scored["hash"]):
                raise self._holds(f"other rows of {name!r}")

    def _holds(self, what: str) -> InputError:
        return InputError(
            f"{_KEY} {str(self.folder)!r} holds records of {what}; give another folder, or "
            "--overwrite to replace them."
        )

    def _results_then(self) -> dict[str, Any]:
        """Return the folder's ``results.json``; empty if there is none or a cut one."""
        path = self.folder / "results.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _provenance_then(self) -> dict[str, Any]:
        """Return what the folder's records were made with; if that was cut, what results say."""
        try:
            return load_provenance(self.folder, _KEY)
        except InputError:
            return dict(self._results_then().get("provenance", {}))

    def _earlier(self, now: Mapping[str, Any]) -> dict[str, Any]:
        """Return the folder's results if they stand beside this run's; else nothing.

        They do if model, rows, settings and the other models are the same. A retain or target
        model that one of both did not need is no difference.
        """
        then = self._results_then()
        if then.get("command") != "evaluate" or not then.get("finished"):
            return {}
        # As it looks when it is read again.
        now = json.loads(json.dumps(now))
        if any(then.get(key) != now[key] for key in ("conventions", "seed")):
            return {}
        roles = [key for key in sources(self.data) if None not in (then.get(key), now[key])]
        if any(then[key] != now[key] for key in roles):
            return {}
        made, mine = then.get("provenance", {}), now["provenance"]
        keys = ("conventions", "template", "dtype", "precision", "data")
        if any(made.get(key) != mine[key] for key in keys) or _words_of(made) != _words_of(mine):
            return {}
        if made.get("model", {}).get("hash") != mine["model"]["hash"]:
            return {}
        for name, held in made.get("sets", {}).items():
            if name not in mine["sets"]:
                continue
            if held.get("hash") != mine["sets"][name]["hash"]:
                return {}
            before = made_of(made, name).get("generation", {})
            if differing(before, generating(self.data.offered(name))):
                return {}
        return then

    def _merged(self, now: dict[str, Any]) -> dict[str, Any]:
        """Return this run's results with what the folder's hold besides; new values win."""
        then = self._earlier(now)
        if not then:
            return now
        merged = {**now, "provenance": self._provenance_then()}
        for key in ("metrics", "left_out", "histograms"):
            merged[key] = {**then.get(key, {}), **now.get(key, {})}
        merged["left_out"] = {
            name: reason
            for name, reason in merged["left_out"].items()
            if name not in merged["metrics"]
        }
        merged["others"] = {
            label: {**then.get("others", {}).get(label, {}), **now["others"].get(label, {})}
            for label in {**then.get("others", {}), **now["others"]}
        }
        for key in sources(self.data):
            merged[key] = then.get(key) if now[key] is None else now[key]
        return merged

    def save(self, records: Mapping[str, Sequence[Record]]) -> None:
        """Write records and what they are made with; what the folder holds of other parts stays.

        Generations that were made with other settings than this run's don't stay.
        """
        then = self._provenance_then()
        sets = {
            name: {**held, "made": made_of(then, name)}
            for name, held in then.get("sets", {}).items()
        }
        written: dict[str, Sequence[Record]] = {}
        for name, rows in records.items():
            mine = self.provenance["sets"][name]
            same_rows = sets.get(name, {}).get("hash") == mine["hash"]
            before = self._before(name) if same_rows else None
            stays = self._staying(name, sets[name]["made"]) if before else {}
            made = {**stays, **mine["made"]}
            sets[name] = {**mine, "parts": sorted(made), "made": made}
            written[name] = rows
            if before:
                others = set(stays) - set(mine["parts"])
                pairs = zip(before, rows, strict=True)
                written[name] = [
                    Record.from_json(_fields_of(old, others) | new.to_json()) for old, new in pairs
                ]
        save_records(self.folder, written)
        save_provenance(self.folder, {**self.provenance, "sets": sets})

    def _staying(self, name: str, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parts of a set in the folder, without generations made in another way."""
        said = differing(made.get("generation", {}), generating(self.data.offered(name)))
        if not said:
            return dict(made)
        sys.stdout.write(
            f"{name}: generations in {self.folder} were made with {said}; they are dropped\n"
        )
        return {part: how for part, how in made.items() if part != "generation"}

    def save_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows that are no records beside them, ``{name}.jsonl.gz``."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        write_lines(self.folder / f"{name}.jsonl.gz", lines)

    def _before(self, name: str) -> list[Record] | None:
        """Return the records of a set that the folder holds; None if there are none or cut ones."""
        path = self.folder / "records" / f"{name}.jsonl.gz"
        if not path.is_file():
            return None
        try:
            found = load_set(path, _KEY)
        except InputError:
            found = []
        if len(found) != len(self.data.eval_sets[name].examples):
            sys.stdout.write(f"{name}: {path} was cut; it is written anew\n")
            return None
        return found

    def save_finished(self, keys: Mapping[tuple[str, Part], str]) -> list[str]:
        """Write the sets that were scored whole before the evaluation ended early.

        Args:
            keys: Where the scores are kept.

        Returns:
            Names of the sets.
        """
        finished = {}
        for name, eval_set in self.data.eval_sets.items():
            parts = [
                known_scores(keys[name, part], with_parts(eval_set, [part]))
                for part in parts_of(eval_set)
            ]
            if not any(part.pending for part in parts):
                scores = (score for part in parts for score in part.scores)
                finished[name] = make_records(eval_set, scores)
        if finished:
            self.save(finished)
        return list(finished)

    def judged(self, records: Mapping[str, Sequence[Record]]) -> Judgement | None:
        """Return the judgement of the model; None of a benchmark that has no such numbers.

        Args:
            records: What the model said, by set.
        """
        data, words = self.data, self.data.rouge_tokenizer
        if data.family == "choice":
            return None
        held = {role: found.records for role, found in data.results.items()}
        retain = {n: data.retain_records(n) for n in records if n in held.get("retain", ())}
        target = {n: data.target_records(n) for n in records if n in held.get("target", ())}
        sets = {"target": target, THIS: records, "retain": retain}
        given = {label: one for label, one in sets.items() if one}
        is_muse = any(name in records for name in MUSE_SETS)
        rows = {
            label: model_row(one, retain, is_muse=is_muse, is_own=data.is_own, words=words)
            for label, one in given.items()
        }
        return judge(given, THIS, rows, words=words, conventions=data.conventions)

    def write(
        self,
        metrics: Mapping[str, Metric],
        left_out: Mapping[str, str],
        others: Mapping[str, Mapping[str, Metric]],
        further: Mapping[str, Any],
        judged: Judgement | None = None,
    ) -> None:
        """Write ``results.json`` and print the table.

        Numbers that the folder holds of the same model, rows and settings stay in the file.

        Args:
            metrics: The numbers, by name.
            left_out: Metrics of the suite that could not be had, with the reason.
            others: What the target and the retain model have of them.
            further: What else is to stand in the file.
            judged: The model's judgement, if there is one.
        """
        write_results(
            self.folder / "results.json",
            self._merged(
                {
                    "finished": True,
                    "command": "evaluate",
                    "metrics": {name: asdict(metric) for name, metric in metrics.items()},
                    "left_out": dict(left_out),
                    "others": {
                        label: {name: asdict(metric) for name, metric in found.items()}
                        for label, found in others.items()
                    },
                    **sources(self.data),
                    "provenance": self.provenance,
                    "conventions": asdict(self.data.conventions),
                    **({"judgement": judged.to_json()} if judged is not None else {}),
                    **further,
                }
            ),
        )
        name = Path(cast(str, self.provenance["model"]["name"])).name
        # A folder may be called as a role is.
        name = f"{name} (this)" if name in others else name
        # Of own rows the other models have the same numbers, which are to stand beside these.
        sides = () if others and self.data.is_own else self.data.offered_sets
        print_metrics({name: metrics, **others}, sides)
        if judged is not None:
            print_judgement(judged)
            page = judged.page()
            if page:
                write_atomically(self.folder / WORST_ROWS, page.encode("utf-8"))
                sys.stdout.write(f"worst rows: {self.folder / WORST_ROWS}\n")
        for line in precision_lines(self.data.precision_of_others):
            sys.stdout.write(f"{line}\n")
        if left_out:
            sys.stdout.write(f"{for_screen(left_out_line(left_out))}\n")
        sys.stdout.write(f"results: {self.folder / 'results.json'}\n")


def _words_of(provenance: Mapping[str, Any]) -> str:
    """Return whose words the numbers of texts are made of; older results know one rule only."""
    return str(provenance.get("rouge_tokenizer", "published"))
