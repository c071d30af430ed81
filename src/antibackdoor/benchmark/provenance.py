"""How the cells of a grid were made, in words: sizes, machines, versions, and what does not belong in one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from antibackdoor.benchmark.reading import MeasuredCell, mapping

__all__ = ["device_words", "how_made"]

_CODE = ("antibackdoor", "antibackdoor code")


def how_made(cells: Sequence[MeasuredCell]) -> list[str]:
    """Return sentences on the cells that are done.

    Args:
        cells: Of a grid; failed ones are left out.

    Returns:
        First what must not be overlooked: cells of one data set and seed that were made from different images, or by
        other code. Then one sentence for each data set and network, one for the machines, one for the versions.
    """
    done = [cell for cell in cells if cell.error is None]
    return [*_mixed(done), *_sizes(done), *_machines(done), *_versions(done)]


def device_words(device: object) -> list[str]:
    """Return the name, the type and the precision of a record's device, each once; none where it has none of them."""
    known = mapping(device)
    return list(dict.fromkeys(str(known[key]) for key in ("name", "type", "precision") if known.get(key)))


def _mixed(cells: Iterable[MeasuredCell]) -> Iterator[str]:
    images: dict[tuple[str, int], set[str]] = {}
    code: dict[str, None] = {}
    for cell in cells:
        if fingerprint := mapping(cell.record.get("data")).get("fingerprint"):
            images.setdefault((cell.setting.data, cell.seed), set()).add(str(fingerprint))
        versions = mapping(cell.record.get("versions"))
        if own := " ".join(str(versions[name]) for name in _CODE if name in versions):
            code[own] = None
    for (data, seed), prints in images.items():
        if len(prints) > 1:
            yield (
                f"Mixed: the cells of {data}, seed {seed}, were made from {len(prints)} different sets of images, and "
                "do not compare."
            )
    if len(code) > 1:
        yield f"Mixed: the cells were made by {len(code)} versions of this package's code: {', '.join(code)}."


def _sizes(cells: Iterable[MeasuredCell]) -> Iterator[str]:
    sizes: dict[tuple[str, str], dict[str, None]] = {}
    for cell in cells:
        words = ", ".join((*_images(cell), *_training(cell)))
        if words:
            sizes.setdefault((cell.setting.data, cell.setting.model), {})[words] = None
    for (data, model), found in sizes.items():
        yield f"{data}, {model}: {'; or '.join(found)}."


def _images(cell: MeasuredCell) -> Iterator[str]:
    metrics = mapping(cell.record.get("metrics"))
    for key, name in (("n_train", "training"), ("n_test", "test")):
        if isinstance(count := metrics.get(key), int):
            yield f"{count:,} {name} images"


def _training(cell: MeasuredCell) -> Iterator[str]:
    train = cell.section("train")
    if train.get("epochs"):
        yield f"{train['epochs']} epochs"
    if train.get("batch_size"):
        yield f"batches of {train['batch_size']}"
    augment = train.get("augment")
    if isinstance(augment, list | tuple):
        yield f"augmentation {' and '.join(map(str, augment))}" if augment else "no augmentation"


def _machines(cells: Iterable[MeasuredCell]) -> Iterator[str]:
    found: dict[str, None] = {}
    for cell in cells:
        device = cell.record.get("device")
        found[", ".join(device_words(device)) or str(device or "")] = None
    shown = [words for words in found if words]
    if shown:
        yield f"Made on: {'; '.join(shown)}." + (" Results of several devices may differ." if len(shown) > 1 else "")


def _versions(cells: Iterable[MeasuredCell]) -> Iterator[str]:
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, version in mapping(cell.record.get("versions")).items():
            if name in ("antibackdoor", "python", "torch") or str(name).startswith("plugin "):
                found.setdefault(str(name), {})[str(version)] = None
    if found:
        shown = [f"{name} {' and '.join(seen)}" for name, seen in found.items()]
        yield f"Versions: {', '.join(shown)}."
