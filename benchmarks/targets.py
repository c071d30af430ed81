"""Print docs/targets.md: what the default defence reached, beside what it is to reach and beside ABL.

    python benchmarks/targets.py > docs/targets.md

Reads what benchmarks/defences.py and the paper's grid wrote to benchmarks/results; a group without a record has its
targets alone. The records are of the size for a CPU, for which excess and CA gap may be twice as large as at the full
size.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from attacks import read_attack
from defences import summarise
from record import kept_cells, of_now
from tables import counted, named, share

from antibackdoor.attacks import ATTACKS
from antibackdoor.config import DEFAULT_DEFENCE

Row = Mapping[str, Any]

RESULTS = Path(__file__).parent / "results"
# Records of benchmarks/defences.py, and folders of cells of `antibackdoor bench`.
RECORDS = {
    "CIFAR-10": "defences_cifar10_cpu.json",
    "CIFAR-10, the paper's table": "paper_cpu/cells",
    "GTSRB": "defences_gtsrb_cpu.json",
    "Imagenette": "defences_imagenette_cpu.json",
    "Fashion-MNIST": "defences_embedded.json",
}
DEMONSTRATION = "Fashion-MNIST"
# Attacks that were made to hide from a search for clusters, by the beginnings of their names.
HIDING = ("tact", "adap-", "narcissus")
# Processor time, over that of ordinary training: of clean images, where the look is all that is added, and of poisoned.
COST, COST_OF_POISON = 1.6, 2.2
CLEAN_VERDICT = "no sign of poison"
# Columns whose figures have a target, with their heads, and those of which more is better.
FIGURES = {
    "excess": "excess",
    "ca_gap": "CA gap",
    "recall": "recall",
    "precision": "precision",
    "fpr": "false flags",
    "flagged_share": "flagged",
    "cost": "cost",
}
BETTER = ("recall", "precision")


@dataclass(frozen=True)
class Target:
    """What a group of rows is to reach at the size for a CPU, as shares.

    Attributes:
        title: Of the group.
        words: The targets.
        limits: Figure to the most, or of recall and precision the least, of every row; of excess the worst.
        mean_excess: Most excess in the mean over the rows, where negative ones count as none.
        shown: Figures without a target that are shown too.
    """

    title: str
    words: str
    limits: Mapping[str, float]
    mean_excess: float | None = None
    shown: tuple[str, ...] = ()


IN_IMAGE = {"excess": 0.06, "ca_gap": 0.01, "recall": 0.95, "fpr": 0.005, "cost": COST_OF_POISON}
TARGETS = {
    "common": Target(
        "CIFAR-10, a trigger in 5 to 10 %",
        "Excess at most 1.0 in the mean and 6 in the worst row, CA gap at most 1.0 (at the full size half of that), "
        "recall at least 95 %, false flags at most 0.5 %.",
        IN_IMAGE,
        0.01,
    ),
    "rare": Target(
        "CIFAR-10, 1 % and less",
        "Excess at most 4 in the mean and 16 in the worst row, CA gap at most 1.0 (at the full size half of that).",
        {"excess": 0.16, "ca_gap": 0.01, "cost": COST_OF_POISON},
        0.04,
        ("recall", "fpr"),
    ),
    "hiding": Target(
        "CIFAR-10, attacks that hide",
        "Excess at most 20 (at the full size half of that).",
        {"excess": 0.2, "cost": COST_OF_POISON},
        shown=("ca_gap", "recall", "fpr"),
    ),
    "clean": Target(
        "Clean data",
        'Verdict "no sign of poison" in every run, at most 0.2 % flagged, CA gap at most 0.6 (at the full size half of '
        "that).",
        {"ca_gap": 0.006, "flagged_share": 0.002, "cost": COST},
    ),
    "others": Target(
        "GTSRB and Imagenette, a trigger in 4 to 10 %",
        "As on CIFAR-10.",
        IN_IMAGE,
        0.01,
    ),
    "unseen": Target(
        "Triggers from outside the package",
        "As on CIFAR-10, on any set; `benchmarks/unseen.py` and the like. All rows count; the column `undefended` says "
        "how well a trigger was learned.",
        IN_IMAGE,
        0.01,
    ),
    "demonstration": Target(
        "The demonstration",
        "Excess and CA gap at most 1, recall and precision at least 98 %.",
        {"excess": 0.01, "ca_gap": 0.01, "recall": 0.98, "precision": 0.98, "cost": COST_OF_POISON},
    ),
}
WIDTH = 120
INTRODUCTION = f"""
Printed by `python benchmarks/targets.py` from the records in `benchmarks/results`, which `benchmarks/defences.py` and,
for the paper's table, `antibackdoor bench` write; [log.md](log.md) says why a target was missed, and what was measured
otherwise. 6,000 training images of CIFAR-10 and GTSRB (20,000 for 1 %), 3,000 of Imagenette, 8,000 of Fashion-MNIST, at
most 2,000 test images, of which one accuracy is uncertain by a point; WRN-16-1 throughout. Figures are means over `n`
seeds; **bold** misses the target of a row. Excess: attack success minus that of a network trained on the same images
before they were poisoned; CA gap: the clean accuracy of that network minus the one of `{DEFAULT_DEFENCE}`, the default;
both in points, the rest in %. False flags: share of the clean images that is flagged. Cost: processor time of all that
a command does, over that of an undefended one; at most {COST} of clean images and {COST_OF_POISON} of poisoned ones.
`undefended`, `{DEFAULT_DEFENCE}` and `abl-modified` are attack success, `CA` is clean accuracy. Code: the commits that
the cells of `{DEFAULT_DEFENCE}` were made with ("+" with changes that were committed after), or a hash of the package.
""".strip()


def group_of(name: str, text: str) -> str:
    """Return which targets a row has.

    Args:
        name: Of its data set, as in ``RECORDS``.
        text: The attack, as benchmarks/defences.py takes it.
    """
    if text == "none":
        return "clean"
    if named({"row": text}) not in ATTACKS:
        return "unseen"
    if name == DEMONSTRATION:
        return "demonstration"
    attack = read_attack(text)
    if attack.name.startswith(HIDING) or attack.params.get("labelling") == "all-to-all":
        return "hiding"
    if not name.startswith("CIFAR-10"):
        return "others"
    return "common" if attack.rate > 0.01 else "rare"


def missed(key: str, value: float | None, limits: Mapping[str, float]) -> bool:
    """Say whether a figure misses its target; one without a target, or that there is none of, does not."""
    if key not in limits or value is None:
        return False
    # Records round to four digits.
    over = float(value) - limits[key]
    return over < -1e-9 if key in BETTER else over > 1e-9


def marked(key: str, row: Row, limits: Mapping[str, float]) -> str:
    """Return a figure in points or %, in bold where it misses its target; the cost as it is."""
    value = row.get(key)
    if value is None:
        return "-"
    shown = f"{float(value):.2f}" if key == "cost" else f"{100 * float(value):.1f}"
    shown = shown.replace("-0.0", "0.0") if float(shown) == 0 else shown
    return f"**{shown}**" if missed(key, value, limits) else shown


def said(row: Row, *, clean: bool) -> str:
    """Return the verdicts of a row, in bold where one of clean data is another than it should be."""
    words = counted(row["verdicts"])
    return f"**{words}**" if clean and set(row["verdicts"]) != {CLEAN_VERDICT} else words


def table(rows: Sequence[tuple[str, Row, Row, Row | None]], target: Target) -> list[str]:
    """Return the table of one group, and a sentence on it.

    Args:
        rows: Name of the data set, and the rows of the default, of no defence, and of ABL where it was run.
        target: Of the group.
    """
    keys = [key for key in FIGURES if key in target.limits or key in target.shown]
    clean = rows[0][1].get("asr") is None
    asr = [] if clean else ["undefended", DEFAULT_DEFENCE, "abl-modified"]
    names = [
        "data",
        "attack",
        "n",
        *asr,
        *(FIGURES[key] for key in keys),
        "verdicts",
        f"CA of {DEFAULT_DEFENCE}",
        "of abl-modified",
        "code",
    ]
    lines, whole = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)], 0
    for name, ours, none, abl in rows:
        success = [] if clean else [share(none, "asr"), share(ours, "asr"), share(abl or {}, "asr")]
        judged = [*(marked(key, ours, target.limits) for key in keys), said(ours, clean=clean)]
        whole += not any("**" in cell for cell in judged)
        code = ", ".join(dict.fromkeys(str(commit) for commit in ours["commits"]))
        cells = [name, f"`{ours['row']}`", str(ours["n"]), *success, *judged, share(ours, "ca"), share(abl or {}, "ca")]
        lines.append(f"| {' | '.join(cells)} | {code} |")
    lines += ["", f"{whole} of {len(rows)} rows reach every target of a row."]
    if target.mean_excess is not None:
        excess = [max(0.0, float(ours["excess"])) for _, ours, _, _ in rows]
        mean = fmean(excess)
        lines[-1] += (
            f" Excess, negative counted as 0, is {100 * mean:.1f} in the mean (limit {100 * target.mean_excess:g}: "
            f"{'missed' if mean > target.mean_excess else 'reached'}) and {100 * max(excess):.1f} in the worst row."
        )
    return lines


def of_grid(folder: Path) -> list[dict[str, Any]]:
    """Return the cells of a grid as benchmarks/defences.py writes them, of the default, of ABL and undefended ones."""
    cells = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        (cell,), figures, control = of_now([content["cell"]]), content["metrics"], content["control"]
        if cell["defence"] not in (DEFAULT_DEFENCE, "none", "abl-modified"):
            continue
        # The rate of a cell may be one of the target class; this is the share of the set.
        share_of_set = (figures["n_poison"] or 0) / figures["n_train"]
        row = "none" if cell["attack"] == "none" else f"{cell['attack_label']}@{share_of_set:.2g}"
        found = {"row": row, "defence": cell["defence"], "seed": cell["seed"], "verdict": content["verdict"], **figures}
        found["ca_gap"] = control["ca"] - figures["ca"]
        found["excess"] = None if figures["asr"] is None else figures["asr"] - control["asr"]
        found["flagged_share"] = figures["n_flagged"] / figures["n_train"]
        found["commit"] = content["versions"].get("antibackdoor code")
        cells.append(found)
    return cells


def rows_of(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return means over seeds by row and defence, and the code that made them, of a record or of a grid's cells."""
    if path.is_dir():
        cells = of_grid(path)
    else:
        cells = kept_cells(path)
    rows = {(str(row["row"]), str(row["defence"])): row for row in summarise(cells)}
    for cell in cells:
        rows[cell["row"], cell["defence"]].setdefault("commits", []).append(cell.get("commit") or "older")
    return rows


def page(results: Path) -> str:
    """Return the page, from the records in a folder; a record that is not there is left out."""
    groups: dict[str, list[tuple[str, Row, Row, Row | None]]] = {name: [] for name in TARGETS}
    for name, file in RECORDS.items():
        by_cell = rows_of(results / file)
        for (text, defence), row in by_cell.items():
            if defence == DEFAULT_DEFENCE:
                cells = name, row, by_cell[text, "none"], by_cell.get((text, "abl-modified"))
                groups[group_of(name, text)].append(cells)
    lines = ["# Targets and what was reached", "", textwrap.fill(INTRODUCTION, WIDTH)]
    for key, rows in groups.items():
        words = textwrap.fill(TARGETS[key].words, WIDTH)
        found = table(rows, TARGETS[key]) if rows else ["No record yet."]
        lines += ["", f"## {TARGETS[key].title}", "", words, "", *found]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    print(page(parser.parse_args().results), end="")


if __name__ == "__main__":
    main()
