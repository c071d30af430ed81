"""What a grid lacks of the protocol of comparison (docs/protocol.md), in words that go under its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from antibackdoor.benchmark.reading import MeasuredCell, Setting, mapping

__all__ = ["departures"]

_SEEDS = 3
_LONGER = 1.1  # A training this much longer than the undefended one is not one of as many updates.


def departures(cells: Sequence[MeasuredCell]) -> list[str]:
    """Return one sentence for each rule that the cells of a grid do not keep.

    Args:
        cells: Of a grid; failed ones are left out.

    Returns:
        Sentences on rows of under three seeds, on a grid whose attacks all aim at one class, on rows without an
        undefended network, and on defences that train longer than it; none where nothing is to be said.
    """
    done = [cell for cell in cells if cell.error is None]
    found = [*_seeds(done), *_targets(done), *_undefended(done), *_longer(done)]
    return [f"Not by the protocol (docs/protocol.md): {sentence}" for sentence in found]


def _seeds(cells: Sequence[MeasuredCell]) -> Iterator[str]:
    seeds: dict[tuple[Setting, str], set[int]] = {}
    for cell in cells:
        seeds.setdefault((cell.setting, cell.defence), set()).add(cell.seed)
    few = sum(len(own) < _SEEDS for own in seeds.values())
    if few:
        yield f"{few} of {len(seeds)} entries have fewer than {_SEEDS} seeds."


def _targets(cells: Sequence[MeasuredCell]) -> Iterator[str]:
    targets: set[str] = set()
    for cell in cells:
        attack = mapping(mapping(cell.record.get("config")).get("attack"))
        if attack.get("targets") or attack.get("labelling") == "all-to-all":
            return
        if cell.setting.rate is not None and attack.get("target") is not None:
            targets.add(str(attack["target"]))
    if len(targets) == 1:
        yield f"all attacks aim at one class ({targets.pop()}), and what is found may be about that class."


def _undefended(cells: Sequence[MeasuredCell]) -> Iterator[str]:
    rows = {cell.setting for cell in cells}
    missing = len(rows - {cell.setting for cell in cells if cell.undefended})
    if missing:
        yield f"{missing} of {len(rows)} rows have no undefended network, so no DER."


def _longer(cells: Sequence[MeasuredCell]) -> Iterator[str]:
    ordinary = {(cell.setting, cell.seed): cell.figures.get("updates", 0.0) for cell in cells if cell.undefended}
    longest: dict[str, float] = {}
    for cell in cells:
        before, after = ordinary.get((cell.setting, cell.seed), 0.0), cell.figures.get("updates", 0.0)
        if before and after > _LONGER * before:
            longest[cell.defence] = max(longest.get(cell.defence, 0.0), after / before)
    if longest:
        words = ", ".join(f"{defence} ({ratio:.1f} times)" for defence, ratio in longest.items())
        yield f"longer than undefended training, in updates: {words}; the control is as short as that training."
