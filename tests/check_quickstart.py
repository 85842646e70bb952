"""Check what the quickstart promises, from the results it wrote."""

import json
import sys
from pathlib import Path

#: Least and most of what five seeds showed, with room for other processors and numbers of threads:
#: a single forget quality moves by steps of D*n, and the two small models in their last digits.
RANGES = {
    "target model's FQ": (0.0, 1e-3),
    "FQ": (0.05, 1.0),
    "points of utility": (-5.0, 5.0),
    "forget answers' repetition": (0.0, 0.05),
    "retain answers' repetition": (0.0, 0.05),
    # Second answers name the person, so that names stay known: what README says of the method.
    "privleak": (-100.0, -50.0),
}

SETS = ("forget", "retain")


def measured(models):
    """Return what is promised, from the judgement's models.

    Args:
        models: Name of a model to its numbers.
    """
    target, after, retain = (models[name] for name in ("target", "unlearned", "retain"))
    more = {name: after[f"{name}_repetition"] - retain[f"{name}_repetition"] for name in SETS}
    return {
        "target model's FQ": target["forget_quality"],
        "FQ": after["forget_quality"],
        "points of utility": 100 * (after["model_utility"] - target["model_utility"]),
        **{f"{name} answers' repetition": max(value, 0.0) for name, value in more.items()},
        "privleak": after["privleak"],
    }


def main(folder: str) -> int:
    paths = sorted(Path(folder).glob("*/results.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        sys.stderr.write(f"no results.json under {folder}\n")
        return 1
    results = json.loads(paths[-1].read_text(encoding="utf-8"))
    found = measured(results["judgement"]["models"])
    broken = [name for name, (low, high) in RANGES.items() if not low <= found[name] <= high]
    for name, (low, high) in RANGES.items():
        sign = "NO" if name in broken else "ok"
        sys.stdout.write(f"{sign}  {name}: {found[name]:.4g}, promised {low:g} to {high:g}\n")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
