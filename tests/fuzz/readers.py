"""Everything that reads a file of somebody else: valid content to change, and what is done with it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from changing import changed_bytes, changed_json, changed_npz
from end_to_end import pictures, reseal, write_folder
from hypothesis import strategies as st
from PIL import Image

from antibackdoor import formats, storage
from antibackdoor.benchmark import reading
from antibackdoor.benchmark.folder import read_records
from antibackdoor.benchmark.grid import GridConfig
from antibackdoor.cleaned import list_images
from antibackdoor.comparing import changes_csv, compare_runs, since
from antibackdoor.config import RunConfig
from antibackdoor.data.sources import load
from antibackdoor.decisions import Decision, append_decisions, encode_decisions, read_decisions
from antibackdoor.formats import FORMATS
from antibackdoor.report import write
from antibackdoor.training import Checkpoints
from antibackdoor.verifying import verify_run

GRID = """
data: [embedded, {name: x, source: y}]
attacks: [badnets, {name: sig, rate: [0.1, 0.2]}]
rates: [0.1]
defences: [none, witnesses]
models: [auto]
seeds: [0, 1]
train: {epochs: 1}
skip: [{attack: sig}]
"""
CELL = {
    "format": "antibackdoor cell 1",
    **{"key": "k", "status": "done", "verdict": "poisoned", "evidence": ["It was told."]},
    "cell": {"data": "d", "attack": "badnets", "rate": 0.1, "defence": "none", "model": "m", "seed": 0},
    "config": {"attack": {"name": "badnets", "rate_of": "class"}, "defence": {"name": "none", "rate": 0.1}},
    "metrics": {"ca": 0.5, "asr": 0.5},
    "control": {"ca": 0.5},
    **{"train_seconds": 1.0, "updates": 5},
}
MANIFEST = {"format": "antibackdoor grid 1", "config": {}, "cells": ["a.json"]}
Changes = st.SearchStrategy[bytes]


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        changes: Content, changed from what is valid.
        read: Reads a file of that content, put at the path that it returns first.
        path: Where the content goes.
        named: Every message has the name of the file; otherwise, of a setting in it.
    """

    changes: Changes
    path: Path
    read: Callable[[], object]
    named: bool = True


def use_run(run: Path, other: Path) -> None:
    """Read a run as every command does that reads one."""
    verify_run(run)
    stored = storage.load_run(run)
    findings = formats.read(run)
    for name in FORMATS:
        formats.render(findings, name)
    write(run)
    list_images(stored)
    before = storage.load_run(other)
    changes_csv(compare_runs(before, stored))
    since(before, stored, "baseline")
    storage.load_decided(run)


def readers(folder: Path, done: Path) -> dict[str, Reader]:
    """All of them.

    Args:
        folder: For files.
        done: A finished run.
    """
    run = shutil.copytree(done, folder / "run")
    found: dict[str, Reader] = {}

    def of_run(name: str, change: Callable[[bytes], Changes]) -> None:
        path = run / name
        whole = path.read_bytes()

        def read() -> None:
            try:
                reseal(run)  # What somebody changes on purpose has a checksum that fits.
                use_run(run, done)
            finally:
                path.write_bytes(whole)

        found[name] = Reader(change(whole), path, read)

    of_run("run.json", lambda valid: changed_json(valid) | changed_bytes(valid))
    of_run("history.npz", lambda valid: changed_npz(valid) | changed_bytes(valid))
    of_run("gallery.npz", lambda valid: changed_npz(valid) | changed_bytes(valid))
    of_run("album.npz", lambda valid: changed_npz(valid) | changed_bytes(valid))
    of_run("suspects.csv", changed_bytes)
    found |= _of_networks(run, folder) | _of_sets(folder) | _of_texts(folder, done)
    return found


def _of_networks(run: Path, folder: Path) -> dict[str, Reader]:
    weights, checkpoint = run / "model.safetensors", next(iter(sorted((run / "checkpoints").glob("*.safetensors"))))
    record = storage.read_record(run)
    whole, marks = weights.read_bytes(), (run / "checksums.sha256").read_bytes()

    def read_weights() -> None:
        try:
            reseal(run)
            storage.load_model(run, record)
        finally:
            weights.write_bytes(whole)
            (run / "checksums.sha256").write_bytes(marks)

    own = folder / "checkpoints" / checkpoint.name
    own.parent.mkdir()
    checkpoints = Checkpoints(own.parent, resume=True)
    sums = folder / "sums" / "checksums.sha256"
    shutil.copytree(run, sums.parent)
    return {
        "model.safetensors": Reader(changed_bytes(whole), weights, read_weights),
        "checkpoint": Reader(changed_bytes(checkpoint.read_bytes()), own, lambda: checkpoints.load(own.stem)),
        "checksums.sha256": Reader(changed_bytes(marks), sums, lambda: verify_run(sums.parent)),
    }


def _of_sets(folder: Path) -> dict[str, Reader]:
    images = write_folder(folder / "set", 3, classes=("cat", "dog"))
    content = io.BytesIO()
    np.savez(content, images=pictures(6, 2), labels=np.arange(6) % 2, classes=np.array(["cat", "dog"]))
    table = "path,label,id,split\n" + "".join(
        f"{n}/{k:03d}.png,{n},{n}{k},train\n" for n in ("cat", "dog") for k in range(3)
    )
    shots = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        shots.append(io.BytesIO())
        Image.fromarray(pictures(1)[0]).save(shots[-1], kind)

    def loads(path: Path, source: Path) -> Callable[[], object]:
        def read() -> object:
            try:
                return load(source, cache_dir=folder / "cache")
            finally:
                shutil.rmtree(folder / "cache", ignore_errors=True)
                path.unlink()

        return read

    one, npz, csv = images / "cat" / "zero.png", folder / "set.npz", images / "table.csv"
    return {
        "folder": Reader(st.one_of([changed_bytes(shot.getvalue()) for shot in shots]), one, loads(one, images)),
        "npz": Reader(changed_npz(content.getvalue()) | changed_bytes(content.getvalue()), npz, loads(npz, npz)),
        "manifest": Reader(changed_bytes(table.encode()), csv, loads(csv, csv)),
    }


def _of_texts(folder: Path, done: Path) -> dict[str, Reader]:
    decided = folder / "decisions.csv"
    valid = encode_decisions(
        [
            Decision("a/1.png", "drop"),
            Decision("=b/2.png", "relabel", "owl", "me", "today"),
            Decision("ü", "keep", "cat"),
        ]
    )

    stored, added = storage.load_run(done), Decision("z", "unsure")

    def decide() -> None:
        made = read_decisions(decided)
        append_decisions(decided, [added])
        assert read_decisions(decided) == [*(one for one in made if one.id != "z"), added]
        list_images(stored, made, where=decided)

    grid, config = folder / "grid.yaml", folder / "config.yaml"
    grids = GRID.encode()
    cells = folder / "cells"
    (cells / "cells").mkdir(parents=True)
    (cells / "grid.json").write_text(json.dumps(MANIFEST))

    def tables() -> None:
        reading.read(read_records(cells))

    def whole_grid() -> None:
        (cells / "cells" / "a.json").write_text(json.dumps(CELL))
        try:
            tables()
        finally:
            (cells / "grid.json").write_text(json.dumps(MANIFEST))

    one, all_of_it = cells / "cells" / "a.json", cells / "grid.json"
    return {
        "decisions": Reader(changed_bytes(valid), decided, decide),
        "grid": Reader(changed_bytes(grids), grid, lambda: GridConfig.load(grid).cells(), named=False),
        "configuration": Reader(
            changed_bytes(RunConfig().to_yaml().encode()), config, lambda: RunConfig.load(config), named=False
        ),
        "record of a grid": Reader(
            changed_json(json.dumps(CELL).encode()) | changed_bytes(json.dumps(CELL).encode()), one, tables
        ),
        "grid.json": Reader(changed_json(json.dumps(MANIFEST).encode()), all_of_it, whole_grid),
    }
