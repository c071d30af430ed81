"""Print docs/targets.md: what the filter reached, beside what it is to reach and beside ABL.

    python benchmarks/targets.py > docs/targets.md

Reads what benchmarks/filter.py wrote to benchmarks/results. The targets of the full size are stated first; the records
are of the size for a CPU, for which excess and CA gap may be twice as large. Means over the seeds that were run.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from attacks import read_attack
from tables import share

Row = Mapping[str, object]

RESULTS = Path(__file__).parent / "results"
RECORDS = {
    "CIFAR-10": "filter_cifar10_cpu.json",
    "GTSRB": "filter_gtsrb_cpu.json",
    "Imagenette": "filter_imagenette_cpu.json",
    "Fashion-MNIST": "filter_embedded.json",
    "CIFAR-10, unseen trigger": "filter_unseen_cpu.json",
    "Imagenette, unseen trigger": "filter_unseen_imagenette_cpu.json",
}
DEMONSTRATION = "Fashion-MNIST"
# Attacks that were made to hide from a search for clusters, by the beginnings of their names.
HIDING = ("tact", "adap-", "narcissus")
COST = 1.6
# Names of the columns whose figures have a target, and whether more is worse.
FIGURES = {"excess": True, "ca_gap": True, "recall": False, "precision": False, "fpr": True, "flagged_share": True}


@dataclass(frozen=True)
class Target:
    """What a group of rows is to reach at the size for a CPU, as shares.

    Attributes:
        title: Of the group.
        words: The targets, at the full size where that differs.
        limits: Figure to the most, or of recall and precision the least, of every row; of excess the worst.
        mean_excess: Most excess in the mean over the rows, where negative ones count as none.
    """

    title: str
    words: str
    limits: Mapping[str, float]
    mean_excess: float | None = None


IN_IMAGE = {"excess": 0.06, "ca_gap": 0.01, "recall": 0.95, "fpr": 0.005, "trainings": COST}
TARGETS = {
    "common": Target(
        "CIFAR-10, a trigger in 5 to 10 %",
        "Excess at most 0.5 in the mean and 3 in the worst row, CA gap at most 0.5 (twice that at this size), recall "
        "at least 95 %, false flags at most 0.5 %, 1.6 trainings.",
        IN_IMAGE,
        0.01,
    ),
    "rare": Target(
        "CIFAR-10, 1 % and less",
        "Excess at most 2 in the mean and 8 in the worst row, CA gap at most 0.5 (twice that at this size).",
        {"excess": 0.16, "ca_gap": 0.01, "trainings": COST},
        0.04,
    ),
    "hiding": Target(
        "Attacks that hide: TaCT, Adap-Blend, Narcissus, all-to-all",
        "Excess at most 10 (twice that at this size).",
        {"excess": 0.2, "trainings": COST},
    ),
    "clean": Target(
        "Clean data",
        'Verdict "no sign of poison", at most 0.2 % flagged, CA gap at most 0.3 (twice that at this size).',
        {"ca_gap": 0.006, "flagged_share": 0.002, "trainings": COST},
    ),
    "others": Target(
        "GTSRB and Imagenette, a trigger in 4 to 10 %",
        "As on CIFAR-10. Nothing was tuned on Imagenette; on GTSRB the alarm was chosen with one row in view.",
        IN_IMAGE,
        0.01,
    ),
    "unseen": Target(
        "Triggers that no rule was made on",
        "As on CIFAR-10, where the trigger is learned at all (see undefended).",
        IN_IMAGE,
        0.01,
    ),
    "demonstration": Target(
        "The demonstration",
        "Excess and CA gap at most 1, recall and precision at least 98 %.",
        {"excess": 0.01, "ca_gap": 0.01, "recall": 0.98, "precision": 0.98, "trainings": COST},
    ),
}

WIDTH = 120
INTRODUCTION = """
Printed by `python benchmarks/targets.py` from the records in `benchmarks/results`, which `benchmarks/filter.py` wrote;
[log.md](log.md) says what they were made with, what was not measured, and why a target was missed. 6,000 training
images of CIFAR-10 and GTSRB (20,000 for 1 %), 3,000 of Imagenette, 8,000 of Fashion-MNIST, at most 2,000 test images;
WRN-16-1, of Fashion-MNIST as well. Excess: attack success minus that of a network trained on the same images before
they were poisoned; CA gap: the clean accuracy of that network minus the filter's; both in points, the rest in %. False
flags: share of the clean images that is flagged. Trainings: images shown, in ordinary trainings. **Bold** misses the
target of a row. `n`: seeds. `undefended`, `filter` and `abl` are attack success, the last two columns clean accuracy.
""".strip()


def group_of(name: str, text: str) -> str:
    """Return which targets a row has.

    Args:
        name: Of its data set, as in ``RECORDS``.
        text: The attack, as benchmarks/filter.py takes it.
    """
    if text == "none":
        return "clean"
    if "unseen" in name:
        return "unseen"
    if name == DEMONSTRATION:
        return "demonstration"
    attack = read_attack(text)
    if attack.name.startswith(HIDING) or attack.params.get("labelling") == "all-to-all":
        return "hiding"
    if not name.startswith("CIFAR-10"):
        return "others"
    return "common" if attack.rate > 0.01 else "rare"


def missed(key: str, value: object, limits: Mapping[str, float]) -> bool:
    """Say whether a figure misses its target; one without a target, or that there is none of, does not."""
    if key not in limits or value is None:
        return False
    # Records round to four digits.
    over = float(value) - limits[key]
    return over > 1e-9 if FIGURES.get(key, True) else over < -1e-9


def marked(key: str, row: Row, limits: Mapping[str, float]) -> str:
    """Return a figure in points or %, in bold where it misses its target; trainings as they are."""
    value = row.get(key)
    if value is None:
        return "-"
    shown = f"{float(value):.2f}" if key == "trainings" else f"{100 * float(value):.1f}"
    shown = shown.replace("-0.0", "0.0") if float(shown) == 0 else shown
    return f"**{shown}**" if missed(key, value, limits) else shown


def table(rows: Sequence[tuple[str, Row, Row, Row | None]], target: Target) -> list[str]:
    """Return the table of one group, and a sentence on it.

    Args:
        rows: Name of the data set, and the rows of the filter, of no defence, and of ABL where it was run.
        target: Of the group.
    """
    keys = [key for key in (*FIGURES, "trainings") if key in target.limits]
    heads = {"excess": "excess", "ca_gap": "CA gap", "recall": "recall", "precision": "precision"}
    heads |= {"fpr": "false flags", "flagged_share": "flagged", "trainings": "trainings"}
    poisoned = "asr" in rows[0][2]
    asr = ["undefended", "filter", "abl"] if poisoned else []
    names = ["data", "attack", "n", *asr, *(heads[key] for key in keys), "verdicts", "CA of filter", "of abl"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for name, ours, none, abl in rows:
        success = [share(none, "asr"), share(ours, "asr"), share(abl or {}, "asr")] if poisoned else []
        figures = [marked(key, ours, target.limits) for key in keys]
        verdicts = [str(verdict) for verdict in ours["verdicts"]]
        said = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        accuracy = [share(ours, "ca"), share(abl or {}, "ca")]
        cells = [name, f"`{ours['row']}`", str(ours["n"]), *success, *figures, said, *accuracy]
        lines.append(f"| {' | '.join(cells)} |")
    whole = sum(not any(missed(key, ours.get(key), target.limits) for key in keys) for _, ours, _, _ in rows)
    lines += ["", f"{whole} of {len(rows)} rows reach every target of a row."]
    if target.mean_excess is not None:
        excess = [max(0.0, float(ours["excess"])) for _, ours, _, _ in rows]
        mean = fmean(excess)
        lines[-1] += (
            f" Excess is {100 * mean:.1f} in the mean ({'missed' if mean > target.mean_excess else 'reached'}: "
            f"{100 * target.mean_excess:g}) and {100 * max(excess):.1f} in the worst row."
        )
    return lines


def page(results: Path) -> str:
    """Return the page, from the records in a folder; a record that is not there is left out."""
    groups: dict[str, list[tuple[str, Row, Row, Row | None]]] = {name: [] for name in TARGETS}
    for name, file in RECORDS.items():
        path = results / file
        summary = json.loads(path.read_text(encoding="utf-8"))["summary"] if path.exists() else []
        by_cell = {(row["row"], row["defence"]): row for row in summary}
        for (text, defence), row in by_cell.items():
            if defence == "filter":
                cells = name, row, by_cell[text, "none"], by_cell.get((text, "abl"))
                groups[group_of(name, text)].append(cells)
    lines = ["# Targets and what was reached", "", textwrap.fill(INTRODUCTION, WIDTH)]
    for key, rows in groups.items():
        if rows:
            lines += [
                "",
                f"## {TARGETS[key].title}",
                "",
                textwrap.fill(TARGETS[key].words, WIDTH),
                "",
                *table(rows, TARGETS[key]),
            ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    print(page(parser.parse_args().results), end="")


if __name__ == "__main__":
    main()
