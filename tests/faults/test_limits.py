"""Full disks, limits of the system, folders that cannot be written, two processes at once, a clock that jumps."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from end_to_end import FAST
from killing import Command, Mortal, content_of_run, whole
from withholding import Row, judge, refuse_size, small_disk

Killable = tuple[Mortal, dict[str, Command], Path]
# What a test of the default suite does is done there for a few commands, and for all of them under the mark "slow".
FEW = ["export", "poison"]
ALL = [
    *("train (abl-modified)", "train (default)", "scan", "poison", "export", "export (list)", "predict", "compare"),
    *("report", "review", "bench"),
]
BESIDE, ONE_FILE = ("report", "review"), ("export (list)", "predict", "compare")  # what a command writes


def chosen(*left_out: str) -> list[Any]:
    slow = (pytest.param(name, marks=pytest.mark.slow) for name in ALL if name not in (*FEW, *left_out))
    return [*FEW, *slow]


def check(row: Row) -> None:
    assert row.faults == []
    assert row.ended + row.went_on == row.refused == row.restored > 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 kB."""
    with small_disk(tmp_path / "disk", 40_960) as mounted:
        if not mounted:
            pytest.skip("only the superuser can mount a small disk")
        yield tmp_path / "disk"


def all_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", chosen(*BESIDE))
def test_a_full_disk_for_out(name: str, killable: Killable, disk: Path) -> None:
    """The disk is full; then there is room, and the same call goes on as if there had always been."""
    run, commands, folder = killable
    command, out, row = commands[name], folder / "out", Row(name)
    expected, _, _ = whole(run, command, folder)
    (disk / "other.bin").write_bytes(bytes(40_960 if name in ONE_FILE else 36_864))
    shutil.rmtree(out)
    (disk / "out").mkdir()
    out.symlink_to(disk / "out")
    try:
        done = run(*command.first(out))
        assert done["code"] in (1, 2), done
        assert "No space left on device" in done["said"]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        judge(run, command, out, expected, done, row)
    finally:
        out.unlink()
    check(row)


@pytest.mark.parametrize("variable", ["ANTIBACKDOOR_CACHE", "TMPDIR"])
def test_a_full_disk_for_the_cache_and_for_what_is_temporary(variable: str, killable: Killable, disk: Path) -> None:
    run, commands, folder = killable
    (disk / "other.bin").write_bytes(bytes(36_864))
    for name in ("poison", "predict"):
        command, out = commands[name], folder / "out"
        expected, _, _ = whole(run, command, folder)
        shutil.rmtree(out)
        row = Row(name)
        judge(run, command, out, expected, run(*command.first(out), env={variable: str(disk)}), row)
        check(row)
        assert row.ended == (name == "poison" and variable == "ANTIBACKDOOR_CACHE"), row
    assert all_below(disk) == [disk / "other.bin"]


@pytest.mark.parametrize("name", chosen())
def test_limits_of_the_system(name: str, killable: Killable) -> None:
    run, commands, folder = killable
    sizes = {"NOFILE": [6, 8, 12], "FSIZE": [100, 5000], "AS": [1 << 20, 8 << 20]}
    row = refuse_size(run, commands[name], folder, sizes)
    check(row)
    assert row.ended >= 2


@pytest.mark.parametrize("name", chosen())
def test_folders_that_can_only_be_read(name: str, killable: Killable) -> None:
    run, commands, folder = killable
    command, out, row = commands[name], folder / "out", Row(name)
    expected, _, _ = whole(run, command, folder)
    if name not in BESIDE:
        shutil.rmtree(out)
        out.mkdir()
    out.chmod(0o500)
    try:
        done = run(*command.first(out), plain_user=True)
        assert done["code"] == 2, done
        assert "Permission denied" in done["said"]
    finally:
        out.chmod(0o700)
    judge(run, command, out, expected, done, row)
    check(row)


def test_a_cache_that_can_only_be_read_or_is_a_file(killable: Killable, tmp_path: Path) -> None:
    run, commands, folder = killable
    command, out = commands["poison"], folder / "out"
    expected, _, _ = whole(run, command, folder)
    (tmp_path / "held").mkdir(mode=0o500)
    (tmp_path / "file").write_bytes(b"x")
    for cache in ("held", "held/below", "file", "file/below"):
        shutil.rmtree(out)
        row = Row(cache)
        done = run(*command.first(out), env={"ANTIBACKDOOR_CACHE": str(tmp_path / cache)}, plain_user=True)
        assert "Set ANTIBACKDOOR_CACHE to a folder that can be written" in done["said"]
        judge(run, command, out, expected, done, row)
        check(row)
        assert row.ended == 1


def test_a_cache_that_is_deleted_while_it_is_in_use(killable: Killable) -> None:
    """The pixels are mapped from a file that is gone meanwhile: they stay until the process ends."""
    run, commands, folder = killable
    command, out = commands["poison"], folder / "out"
    expected, _, _ = whole(run, command, folder)
    for cache in (folder / "cache").iterdir():
        shutil.rmtree(out)
        done = run(*command.first(out), delete=str(cache))
        assert done["code"] == 0, done
        assert command.content(out) == expected
        assert not cache.exists()


CLOCKS = {"forward": [0, 86_400 * 400], "back": [0, -86_400 * 400], "to and fro": [0, 7200, -7200, 86_400]}


@pytest.mark.parametrize("name", ["poison", pytest.param("train (abl-modified)", marks=pytest.mark.slow)])
@pytest.mark.parametrize("clock", CLOCKS)
def test_a_clock_that_jumps(clock: str, name: str, killable: Killable) -> None:
    run, commands, folder = killable
    command, out, row = commands[name], folder / "out", Row(name)
    expected, _, _ = whole(run, command, folder)
    shutil.rmtree(out)
    judge(run, command, out, expected, run(*command.first(out), clock=CLOCKS[clock]), row)
    check(row)
    assert row.went_on == 1


def test_two_processes_on_one_folder_and_on_one_cache(killable: Killable, tmp_path: Path) -> None:
    """One folder: one of them writes there, the other says so. One cache: both end alike."""
    run, _, folder = killable
    cache, logs = tmp_path / "cache", [tmp_path / f"{number}.txt" for number in range(2)]

    def train(out: str) -> list[str]:
        return ["train", str(folder / "images"), "--out", str(tmp_path / out), *FAST, "--quiet"]

    environment = {"ANTIBACKDOOR_CACHE": str(cache)}
    others = [
        {"args": train(out), "log": str(log), "env": environment}
        for out, log in zip(("same", "other"), logs, strict=True)
    ]
    first = run(*train("same"), env=environment, beside=others)
    second, alone = first["beside"]
    assert sorted((first["code"], second["code"])) == [0, 2]
    said = first["said"] if first["code"] else logs[0].read_text()
    assert said.count("\n") == 1
    assert "another process" in said or "holds another run" in said
    assert alone["code"] == 0, logs[1].read_text()
    assert content_of_run(tmp_path / "same") == content_of_run(tmp_path / "other")
    assert [path for path in cache.iterdir() if path.name.startswith(".building-")] == []
