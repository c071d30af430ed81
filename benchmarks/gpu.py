"""Use a borrowed GPU for a stated time: what the committed records lack, most important first.

Usage: scripts/gpu.sh [MINUTES] [options below]        (or: python benchmarks/gpu.py --minutes 12 [options])

The steps, in order: the machine is looked at; ``speed`` (all of ABL, uncompiled, compiled and as CUDA graphs, and a
profile of the loop); ``tests`` (those marked ``gpu``); ``first`` (CIFAR-10: clean, BadNets, Blend, SIG, each with none,
ABL's released code and the default); ``attacks`` (the rest of the paper's ten); ``imagenette`` (ResNet-34). Every step
is a process of its own, ended when the time is over, and every record is in ``records.jsonl`` of --out the moment it is
there, so that a cut-off loses the cells in flight alone. A step whose records are committed (benchmarks/results/gpu) is
left out.

``python benchmarks/gpu_work.py keep OUT`` then writes what came back into benchmarks/results/gpu.

This file needs the standard library alone: it says what is missing before anything large is imported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("speed", "tests", "first", "attacks", "imagenette")
SETS = {"first": "cifar10", "attacks": "cifar10", "imagenette": "imagenette"}
# Of the whole time, at most: what hangs must not cost the rest.
SHARES = {"speed": 0.35, "tests": 0.25}
NEEDED: tuple[str, ...] = (
    "torch",
    "numpy",
    "scikit-learn",
    "pillow",
    "accelerate",
    "safetensors",
    "typer",
    "rich",
    "jinja2",
    "joblib",
)
NEEDED += ("matplotlib", "pydantic", "pyyaml", "filelock", "pytest", "pytest-timeout", "hypothesis")
RESERVE, LEAST, PATIENCE = 5.0, 15.0, 3.0  # seconds: kept back at the end; a step is worth; between two signals


@dataclass(frozen=True)
class Done:
    """How a step ended.

    Attributes:
        step: Its name.
        ended: "done", "failed", "cut off", or why it was not begun.
        seconds: How long it took.
    """

    step: str
    ended: str
    seconds: float = 0.0


def look_at(device: str) -> dict[str, Any]:
    """Return what machine this is.

    Raises:
        SystemExit: With one line and code 2, where a package or the GPU is missing.
    """
    versions, missing = {}, []
    for name in NEEDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        refuse(f"{sys.executable} lacks {', '.join(missing)}: pip install, or carry wheels (scripts/gpu.sh --pack)")
    cards = ""
    if device.startswith("cuda"):
        words = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader"]
        try:
            cards = subprocess.run(words, capture_output=True, text=True, check=True, timeout=8).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            refuse(f"no GPU here ({type(error).__name__} of nvidia-smi); --device cpu tries the script without one")
    return {
        "python": sys.version.split()[0],
        "versions": versions,
        "cards": cards.splitlines(),
        "processors": len(os.sched_getaffinity(0)),
        "free_disk_gb": round(shutil.disk_usage(tempfile.gettempdir()).free / 1e9, 1),
        "device": device,
    }


def refuse(line: str) -> None:
    """End with one line and the code of wrong input."""
    print(f"gpu.py: {line}", file=sys.stderr)
    raise SystemExit(2)


def environment(work: Path) -> dict[str, str]:
    """Return the variables of the steps: the package from its source, with its name and version where not installed."""
    paths = [str(ROOT / "src"), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        importlib.metadata.version("antibackdoor")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        about = work / "site" / f"{project['name']}-{project['version']}.dist-info"
        about.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (about / "METADATA").write_text(text, encoding="utf-8")
        paths.append(str(work / "site"))
    cache = {"ANTIBACKDOOR_CACHE": str(work / "cache")}
    return {**os.environ, **cache, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def unpacking(
    carried: Path, work: Path, names: Sequence[str], env: dict[str, str]
) -> dict[str, subprocess.Popen[bytes]]:
    """Begin to unpack and decode the image sets that were carried, beside the first steps; returns a process a set."""
    begun = {}
    for name in names:
        if any(carried.glob(f"{name}*.tar.xz")):
            code = (
                "import subprocess, sys\nfrom antibackdoor.data.sources import load\n"
                "subprocess.run([sys.executable, *sys.argv[1:]], check=True)\nload(sys.argv[2] + '/' + sys.argv[3])"
            )
            words = [sys.executable, "-c", code, str(carried / "unpack.py"), str(work / "data"), name]
            begun[name] = subprocess.Popen(words, env=env, start_new_session=True)
    return begun


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: first asked, then killed."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                continue


def words_of(step: str, args: argparse.Namespace, sources: dict[str, str], work: Path) -> list[str]:
    """Return the command of a step."""
    if step == "tests":
        report = ["--junitxml", str(args.out / "tests.xml"), "-p", "no:cacheprovider"]
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", *report, str(ROOT / "tests" / "gpu")]
    program, common = str(ROOT / "benchmarks" / "gpu_work.py"), ["--device", args.device, "--out", str(args.out)]
    if step == "speed":
        sizes = ["--images", str(args.speed_images), "--epochs", str(args.speed_epochs)]
        return [sys.executable, program, "speed", *common, *sizes, "--batch-size", str(args.batch_size)]
    places = [word for name, place in sources.items() for word in ("--data", f"{name}={place}")]
    jobs = ["--jobs", str(args.jobs)] if args.jobs else []
    where = ["--grid", str(args.grid), "--results", str(args.results), "--work", str(work)]
    return [sys.executable, program, "cells", step, *common, *places, *jobs, *where]


def run_step(step: str, words: Sequence[str], env: dict[str, str], log: Path, seconds: float) -> Done:
    """Run one step for so many seconds at most; what it prints goes to the log, its last lines to the screen too."""
    started = time.monotonic()
    print(f"{step}: at most {seconds:.0f} s", flush=True)
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as stream:
        process = subprocess.Popen(
            words, stdout=stream, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            ended = "done" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            ended = "cut off"
        finally:
            stop(process)
    with log.open("rb") as stream:
        stream.seek(before)
        lines = stream.read().decode(errors="replace").splitlines()
    print("\n".join(f"  {line}" for line in lines[-12:]), flush=True)
    return Done(step, ended, time.monotonic() - started)


def why_not(step: str, args: argparse.Namespace, sources: dict[str, str]) -> str | None:
    """Return why a step is not to be run, or None; which cells are missing, a step of the grid sees itself."""
    if step in SETS:
        return None if SETS[step] in sources else f"no {SETS[step]}: give --data {SETS[step]}=DIR, or carry it"
    kept = args.results / f"{step}.json"
    if kept.exists() and step not in args.again:
        return f"{kept.name} is committed; --again {step} runs it once more"
    return None


@contextmanager
def scratch(given: Path | None) -> Iterator[Path]:
    """Give the folder that the work is done in, a new one that is removed if none was named."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run_all(args: argparse.Namespace, until: float) -> list[Done]:
    """Run the steps until a moment of ``time.monotonic``; returns how each ended."""
    args.out.mkdir(parents=True, exist_ok=True)
    machine = look_at(args.device)
    (args.out / "machine.json").write_text(json.dumps(machine, indent=1) + "\n", encoding="utf-8")
    print(f"{', '.join(machine['cards']) or args.device}; {machine['processors']} processors", flush=True)
    sources = dict(text.split("=", 1) for text in args.data)
    ended: list[Done] = []
    with scratch(args.work) as work:
        env = environment(work)
        wanted = sorted({SETS[step] for step in args.steps if step in SETS} - sources.keys())
        begun = unpacking(args.carried, work, wanted, env)
        sources |= {name: str(work / "data" / name) for name in begun}
        try:
            for step in args.steps:
                reason = why_not(step, args, sources)
                reason = reason or wait_for(begun.get(SETS.get(step, "")), until)
                left = min(until - time.monotonic(), SHARES.get(step, 1.0) * 60 * args.minutes)
                if reason is None and left < LEAST:
                    reason = "no time left"
                words = words_of(step, args, sources, work)
                log = args.out / "log.txt"
                ended.append(Done(step, reason) if reason else run_step(step, words, env, log, left))
                rows = [vars(done) for done in ended]
                (args.out / "summary.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        finally:
            for process in begun.values():
                stop(process)
    return ended


def wait_for(process: subprocess.Popen[bytes] | None, until: float) -> str | None:
    """Wait for a set to be there; returns what went wrong, or None."""
    if process is None:
        return None
    try:
        code = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "no time left: its images were not unpacked"
    return None if code == 0 else "its images could not be unpacked"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=12.0, help="the end of everything (default 12)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="what comes back (default build/gpu)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script (default cuda)")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=DIR", help="cifar10, imagenette")
    parser.add_argument("--carried", type=Path, default=ROOT / "build" / "data", help="packed sets (scripts/gpu.sh)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="which (default all)")
    parser.add_argument("--again", nargs="+", choices=("speed", "tests"), default=[], help="run although committed")
    parser.add_argument("--jobs", type=int, help="cells at once (default 4 on a GPU)")
    parser.add_argument("--speed-images", type=int, default=50_000, help="drawn images of the speed step")
    parser.add_argument("--speed-epochs", type=int, default=100, help="epochs of ABL in the speed step, 3 at least")
    parser.add_argument("--batch-size", type=int, default=1024, help="of the speed step; the rate is scaled")
    parser.add_argument("--grid", type=Path, default=ROOT / "benchmarks" / "grids" / "paper.yaml")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/gpu", help="committed records")
    parser.add_argument("--work", type=Path, help="folder to work in (default a new one, removed at the end)")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error("--minutes must be above 0")
    if strange := [text for text in args.data if "=" not in text]:
        parser.error(f"--data {strange[0]!r}: expected NAME=DIR")
    for name in ("out", "grid", "results", "carried"):
        setattr(args, name, getattr(args, name).resolve())
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; returns 1 where a step failed."""
    started = time.monotonic()
    args = parse(argv)
    ended = run_all(args, started + 60 * args.minutes - RESERVE)
    for done in ended:
        print(f"{done.step:12}{done.seconds:7.1f} s  {done.ended}")
    print(f"{time.monotonic() - started:.0f} s in all; {args.out.name}/: {', '.join(sorted(os.listdir(args.out)))}")
    return int(any(done.ended.startswith("failed") for done in ended))


if __name__ == "__main__":
    sys.exit(main())
