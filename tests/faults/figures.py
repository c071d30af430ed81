"""Print the figures of docs/reliability.md: ``python tests/faults/figures.py kills NAME... --writes N --moments N``.

``kills`` ends commands at their writes and at random moments (see ``killing``); ``refusals`` lets the system refuse
their writes instead (see ``withholding``); ``damage`` cuts off and flips bytes in
every file of a run (see ``test_damage``). Exit code 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from killing import mortal, torture, write_inputs  # noqa: E402 - the folders must be known first


def kills(names: list[str], writes: int | None, moments: int) -> bool:
    print("| command | changes to the disk | killed | as if never killed |")
    print("|---|---|---|---|")
    broken = False
    with tempfile.TemporaryDirectory() as folder, mortal(Path(folder)) as run:
        commands = write_inputs(Path(folder))
        for name in names or commands:
            command = commands[name]
            events = torture(run, command, Path(folder), writes=writes, moments=moments)
            print(f"| {name} | {events} | {command.kills} | {command.survived} |", flush=True)
            print(*command.faults, sep="\n", end="\n" if command.faults else "", file=sys.stderr)
            broken |= bool(command.faults)
    return broken


def damage(lengths: int, flips: int) -> bool:
    from damaging import damage_run, write_run

    print("| file | cut off | named | flipped | named |")
    print("|---|---|---|---|---|")
    broken = False
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder))
        for row in damage_run(run, lengths=lengths, flips=flips):
            print(f"| `{row.name}` | {row.cut} | {row.cut_named} | {row.flipped} | {row.flipped_named} |", flush=True)
            print(*row.faults, sep="\n", end="\n" if row.faults else "", file=sys.stderr)
            broken |= bool(row.faults)
    return broken


def refusals(names: list[str], places: int | None) -> bool:
    from withholding import refuse_changes

    print("| command | changes refused | one line, exit code 1 or 2 | did without | second call as if never refused |")
    print("|---|---|---|---|---|")
    broken = False
    with tempfile.TemporaryDirectory() as folder, mortal(Path(folder)) as run:
        commands = write_inputs(Path(folder))
        for name in names or commands:
            row = refuse_changes(run, commands[name], Path(folder), places=places)
            print(f"| {name} | {row.refused} | {row.ended} | {row.went_on} | {row.restored} |", flush=True)
            print(*row.faults, sep="\n", end="\n" if row.faults else "", file=sys.stderr)
            broken |= bool(row.faults)
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kills", "refusals", "damage"])
    parser.add_argument("names", nargs="*", help="commands; all by default")
    parser.add_argument("--writes", type=int, default=None, help="at how many of the writes; all by default")
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--lengths", type=int, default=20)
    parser.add_argument("--flips", type=int, default=200)
    given = parser.parse_args()
    if given.what == "kills":
        return int(kills(given.names, given.writes, given.moments))
    if given.what == "refusals":
        return int(refusals(given.names, given.writes))
    return int(damage(given.lengths, given.flips))


if __name__ == "__main__":
    sys.exit(main())
