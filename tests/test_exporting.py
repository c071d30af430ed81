"""A poisoned set whose writing was cut short: the same call with --overwrite replaces what it left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from end_to_end import invoke, write_folder, write_npz

POISON = ("--attack", "badnets", "--rate", 0.1, "--target", 0, "--quiet", "--device", "cpu")


class KilledError(BaseException):
    """In the place of a kill: nothing of ours catches it, and what runs after it is undone below."""


def moves_until(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let ``count`` renames happen; the next one, and all cleaning up after it, does not."""
    replace, done = os.replace, []

    def counted(source: object, target: object) -> None:
        if len(done) == count:
            monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
            raise KilledError
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", counted)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("before", [True, False], ids=["over a set", "anew"])
def test_a_kill_between_any_two_renames(count: int, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "data"
    for split, seed in (("train", 0), ("test", 1)):
        write_folder(data / split, 6, seed=seed)
    out, again = tmp_path / "out", ("--overwrite",)
    if before:
        assert invoke("poison", data, "--out", out, *POISON).code == 0
    whole = tmp_path / "whole"
    assert invoke("poison", data, "--out", whole, *POISON, "--seed", 5).code == 0
    with monkeypatch.context() as patch:
        moves_until(patch, count)
        if before or count < 2:
            with pytest.raises(KilledError):
                invoke("poison", data, "--out", out, *POISON, "--seed", 5, *(again if before else ()))
    done = invoke("poison", data, "--out", out, *POISON, "--seed", 5, *again)
    assert done.code == 0, done
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert files == {str(path.relative_to(whole)): path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_files_of_others_are_still_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "train" / "mine").mkdir(parents=True)
    done = invoke("poison", write_npz(tmp_path / "d.npz"), "--out", tmp_path / "out", *POISON, "--overwrite")
    assert done.code == 2
    assert (tmp_path / "out" / "train" / "mine").is_dir()
