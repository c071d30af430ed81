"""How often does ``scan --against`` name something in clean batches, and how often poison? By the encoder alone.

Usage: python benchmarks/against.py --data DIR [--images 2000] [--new 500] [--side 32] [--splits 30] [--json FILE]

Images are drawn once and encoded, clean and with every trigger. Each split deals them into an old set and a new batch,
at random; the batch stays clean, or is poisoned in a share of its images (of the images of the target class for SIG,
which keeps labels). All are dealt to ten contributors at random; one of them has all of the poison, and a tenth of the
rest. No network is trained, so whether poison would be learned is not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import command, made_by, write
from scipy.stats import beta

from antibackdoor.attacks import ATTACKS, Attack
from antibackdoor.data.sources import load, subsample
from antibackdoor.defences.against import Statistics
from antibackdoor.defences.against.groups import by_group
from antibackdoor.defences.against.judge import judge
from antibackdoor.defences.against.projection import contents_of, pictures_of
from antibackdoor.defences.encoding import encoded_by
from antibackdoor.models.encoders import DEFAULT_ENCODER, encoder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime
from antibackdoor.types import Encoded, ImageSet

TARGET, CONTRIBUTORS = 0, 10
CELLS = (
    *(("badnets", rate) for rate in (0.1, 0.05, 0.02)),
    *(("blend", rate) for rate in (0.1, 0.05, 0.02)),
    *(("sig", rate) for rate in (0.5, 0.2)),
)


@dataclass(frozen=True)
class Version:
    """The images with one trigger, or clean: pixels, and what is kept of each."""

    data: ImageSet
    encoded: Encoded
    contents: np.ndarray
    pictures: np.ndarray


@dataclass(frozen=True)
class Found:
    """What came of one split."""

    alarm: bool
    target: bool
    others: int
    recall: float
    precision: float
    contributor: bool
    innocent: int


def stamped(data: ImageSet, attack: Attack) -> ImageSet:
    """Return all images with the trigger, labels as they are."""
    parts = [
        attack.stamp(data.images[rows].float() / 255, rows, data.labels[rows]).mul(255).round().to(torch.uint8)
        for rows in torch.arange(len(data)).split(512)
    ]
    return dataclasses.replace(data, images=torch.cat(parts))


def versions_of(data: ImageSet, runtime: Runtime) -> dict[str, Version]:
    """Encode the images clean and with every trigger."""
    encoder = encoder_from(DEFAULT_ENCODER, runtime.device)
    assert encoder is not None
    found = {}
    for name in ("clean", *dict.fromkeys(name for name, _ in CELLS)):
        own = data
        if name != "clean":
            attack = ATTACKS.build(name, {"target": TARGET})
            given: Any = {"build_model": None, "fit": None, "seeds": Seeds(1).child("attack")}  # none trains anything
            own = stamped(data, attack.prepare(data, **given))
        encoded = encoded_by(encoder, own, runtime)
        found[name] = Version(own, encoded, contents_of(encoded.features), pictures_of(own.images))
    return found


def split(versions: dict[str, Version], name: str | None, rate: float, count: int, seed: int, alpha: float) -> Found:
    """Deal the images into old and new, poison the new ones, and compare."""
    clean = versions["clean"]
    draw = np.random.default_rng(seed)
    rows = draw.permutation(len(clean.data))
    new, old = rows[:count], np.sort(rows[count:])
    kept = Statistics.of(clean.data, clean.encoded, old)
    labels = clean.data.labels.numpy()[new].copy()
    contents, pictures = clean.contents[new].copy(), clean.pictures[new].copy()
    poison = np.zeros(count, dtype=bool)
    if name is not None:
        own = labels == TARGET
        of = np.flatnonzero(own if name == "sig" else ~own)
        poison[of[: round(rate * (len(of) if name == "sig" else count))]] = True
        labels[poison] = TARGET
        contents[poison], pictures[poison] = (
            getattr(versions[name], view)[new[poison]] for view in ("contents", "pictures")
        )
    whose = draw.integers(0, CONTRIBUTORS, count)
    whose[poison] = 0
    judged = judge(kept, contents, pictures, labels, alpha)
    accused = {answer.label for answer in judged.answers if answer.corrected <= alpha}
    groups: Any = by_group("who", [str(one) for one in whose], labels, kept.labels, judged)["groups"]
    stand_out = {group["name"] for group in groups if group["stands_out"]}
    flagged = judged.flagged
    return Found(
        alarm=bool(accused),
        target=TARGET in accused,
        others=len(accused - {TARGET}),
        recall=float(flagged[poison].mean()) if poison.any() else float("nan"),
        precision=float(poison[flagged].mean()) if flagged.any() else float("nan"),
        contributor="0" in stand_out,
        innocent=len(stand_out - {"0"}),
    )


def lines(versions: dict[str, Version], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the figures of a row: clean batches first, then each attack."""
    clean = [split(versions, None, 0, args.new, seed, args.alpha) for seed in range(args.splits)]
    false = sum(found.alarm for found in clean)
    most = 1.0 if false == args.splits else float(beta.ppf(0.95, false + 1, args.splits - false))
    yield {
        "batch": "clean",
        "splits": args.splits,
        "named": false,
        "at most (one-sided 95 %)": round(most, 3),
        "splits with a contributor named": sum(found.contributor or found.innocent > 0 for found in clean),
    }
    for name, rate in CELLS:
        found = [split(versions, name, rate, args.new, seed, args.alpha) for seed in range(args.poisoned_splits)]
        yield {
            "batch": f"{name} {rate:g}",
            "splits": len(found),
            "target named": sum(one.target for one in found),
            "with another class": sum(one.others > 0 for one in found),
            "recall": round(float(np.mean([one.recall for one in found])), 3),
            "precision": round(float(np.nanmean([one.precision for one in found])), 3)
            if any(one.target for one in found)
            else None,
            "contributor named": sum(one.contributor for one in found),
            "with an innocent one": sum(one.innocent > 0 for one in found),
        }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--splits", type=int, default=30)
    parser.add_argument("--poisoned-splits", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = subsample(load(args.data, image_size=args.side).train, args.images, Seeds(7).generator("sample"))
    versions = versions_of(data, Runtime.create(args.device))
    rows = []
    print(command())
    for row in lines(versions, args):
        rows.append(row)
        print("  ".join(f"{name}: {value}" for name, value in row.items()), flush=True)
    if args.json is not None:
        write(args.json, {**made_by(args.device), "rows": rows})


if __name__ == "__main__":
    main()
