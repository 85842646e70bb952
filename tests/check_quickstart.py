"""Check what the quickstart promises, from the results it wrote."""

import json
import sys
from pathlib import Path

#: One seed's forget quality differs between processors and numbers of threads, of forty rows by
#: steps of D*n: .054 at 12 of 40, .014 at 14. Above .05 is what the median of seeds shows.
LIMITS = {"target FQ": 1e-3, "unlearned FQ": 0.01, "utility drop": 0.05}


def main(folder: str) -> int:
    paths = sorted(Path(folder).glob("*/results.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        sys.stderr.write(f"no results.json under {folder}\n")
        return 1
    results = json.loads(paths[-1].read_text(encoding="utf-8"))
    target, unlearned = results["table"]["target"], results["table"]["unlearned"]
    drop = target["model_utility"] - unlearned["model_utility"]
    holds = {
        "target FQ": target["forget_quality"] < LIMITS["target FQ"],
        "unlearned FQ": unlearned["forget_quality"] > LIMITS["unlearned FQ"],
        "utility drop": drop < LIMITS["utility drop"],
    }
    sys.stdout.write(f"quickstart promises: {holds}\n")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
