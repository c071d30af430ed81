"""The files of a run: written whole or not at all, read back without ever unpickling."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from antibackdoor.errors import ConfigError, RunExistsError, StorageError
from antibackdoor.isolation import most_suspect_first
from antibackdoor.models import ModelSpec, rebuild
from antibackdoor.stored import StoredRun
from antibackdoor.training import Checkpoints
from antibackdoor.types import History, ImageSet, Isolation, Json, Metrics, PoisonedSet, RunRecord

__all__ = [
    "GALLERY",
    "claim",
    "load_model",
    "load_run",
    "read_record",
    "refuse_other_run",
    "save_run",
    "write_json",
    "write_text",
]

GALLERY = 40
_FORMAT = 1
_CONFIG, _RECORD, _HISTORY, _WEIGHTS = "config.json", "run.json", "history.npz", "model.safetensors"
_SUSPECTS, _GALLERY, _CHECKPOINTS, _REPORT = "suspects.csv", "gallery.npz", "checkpoints", "report.html"
_SETTINGS = frozenset({"data", "defence", "model", "seed", "train"})  # the settings of a run have at least these
_OURS = (_CONFIG, _RECORD, _HISTORY, _WEIGHTS, _SUSPECTS, _GALLERY, _REPORT)


def claim(out: Path, config: dict[str, Json], *, resume: bool, overwrite: bool) -> None:
    """Make the folder of a run ready.

    Args:
        out: The folder; made if it is not there. Files in it that are not a run's are left alone.
        config: The resolved configuration; a resumed run must have the same.
        resume: Continue what is there.
        overwrite: Remove the run that is there.

    Raises:
        RunExistsError: It holds a run, and neither was asked for; or files of those names that are not a run's.
        StorageError: The run to resume had another configuration, or the folder cannot be written.
    """
    held = refuse_other_run(out, resume=resume, overwrite=overwrite)
    if held and overwrite:
        with _writing(out):
            for path in (out / name for name in _OURS):
                if path.is_file():
                    path.unlink()
            Checkpoints(out / _CHECKPOINTS, resume=False).clear()
    elif held:
        before = _read_json(out / _CONFIG)
        changed = [key for key in {*before, *config} if before.get(key) != config.get(key)]
        if changed:
            raise StorageError(
                f"{out} was started with other settings ({', '.join(sorted(changed))} differ); resume with the same, "
                "or give --overwrite"
            )
    write_json(out / _CONFIG, config)


def refuse_other_run(out: Path, *, resume: bool, overwrite: bool) -> list[str]:
    """Return which files of a run the folder holds, if there may be any.

    Raises:
        ConfigError: Both to resume and to overwrite was asked for.
        RunExistsError: There are, and neither was asked for; or they are to be overwritten, but are not a run of ours.
        StorageError: It is a file.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if out.exists() and not out.is_dir():
        raise StorageError(f"cannot write {out}: it is a file; --out is a folder")
    held = [name for name in (*_OURS, _CHECKPOINTS) if (out / name).exists()]
    if held and not resume and not overwrite:
        raise RunExistsError(
            f"{out} holds another run ({', '.join(held[:3])}); give --resume to continue it, --overwrite to replace "
            "it, or another --out"
        )
    if held and overwrite and not _holds_our_run(out):
        raise RunExistsError(
            f"{out} holds {', '.join(held[:3])}, but no run that antibackdoor wrote, so --overwrite leaves it as it "
            "is; give another --out"
        )
    return held


def _holds_our_run(out: Path) -> bool:
    """Say whether a folder holds the record of a finished run, or the settings of one that was interrupted."""
    for name in (_RECORD, _CONFIG):
        with contextlib.suppress(StorageError):
            values = _read_json(out / name)
            settings = values.get("config") if name == _RECORD else values
            if isinstance(settings, dict) and settings.keys() >= _SETTINGS:
                return True
    return False


def save_run(
    out: Path,
    *,
    record: RunRecord,
    model: nn.Module | None,
    data: ImageSet,
    isolation: Isolation,
    histories: tuple[History, ...],
    truth: PoisonedSet | None,
) -> None:
    """Write everything but the report; run.json comes last, so that its presence means a whole run.

    Raises:
        StorageError: A full disk, or a folder that cannot be written.
    """
    if model is not None:
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in model.state_dict().items()
        }
        _replace(out / _WEIGHTS, lambda partial: save_file(weights, partial))
    order = most_suspect_first(isolation.scores)
    _save_arrays(out / _HISTORY, _history_arrays(data, isolation, histories, truth))
    top = order[:GALLERY]
    _save_arrays(out / _GALLERY, {"index": top.numpy(), "images": data.images[top].permute(0, 2, 3, 1).numpy()})
    write_text(out / _SUSPECTS, _suspects(data, isolation, order))
    write_json(out / _RECORD, _record_to_json(record))


def _history_arrays(
    data: ImageSet, isolation: Isolation, histories: tuple[History, ...], truth: PoisonedSet | None
) -> dict[str, np.ndarray[Any, Any]]:
    phases = [history.phase for history in histories for _ in history.seconds]
    arrays = {
        "losses": np.concatenate([history.losses for history in histories]),
        "accuracy": np.concatenate([history.accuracy for history in histories]),
        "seconds": np.concatenate([history.seconds for history in histories]),
        "phases": np.array(phases, dtype=np.str_),
        "labels": data.labels.numpy(),
        "scores": isolation.scores.float().numpy(),
        "flagged": isolation.flagged.numpy(),
        "ids": _pack(data.ids),
    }
    if truth is not None:
        arrays |= {"poison": truth.poison.numpy(), "cover": truth.cover.numpy()}
    return arrays


def _suspects(data: ImageSet, isolation: Isolation, order: Tensor) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "id", "label", "score", "flagged"])
    labels, flagged, scores = data.labels.tolist(), isolation.flagged.tolist(), isolation.scores.tolist()
    for rank, row in enumerate(order.tolist(), 1):
        writer.writerow([rank, data.ids[row], data.classes[labels[row]], f"{scores[row]:.6g}", int(flagged[row])])
    return text.getvalue()


def read_record(run: Path) -> RunRecord:
    """Read run.json.

    Raises:
        StorageError: There is none, or it is damaged.
    """
    if not run.is_dir():
        raise StorageError(f"no run folder at {run}")
    if not (run / _RECORD).exists():
        raise StorageError(f"{run} holds no finished run (no {_RECORD}); if training was interrupted, use --resume")
    values = _read_json(run / _RECORD)
    try:
        if values.pop("format") != _FORMAT:
            raise TypeError(f"it is not of format {_FORMAT}")
        metrics = Metrics(**values.pop("metrics"))  # type: ignore[arg-type]
        evidence = tuple(str(sentence) for sentence in values.pop("evidence"))  # type: ignore[union-attr]
        return RunRecord(metrics=metrics, evidence=evidence, **values)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise StorageError(f"{run / _RECORD} is damaged or of another version: {error}") from None


def load_run(run: Path) -> StoredRun:
    """Read a finished run folder.

    Raises:
        StorageError: A file is missing or damaged.
    """
    record = read_record(run)
    arrays, pictures = _load_arrays(run / _HISTORY), _load_arrays(run / _GALLERY)
    try:
        return StoredRun(
            record=record,
            ids=_unpack(arrays["ids"]),
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
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{run} is damaged or of another version: {error}") from None


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
        raise StorageError(f"{run / _RECORD} is damaged or of another version: {error}") from None
    model = rebuild(spec)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageError(f"{path} is damaged or belongs to another network: {' '.join(str(error).split())}") from None
    return model.eval()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        StorageError: It cannot be written.
    """
    _replace(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, values: object) -> None:
    """Write a JSON file, whole or not at all; see :func:`write_text`."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _record_to_json(record: RunRecord) -> dict[str, object]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    values |= {
        "metrics": dataclasses.asdict(record.metrics),
        "model": dict(record.model),
        "data": dict(record.data),
    }
    return {"format": _FORMAT, **values}


def _read_json(path: Path) -> dict[str, Json]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path} is missing, so the run cannot be continued; give another --out") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise StorageError(f"{path} is damaged: it holds no settings")
    return values


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"cannot write {path}: {reason}") from None


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder")
    partial = path.with_name(f".{path.name}.partial")
    with _writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _save_arrays(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    _replace(path, write)


def _load_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        file: IO[bytes]
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise StorageError(f"{path} is missing or damaged: {error}") from None


def _pack(ids: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # A JSON list as bytes: a numpy string array would give every id the length of the longest.
    return np.frombuffer(json.dumps(ids).encode(), dtype=np.uint8)


def _unpack(packed: np.ndarray[Any, Any]) -> tuple[str, ...]:
    return tuple(json.loads(packed.tobytes()))
