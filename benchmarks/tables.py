"""Print the tables of the README and docs/log.md from the JSON files in benchmarks/results.

    python benchmarks/tables.py benchmarks/results/demo.json benchmarks/results/isolation_cifar10.json
    python benchmarks/tables.py benchmarks/results/attacks_cifar10_cpu.json --only badnets blend sig

`--only` keeps the rows of some attacks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Attack success under which an attack is left out of comparisons at the size it was measured at.
WEAK = 0.7
QUALITY = {
    "ca": "clean accuracy",
    "asr": "attack success",
    "ra": "robust accuracy",
    "precision": "precision",
    "recall": "recall",
}


def share(row: Mapping[str, Any], key: str) -> str:
    """Return "86.1 ± 0.4 %", or a dash."""
    value, spread = row.get(key), row.get(f"{key}_sd")
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if spread is None else f"{100 * value:.1f} ± {100 * spread:.1f} %"


def counted(verdicts: Sequence[str]) -> str:
    """Return "2 poisoned, 1 undecided"."""
    return ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts))


def quality(content: dict[str, Any]) -> list[str]:
    """Return the table of benchmarks/quality.py: one row an attack and defence."""
    lines = [
        f"| attack | defence | n | {' | '.join(QUALITY.values())} | seconds |",
        "|---|---|---|" + "---|" * (len(QUALITY) + 1),
    ]
    for row in content["summary"]:
        cells = [share(row, key) for key in QUALITY]
        lines.append(
            f"| {row['attack']} | {row['defence']} | {row['n']} | {' | '.join(cells)} | {row['seconds']:.0f} |"
        )
    return lines


def signals(content: dict[str, Any]) -> list[str]:
    """Return precision of 1 % by signal, on the first stage of the defences that were run, mean over seeds."""
    cells = [cell for cell in content["cells"] if cell.get("precision_by_signal")]
    names = list(dict.fromkeys(name for cell in cells for name in cell["precision_by_signal"]))
    lines = [f"| attack | losses of | n | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for attack, defence in dict.fromkeys((cell["attack"], cell["defence"]) for cell in cells):
        group = [
            cell["precision_by_signal"] for cell in cells if (cell["attack"], cell["defence"]) == (attack, defence)
        ]
        shown = [f"{100 * sum(cell[name] for cell in group) / len(group):.0f} %" for name in names]
        lines.append(f"| {attack} | {defence} | {len(group)} | {' | '.join(shown)} |")
    return lines if cells else []


def isolation(content: dict[str, Any]) -> list[str]:
    """Return the table of benchmarks/isolation.py: precision by signal, a column an attack and rule."""
    columns = list(dict.fromkeys((row["attack"], row["rule"]) for row in content["summary"]))
    lines = [
        f"| signal / scope | {' | '.join(f'{attack}, {rule}' for attack, rule in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for signal in dict.fromkeys(row["signal"] for row in content["summary"]):
        cells = []
        for attack, rule in columns:
            found = [r for r in content["summary"] if (r["attack"], r["rule"], r["signal"]) == (attack, rule, signal)]
            cells.append(share(found[0], "precision"))
        lines.append(f"| {signal} | {' | '.join(cells)} |")
    return lines


def strength(content: dict[str, Any]) -> list[str]:
    """Return the tables of benchmarks/attacks.py: how strong, and how visible and fast; one row an attack."""
    rows = content["summary"]
    head = ["attack", "n", "poison (covers)", "clean accuracy", "control", "attack success", "control", "of covers", ""]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---|" * (len(head) - 1)] if "asr" in rows[0] else []
    for row in rows if lines else []:
        covers = f" ({row['n_cover']:.0f})" if row["n_cover"] else ""
        note = "" if row["asr"] >= WEAK else "too weak at this size"
        if not note and (row.get("cover_asr") or 0) > row["asr"] / 2:
            note = "covers work too"
        figures = [share(row, key) for key in ("ca", "control_ca", "asr", "control_asr", "cover_asr")]
        lines.append(
            f"| {row['attack']} | {row['n']} | {row['n_poison']:.0f}{covers} | {' | '.join(figures)} | {note} |"
        )
    seen = ["attack", "PSNR, dB", "SSIM", "L-inf, of 255", "PSNR of test images", "s to prepare", "images/s stamped"]
    lines += ["", f"| {' | '.join(seen)} |", "|---|" + "---|" * (len(seen) - 1)]
    for row in rows:
        stealth = [
            figure(row, key, digits) for key, digits in (("psnr", 1), ("ssim", 3), ("linf", 0), ("psnr_test", 1))
        ]
        speed = [figure(row, "seconds_prepare", 1), figure(row, "images_per_second", 0)]
        lines.append(f"| {row['attack']} | {' | '.join(stealth + speed)} |")
    return lines


def protection(content: dict[str, Any]) -> list[str]:
    """Return the table of benchmarks/defences.py: one row an attack and defence, the control above each attack."""
    names = [
        "attack",
        "defence",
        "n",
        "clean accuracy",
        "attack success",
        "precision",
        "recall",
        "false flags",
        "trainings",
        "cost",
    ]
    lines = [f"| {' | '.join(names)} | verdicts |", "|---|" + "---|" * len(names)]
    for row in content["summary"]:
        if row["defence"] == "none":
            control = [share(row, "control_ca"), share(row, "control_asr")]
            lines.append(f"| {row['row']} | control | {row['n']} | {' | '.join(control)} | - | - | - | - | - | - |")
        figures = [share(row, key) for key in ("ca", "asr", "precision", "recall", "fpr")]
        cells = [
            row["row"],
            row["defence"],
            str(row["n"]),
            *figures,
            f"{row['trainings']:.2f}",
            figure(row, "cost", 2),
            counted(row["verdicts"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def figure(row: dict[str, Any], key: str, digits: int) -> str:
    """Return a number, or a dash where there is none."""
    value = row.get(key)
    return "-" if value is None else f"{value:,.{digits}f}"


def named(row: dict[str, Any]) -> str:
    """Return the attack of a row by its name alone."""
    return re.split("[@:]", str(row.get("attack", row.get("row"))))[0]


def kind_of(content: dict[str, Any]) -> Callable[[dict[str, Any]], list[str]]:
    """Return the function that knows the file."""
    row = content["summary"][0]
    if "verdicts" in row:
        return protection
    if "signal" in row:
        return isolation
    return strength if "images_per_second" in row or "control_asr" in row else quality


def main() -> None:
    """Print one table a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--only", nargs="+", default=None, metavar="ATTACK", help="attacks by name, without settings")
    arguments = parser.parse_args()
    for path in arguments.files:
        content = json.loads(path.read_text(encoding="utf-8"))
        if arguments.only:
            content["summary"] = [r for r in content["summary"] if named(r) in arguments.only]
        table = kind_of(content)
        device = content["device"]
        print(f"`{content['command']}`; {device['name']}, {device['precision']}, {device['threads']} threads\n")
        print("\n".join(table(content)), end="\n\n")
        if table is quality:
            print("\n".join(signals(content)), end="\n\n")


if __name__ == "__main__":
    main()
