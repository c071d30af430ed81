"""The figures of a grid, as PNG and SVG: only those that its records hold the data for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from antibackdoor.benchmark.charts import STYLE, save, slug, unique
from antibackdoor.benchmark.figure_epochs import losses, precision_by_epoch
from antibackdoor.benchmark.figure_overview import heat_maps, scatter
from antibackdoor.benchmark.figure_part import Drawing, Part
from antibackdoor.benchmark.figure_sweeps import by_gamma, by_rate, by_share, by_turning_epoch
from antibackdoor.benchmark.reading import read
from antibackdoor.benchmark.summary import summarise
from antibackdoor.serialising import write_json

__all__ = ["write_figures"]

_NOTED = ".written.json"  # beside the figures: which are ours
_ENDINGS = (".png", ".svg")


def write_figures(records: Sequence[Mapping[str, object]], out: Path) -> list[Path]:
    """Write the figures into OUT/figures, each as PNG and SVG.

    One of each kind for every data set and network: heat maps of attack success and clean accuracy; one against the
    other; precision of the lowest losses and the losses themselves by epoch; precision by gamma and by turning epoch;
    attack success and clean accuracy by isolation share and by poisoning rate; precision and recall by poisoning rate.
    Those that an earlier call wrote there and this one does not are removed.

    Args:
        records: The records of the cells; failed ones are left out.
        out: Folder to write to.

    Returns:
        The files. A figure that the records hold no data for is not drawn.

    Raises:
        StorageError: A record of another format, or a folder that cannot be written.
    """
    import matplotlib

    summary, done = summarise(records), tuple(cell for cell in read(records) if cell.error is None)
    groups = list(dict.fromkeys((s.data, s.model) for s in summary.settings))
    written: list[Path] = []
    names: set[str] = set()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the figures
        matplotlib.rcParams.update(STYLE)
        for group in groups:
            part = Part(
                names=", ".join(group),
                settings=tuple(s for s in summary.settings if (s.data, s.model) == group),
                cells=tuple(cell for cell in done if (cell.setting.data, cell.setting.model) == group),
                summary=summary,
            )
            for draw in _ALL if part.cells else ():
                for kind, figure in draw(part):
                    name = unique(slug(" ".join((kind, *group) if len(groups) > 1 else (kind,))), names)
                    written += save(figure, out / "figures", name)
    _remove_earlier(out / "figures", [path.name for path in written])
    return written


def _remove_earlier(folder: Path, names: Sequence[str]) -> None:
    """Remove the figures that an earlier call noted and this one did not write; note the names of this one's."""
    noted = folder / _NOTED
    try:
        earlier = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = []
    for name in earlier if isinstance(earlier, list) else []:
        if name not in names and isinstance(name, str) and Path(name).name == name and name.endswith(_ENDINGS):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    if names or noted.exists():
        write_json(noted, list(names))


_ALL: tuple[Callable[[Part], Iterator[Drawing]], ...] = (
    heat_maps,
    scatter,
    precision_by_epoch,
    losses,
    by_gamma,
    by_turning_epoch,
    by_share,
    by_rate,
)
