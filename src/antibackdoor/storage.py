"""The files of a run: written whole or not at all, read back without ever unpickling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from antibackdoor.content import content_hashes
from antibackdoor.csvs import as_text, lines_of
from antibackdoor.decisions import Decision, encode_decisions, parse_decisions
from antibackdoor.defences.against import FILE as STATISTICS
from antibackdoor.defences.against import Statistics
from antibackdoor.errors import StorageError
from antibackdoor.files import (
    CHECKSUMS,
    atomic_write_bytes,
    pack_tensors,
    read_checked,
    read_checksums,
    sha256_of,
    unpack_tensors,
    write_checksums,
    writing,
)
from antibackdoor.isolation import most_suspect_first
from antibackdoor.models import ModelSpec, rebuild
from antibackdoor.serialising import (
    as_json,
    encode,
    pack_arrays,
    pack_names,
    parse_json,
    read_arrays,
    unpack_names,
)
from antibackdoor.stored import StoredRun, check_arrays, record_of
from antibackdoor.types import History, ImageSet, Isolation, PoisonedSet, RunRecord

__all__ = [
    "ALBUM",
    "CHECKPOINTS",
    "CONFIG",
    "DECIDED",
    "GALLERY",
    "RECORD",
    "RUN_FILES",
    "add_arrays",
    "add_text",
    "load_arrays",
    "load_decided",
    "load_model",
    "load_run",
    "read_record",
    "save_run",
]

GALLERY = 40
_FORMAT, _UNCHECKED_FORMAT = 2, 1  # runs of format 1 (version 0.1) have no checksums
_MODEL_FORMAT = "antibackdoor model 1"
CONFIG, RECORD, _HISTORY, _WEIGHTS = "config.json", "run.json", "history.npz", "model.safetensors"
_SUSPECTS, _GALLERY, CHECKPOINTS, _REPORT = "suspects.csv", "gallery.npz", "checkpoints", "report.html"
ALBUM = "album.npz"  # pictures of the suspects in groups, for the report
DECIDED = "decided.csv"  # what a person had decided before the run
RUN_FILES = (CONFIG, CHECKSUMS, RECORD, _HISTORY, _WEIGHTS, _SUSPECTS, DECIDED, _GALLERY, ALBUM, STATISTICS, _REPORT)


def save_run(
    out: Path,
    *,
    record: RunRecord,
    model: nn.Module | None,
    data: ImageSet,
    isolation: Isolation,
    histories: tuple[History, ...],
    truth: PoisonedSet | None,
    decisions: Sequence[Decision] | None = None,
    seen: Tensor | None = None,
    statistics: Statistics | None = None,
) -> None:
    """Write everything but the report; run.json comes last, so that its presence means a whole run.

    Before it comes ``checksums.sha256``, with the SHA-256 of each file, run.json among them. ``seen`` is int64 (N,),
    the class that the network sees in each image; ``statistics`` are what a later batch is compared with.

    Raises:
        StorageError: A full disk, or a folder that cannot be written.
    """
    with writing(out):
        (out / RECORD).unlink(missing_ok=True)  # while files are exchanged, this is no finished run
    order = most_suspect_first(isolation.scores)
    top = _to_show(data, isolation, order)[:GALLERY]
    gallery = {"index": top.numpy(), "images": data.images[top].permute(0, 2, 3, 1).numpy()}
    checksums = {}
    if (out / CONFIG).is_file():
        checksums[CONFIG] = sha256_of(read_checked(out / CONFIG, None))

    def write(name: str, content: bytes) -> None:
        atomic_write_bytes(out / name, content)
        checksums[name] = sha256_of(content)

    if model is not None:
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in model.state_dict().items()
        }
        write(_WEIGHTS, pack_tensors(weights, {"format": _MODEL_FORMAT}))
    arrays = _history_arrays(data, isolation, histories, truth)
    if seen is not None:
        arrays["seen"] = seen.numpy()
    write(_HISTORY, pack_arrays(arrays))
    write(_GALLERY, pack_arrays(gallery))
    if statistics is not None:
        write(STATISTICS, statistics.packed())
    if decisions is not None:
        write(DECIDED, encode_decisions(decisions))
    write(_SUSPECTS, encode(_suspects(data, isolation, order)))
    content = encode(as_json(_record_to_json(record)))
    write_checksums(out, checksums | {RECORD: sha256_of(content)})
    atomic_write_bytes(out / RECORD, content)


def add_text(run: Path, name: str, text: str) -> None:
    """Write a further text file of a finished run, such as its report, and note its checksum.

    Raises:
        StorageError: It cannot be written.
    """
    _add(run, name, encode(text))


def add_arrays(run: Path, name: str, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays as a further file of a finished run; see :func:`add_text`."""
    _add(run, name, pack_arrays(arrays))


def load_arrays(run: Path, name: str) -> dict[str, np.ndarray[Any, Any]] | None:
    """Read what :func:`add_arrays` wrote; None where a run has no such file.

    Raises:
        StorageError: It is damaged.
    """
    checksums = read_checksums(run)
    return read_arrays(run / name, checksums) if (run / name).exists() or name in (checksums or {}) else None


def _add(run: Path, name: str, content: bytes) -> None:
    atomic_write_bytes(run / name, content)
    checksums = read_checksums(run)
    if checksums is not None:
        write_checksums(run, checksums | {name: sha256_of(content)})


def _history_arrays(
    data: ImageSet, isolation: Isolation, histories: tuple[History, ...], truth: PoisonedSet | None
) -> dict[str, np.ndarray[Any, Any]]:
    phases = [history.phase for history in histories for _ in history.seconds]
    arrays = {
        # The first row of nothing is for what has trained nothing.
        "losses": np.concatenate([np.zeros((0, len(data)), np.float32), *(history.losses for history in histories)]),
        "accuracy": np.concatenate([np.zeros(0), *(history.accuracy for history in histories)]),
        "seconds": np.concatenate([np.zeros(0), *(history.seconds for history in histories)]),
        "phases": np.array(phases, dtype=np.str_),
        "labels": data.labels.numpy(),
        "scores": isolation.scores.float().numpy() + np.float32(0),  # no negative zero
        "flagged": isolation.flagged.numpy(),
        "ids": pack_names(data.ids),
        "content": content_hashes(data.images),
        "doubtful": np.array(isolation.doubtful, dtype=np.int64),
    }
    if truth is not None:
        arrays |= {"poison": truth.poison.numpy(), "cover": truth.cover.numpy()}
    return arrays


def _to_show(data: ImageSet, isolation: Isolation, order: Tensor) -> Tensor:
    """Return the rows in the order in which a person should see them: flagged, of classes in doubt, the others."""
    doubtful = torch.isin(data.labels, torch.tensor(isolation.doubtful, dtype=torch.int64))
    kind = 2 - 2 * isolation.flagged.long() - (doubtful & ~isolation.flagged).long()
    return order[kind[order].argsort(stable=True)]


def _suspects(data: ImageSet, isolation: Isolation, order: Tensor) -> str:
    labels, flagged, scores = data.labels.tolist(), isolation.flagged.tolist(), (isolation.scores + 0.0).tolist()
    rows: list[tuple[object, ...]] = [("rank", "id", "label", "score", "flagged")]
    for rank, row in enumerate(order.tolist(), 1):
        name, label = as_text(data.ids[row]), as_text(data.classes[labels[row]])
        rows.append((rank, name, label, f"{scores[row]:.6g}", int(flagged[row])))
    return lines_of(rows)


def read_record(run: Path) -> RunRecord:
    """Read run.json.

    Raises:
        StorageError: There is none, or it is damaged.
    """
    if not run.is_dir():
        raise StorageError(f"no run folder at {run}")
    if not (run / RECORD).exists():
        raise StorageError(f"{run} holds no finished run (no {RECORD}); if training was interrupted, use --resume")
    checksums = read_checksums(run)
    values = parse_json(run / RECORD, read_checked(run / RECORD, checksums))
    try:
        found = values.pop("format")
        if found not in (_FORMAT, _UNCHECKED_FORMAT):
            raise TypeError(f"it is of format {found!r}, not {_FORMAT}")
        if found == _FORMAT and checksums is None:
            raise StorageError(f"{run / CHECKSUMS} is missing, so that nobody can tell if the run is as it was written")
        return record_of(values)
    except (KeyError, TypeError, OverflowError) as error:
        raise StorageError(f"{run / RECORD} is damaged or of another version: {error}") from None


def load_run(run: Path) -> StoredRun:
    """Read a finished run folder.

    Raises:
        StorageError: A file is missing or damaged.
    """
    record = read_record(run)
    checksums = read_checksums(run)
    arrays, pictures = (read_arrays(run / name, checksums) for name in (_HISTORY, _GALLERY))
    try:
        check_arrays(arrays)
        check_arrays(pictures)
        return StoredRun(
            record=record,
            ids=unpack_names(arrays["ids"]),
            labels=arrays["labels"],
            classes=tuple(str(name) for name in record.data["classes"]),  # type: ignore[union-attr]
            scores=arrays["scores"],
            flagged=arrays["flagged"],
            losses=arrays["losses"],
            phases=tuple(str(phase) for phase in arrays["phases"]),
            poison=arrays.get("poison"),
            cover=arrays.get("cover"),
            gallery_index=pictures["index"],
            gallery=pictures["images"],
            content=arrays.get("content"),
            doubtful=tuple(arrays["doubtful"].tolist()) if "doubtful" in arrays else (),
            seen=arrays.get("seen"),
        )
    except (KeyError, TypeError, ValueError, RecursionError, StorageError) as error:
        raise StorageError(f"{run} is damaged or of another version: {error}") from None


def load_decided(run: Path) -> list[Decision]:
    """Read what a person had decided before a run; nothing of a run that was told of no decisions.

    Raises:
        StorageError: It is damaged.
    """
    path, checksums = run / DECIDED, read_checksums(run)
    if checksums is None or DECIDED not in checksums:
        return []
    return parse_decisions(path, read_checked(path, checksums))


def load_model(run: Path, record: RunRecord) -> nn.Module:
    """Build the network of a run and load its weights; it is in evaluation mode.

    Raises:
        StorageError: No weights (a scan keeps none), or weights that do not fit.
        ConfigError: The network was the user's own.
    """
    path = run / _WEIGHTS
    if not path.exists():
        raise StorageError(f"{run} holds no network: a scan trains none for use; run `antibackdoor train`")
    try:
        spec = ModelSpec(**record.model)  # type: ignore[arg-type]
    except TypeError as error:
        raise StorageError(f"{run / RECORD} is damaged or of another version: {error}") from None
    checksums = read_checksums(run)
    content = read_checked(path, checksums)
    model = rebuild(spec)
    try:
        model.load_state_dict(load(content) if checksums is None else unpack_tensors(content)[1])
    except (RuntimeError, SafetensorError, StorageError) as error:
        raise StorageError(f"{path} is damaged or belongs to another network: {' '.join(str(error).split())}") from None
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise StorageError(f"{path} holds weights that are infinite or not a number, so the network is of no use")
    return model.eval()


def _record_to_json(record: RunRecord) -> dict[str, object]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    values |= {
        "metrics": dataclasses.asdict(record.metrics),
        "model": dict(record.model),
        "data": dict(record.data),
    }
    return {"format": _FORMAT, **values}
