"""Print the tables of the README and docs/log.md from the JSON files in benchmarks/results.

python benchmarks/tables.py benchmarks/results/demo.json benchmarks/results/isolation_cifar10.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

QUALITY = {
    "ca": "clean accuracy",
    "asr": "attack success",
    "ra": "robust accuracy",
    "precision": "precision",
    "recall": "recall",
}


def share(row: dict[str, object], key: str) -> str:
    """Return "86.1 ± 0.4 %", or a dash."""
    value, spread = row.get(key), row.get(f"{key}_sd")
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if spread is None else f"{100 * value:.1f} ± {100 * spread:.1f} %"


def quality(content: dict[str, object]) -> list[str]:
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


def signals(content: dict[str, object]) -> list[str]:
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


def isolation(content: dict[str, object]) -> list[str]:
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


def main() -> None:
    """Print one table a file."""
    for name in sys.argv[1:]:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        table = isolation if "signal" in content["summary"][0] else quality
        device = content["device"]
        print(f"`{content['command']}`; {device['name']}, {device['precision']}, {device['threads']} threads\n")
        print("\n".join(table(content)), end="\n\n")
        if table is quality:
            print("\n".join(signals(content)), end="\n\n")


if __name__ == "__main__":
    main()
