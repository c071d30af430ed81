"""How strong and how visible every attack is: undefended victims beside a clean control, over seeds; one JSON.

    python benchmarks/attacks.py --data DIR --attacks badnets@0.05 wanet@0.1:s=0.5,k=4 --json FILE
    python benchmarks/attacks.py --data DIR --grid benchmarks/grids/implant.yaml --limit 20000 --epochs 100 --json FILE
    python benchmarks/attacks.py --data embedded --json FILE --sheets docs/attacks

The second takes its attacks from a grid.

An attack is a name of the table, with the share of the set to poison after an @ (that of its paper by default) and
hyper-parameters after a colon where they differ from its defaults. DIR holds train/ and test/, one folder a class.
Figures of a cell:

* ca, asr, ra: of a network trained on the poisoned set without a defence; control_ca, control_asr, control_ra: of one
  trained on the same images before poisoning, with the same seed, on the same triggered test images (one control for
  all attacks of a seed).
* cover_asr, cover_ra: the same two of test images stamped as covers are, of the classes that covers come from and that
  the attack would change; what covers are for is that the trigger does not fire here. None without covers.
* n_poison, n_cover, n_triggered; seconds_prepare, with an empty cache but for the surrogate that several attacks share
  (seconds_surrogate, once a seed); images_per_second of stamping, on the CPU, in batches of 1,024 floats, best of
  three rounds.
* psnr (dB), ssim, linf (steps of 255): stored poisoned training images against the clean ones, the mean over images;
  psnr_test and so on: triggered test images. Images that the attack leaves as they are (n_unchanged) are left out.
  SSIM is that of Wang et al. 2004: an 11x11 Gaussian window with sigma 1.5, K1 = 0.01, K2 = 0.03, the mean over one
  window a pixel and over channels. Images are mirrored at their edges; with windows inside the image alone a patch in
  the corner hardly counts (BadNets had an SSIM of 1.0 at a PSNR of 23 dB).

A JSON that is there already is continued: only cells that it lacks are run. `--epochs 0` trains no victim: the counts,
the speed, the visibility and the sheets alone. Sheets that are kept in this project are made from `embedded`; the
licences of CIFAR-10, GTSRB and ImageNet do not let a project hold their images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw
from record import commit, kept_cells, made_by, over_seeds, write
from torch import Tensor, nn

from antibackdoor.attacks import ATTACKS, Attack, CleanLabelAttack, poison, triggered_test
from antibackdoor.attacks.surrogate import train_surrogate
from antibackdoor.config import Choice, DataConfig, PoisonConfig, RunConfig, TrainConfig
from antibackdoor.console import ConsoleProgress
from antibackdoor.data.sources import Loaded, load
from antibackdoor.evaluation import evaluate
from antibackdoor.models import BuildModel, builder_from
from antibackdoor.ops.metrics import attack_success_rate, robust_accuracy
from antibackdoor.pipeline import limited, run
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Trainer, logits_of
from antibackdoor.types import ImageSet, PoisonedSet

# Shares of the set where no --rate is given; those of the papers, or of the tables that others compare with.
RATES = {"adap-blend": 0.003, "adap-patch": 0.003, "narcissus": 0.005, "flip": 0.02, "tact": 0.03}
RATE = 0.1
# 80 % of the target class of ten.
CLEAN_LABEL_RATE = 0.08
CHUNK = 1024
SHOWN = 8
FIGURES = (
    *("ca", "asr", "ra", "control_ca", "control_asr", "control_ra", "cover_asr", "cover_ra"),
    *("n_poison", "n_cover", "seconds_prepare", "images_per_second"),
    *("psnr", "ssim", "linf", "psnr_test", "ssim_test", "linf_test"),
)
Stamp = Callable[[Tensor, Tensor, Tensor], Tensor]


def read_attack(text: str) -> PoisonConfig:
    """Return the attack named by ``name``, ``name@rate`` or ``name@rate:key=value,key=value``; values are YAML."""
    head, _, rest = text.partition(":")
    name, _, rate = head.partition("@")
    params: dict[str, Any] = {}
    for item in re.split(r",(?=\w+=)", rest) if rest else []:
        key, _, value = item.partition("=")
        params[key] = yaml.safe_load(value)
    ATTACKS.build(name, params)  # An unknown name or value fails here, before any work.
    default = CLEAN_LABEL_RATE if issubclass(ATTACKS.get(name), CleanLabelAttack) else RATE
    return PoisonConfig(name=name, rate=float(rate) if rate else RATES.get(name, default), params=params)


def of_grid(path: Path) -> list[str]:
    """Return the attacks of a grid (docs/protocol.md) as :func:`read_attack` reads them, one for each rate."""
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    texts = []
    for entry in grid["attacks"]:
        params = {"name": entry} if isinstance(entry, str) else dict(entry)
        name, rates = params.pop("name"), params.pop("rate", grid.get("rates", [RATE]))
        params.pop("label", None)
        values = ",".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in params.items())
        texts += [f"{name}@{rate:g}{':' if values else ''}{values}" for rate in np.atleast_1d(rates)]
    return texts


def psnr_of(images: Tensor, others: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair in dB, float (N,); infinite where nothing differs.

    Args:
        images: float (N, C, H, W) in [0, 1].
        others: The same.
    """
    return -10 * (images - others).double().square().flatten(1).mean(1).log10()


def ssim_of(images: Tensor, others: Tensor) -> Tensor:
    """Return the structural similarity of each pair, float (N,); see the head of this file for the window.

    Args:
        images: float (N, C, H, W) in [0, 1], sides of at least 6.
        others: The same.
    """
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def local_mean(values: Tensor) -> Tensor:
        count, channels, height, width = values.shape
        mirrored = F.pad(values.reshape(count * channels, 1, height, width), (5, 5, 5, 5), mode="reflect")
        return F.conv2d(mirrored, window[None, None])

    x, y = images.double(), others.double()
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar = similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similar.reshape(len(images), -1).mean(1)


def visibility(clean: Tensor, stamped: Tensor) -> dict[str, float | int | None]:
    """Return mean psnr, ssim and linf of stored images against what they were made from, uint8 (N, C, H, W) both."""
    changed = (clean != stamped).flatten(1).any(1)
    rows = changed.nonzero().squeeze(1)[:2000]
    unchanged = len(clean) - int(changed.sum())
    if not len(rows):
        return {"psnr": None, "ssim": None, "linf": None, "n_unchanged": unchanged}
    x, y = clean[rows].float().div(255), stamped[rows].float().div(255)
    linf = (x - y).abs().flatten(1).amax(1).mul(255)
    figures: dict[str, float | int | None] = {
        "psnr": round(float(psnr_of(x, y).mean()), 2),
        "ssim": round(float(ssim_of(x, y).mean()), 4),
        "linf": round(float(linf.mean()), 1),
    }
    return {**figures, "n_unchanged": unchanged}


def stamped_by(stamp: Stamp, data: ImageSet, rows: Tensor) -> Tensor:
    """Return the images ``rows`` of a set as they would be stored with a trigger, uint8 (M, C, H, W)."""
    parts = [
        stamp(data.images[part].float().div(255), part, data.labels[part]).mul(255).round().clamp(0, 255).byte()
        for part in rows.split(CHUNK)
    ]
    return torch.cat(parts) if parts else data.images[rows]


def stamping_speed(attack: Attack, data: ImageSet, poisoned: Tensor) -> float | None:
    """Return images a second, on 10,000 images (fewer above 64 pixels), the poisoned ones over and over."""
    if not len(poisoned):
        return None
    # Half a gigabyte of floats at most.
    count = min(10_000, max(CHUNK, (1 << 27) // data.images[0].numel()))
    rows = poisoned.repeat(-(-count // len(poisoned)))[:count]
    parts = [(data.images[part].float().div(255), part, data.labels[part]) for part in rows.split(CHUNK)]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        for part in parts:
            attack.stamp(*part)
        seconds.append(time.perf_counter() - started)
    return round(len(rows) / min(seconds), 1)


def cover_figures(model: nn.Module, attack: Attack, test: ImageSet, runtime: Runtime) -> dict[str, float | None]:
    """Return how often test images stamped as covers get the class of the attack, and their own."""
    rows = (attack.cover_candidates(test.labels) & (attack.target_of(test.labels) != test.labels)).nonzero().squeeze(1)
    if attack.cover_count(100) == 0 or not len(rows):
        return {"cover_asr": None, "cover_ra": None}
    images = dataclasses.replace(test.select(rows), images=stamped_by(attack.stamp_cover, test, rows))
    predicted = logits_of(model, images, runtime).argmax(1)
    return {
        "cover_asr": attack_success_rate(predicted, attack.target_of(images.labels)),
        "cover_ra": robust_accuracy(predicted, images.labels),
    }


def prepared(
    choice: PoisonConfig, clean: ImageSet, build_model: BuildModel, runtime: Runtime, seeds: Seeds
) -> tuple[Attack, float]:
    """Return the attack ready for use, with the streams that ``pipeline.plant`` gives it, and the seconds it took."""
    trainer = Trainer(runtime, seeds.child("surrogate"), progress=ConsoleProgress(quiet=True))
    attack = ATTACKS.build(choice.name, choice.params)
    started = time.perf_counter()
    ready = attack.prepare(clean, build_model=build_model, fit=trainer, seeds=seeds.child("attack"))
    return ready, round(time.perf_counter() - started, 3)


def shared_surrogate(clean: ImageSet, seed: int, arguments: argparse.Namespace) -> float:
    """Put the surrogate that attacks train by default into the cache; return the seconds it took."""
    runtime, seeds = Runtime.create(arguments.device), Seeds(seed)
    build_model, _ = builder_from(arguments.model, clean)
    trainer = Trainer(runtime, seeds.child("surrogate"), progress=ConsoleProgress(quiet=True))
    started = time.perf_counter()
    train_surrogate(clean, build_model=build_model, fit=trainer, seeds=seeds.child("attack"))
    return round(time.perf_counter() - started, 3)


def contact_sheet(attack: Attack, data: ImageSet, planted: PoisonedSet, test: ImageSet, path: Path) -> None:
    """Draw 8 images a row: original, stamped, their difference times 10; test images too where they differ in kind."""
    rows = planted.poison.nonzero().squeeze(1)[:: max(1, int(planted.poison.sum()) // SHOWN)][:SHOWN]
    sources = planted.made_of[rows]
    before, after = data.images[sources], planted.observed.images[rows]
    strips = [("original", before), ("stamped", after), ("diff. x10", _difference(before, after))]
    if not torch.equal(stamped_by(attack.stamp_test, data, sources), stamped_by(attack.stamp, data, sources)):
        attack = attack.for_test(test)
        allowed = attack.test_candidates(test.labels).nonzero().squeeze(1)
        rows = allowed[:: max(1, len(allowed) // SHOWN)][:SHOWN]
        before, after = test.images[rows], stamped_by(attack.stamp_test, test, rows)
        strips += [("test", before), ("triggered", after), ("diff. x10", _difference(before, after))]
    _, height, width = data.shape
    zoom, gap, margin = max(1, 80 // max(height, width)), 2, 64
    cell_y, cell_x = height * zoom + gap, width * zoom + gap
    sheet = Image.new("RGB", (margin + SHOWN * cell_x, len(strips) * cell_y), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (title, images) in enumerate(strips):
        draw.text((4, row * cell_y + cell_y // 2 - 6), title, fill="black")
        for column, image in enumerate(images):
            pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
            picture = Image.fromarray(pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (margin + column * cell_x, row * cell_y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(path, optimize=True)


def measure(
    text: str,
    choice: PoisonConfig,
    seed: int,
    drawn: Loaded,
    control: nn.Module | None,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Run one attack with one seed and return its figures."""
    assert drawn.test is not None
    runtime, seeds = Runtime.create(arguments.device), Seeds(seed)
    build_model, _ = builder_from(arguments.model, drawn.train)
    attack, seconds_prepare = prepared(choice, drawn.train, build_model, runtime, seeds)
    planted = poison(drawn.train, attack, rate=choice.rate, generator=seeds.generator("poison"))
    triggered = triggered_test(drawn.test, attack)
    chosen = planted.poison.nonzero().squeeze(1)
    tested = attack.test_candidates(drawn.test.labels).nonzero().squeeze(1)
    cell: dict[str, Any] = {
        "attack": text,
        "seed": seed,
        "commit": commit(),
        "rate": choice.rate,
        "n_train": len(planted.observed),
        "n_test": len(drawn.test),
        "n_poison": len(chosen),
        "n_cover": int(planted.cover.sum()),
        "n_triggered": len(triggered.observed),
        "seconds_prepare": seconds_prepare,
        "seconds_surrogate": arguments.seconds_surrogate,
        "images_per_second": stamping_speed(attack, drawn.train, planted.made_of[chosen]),
        **visibility(drawn.train.images[planted.made_of[chosen]], planted.observed.images[chosen]),
    }
    of_test = visibility(drawn.test.images[tested], triggered.observed.images)
    cell |= {f"{name}_test": value for name, value in of_test.items()}
    if control is not None:
        started = time.perf_counter()
        victim = trained(planted.observed, drawn, seed, arguments)
        for prefix, model in (("", victim), ("control_", control)):
            figures = evaluate(model, runtime, test=drawn.test, triggered=triggered)
            cell |= {f"{prefix}{name}": getattr(figures, name) for name in ("ca", "asr", "ra")}
        cell |= cover_figures(victim, attack, drawn.test, runtime)
        cell["seconds_train"] = round(time.perf_counter() - started, 1)
    if arguments.sheets and seed == arguments.seeds[0]:
        name = re.sub(r"[^\w.-]+", "-", re.sub(r"@[\d.]+", "", text))
        contact_sheet(attack, drawn.train, planted, drawn.test, arguments.sheets / f"{name}.png")
    return cell


def trained(train: ImageSet, drawn: Loaded, seed: int, arguments: argparse.Namespace) -> nn.Module:
    """Return an undefended network, trained as ``antibackdoor train --defence none`` trains."""
    config = config_for(seed, arguments).model_copy(update={"data": DataConfig(holdout=0)})
    result = run(config, data=Loaded(train, drawn.test), progress=ConsoleProgress(quiet=True))
    if result.model is None:
        raise SystemExit("the undefended run gave no network")
    return result.model


def config_for(seed: int, arguments: argparse.Namespace) -> RunConfig:
    """Return the configuration of a seed's undefended runs, without the attack."""
    embedded = arguments.data == "embedded"
    return RunConfig(
        data=DataConfig(limit=arguments.limit or None, limit_test=arguments.limit_test or None),
        model=arguments.model,
        defence=Choice(name="none"),
        # Clothes stand in the middle of the embedded pictures, so the demonstration does not shift them either.
        train=TrainConfig(epochs=max(1, arguments.epochs), augment=("flip",) if embedded else ("crop", "flip")),
        seed=seed,
        device=arguments.device,
    )


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and spread (standard deviation) over seeds of every attack."""
    rows = []
    for attack in dict.fromkeys(cell["attack"] for cell in cells):
        group = [cell for cell in cells if cell["attack"] == attack]
        row: dict[str, Any] = {"attack": attack, "n": len(group), "rate": group[0]["rate"]}
        rows.append(row | over_seeds(group, FIGURES))
    return rows


def main() -> None:
    """Run every attack with every seed, printing a line a cell, and write the JSON after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/ and test/, or the word embedded")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), metavar="NAME[@RATE][:KEY=VALUE,...]")
    parser.add_argument("--grid", type=Path, help="YAML file of a grid whose attacks are taken in place of --attacks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=6000, help="training images; 0 takes all")
    parser.add_argument("--limit-test", type=int, default=2000, help="test images; 0 takes all")
    parser.add_argument("--epochs", type=int, default=20, help="0 trains nothing")
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets, which hold images of the data")
    arguments = parser.parse_args()
    choices = {text: read_attack(text) for text in (of_grid(arguments.grid) if arguments.grid else arguments.attacks)}
    data = load(arguments.data)
    cells = kept_cells(arguments.json)
    done = {(cell["attack"], cell["seed"]) for cell in cells}
    for seed in arguments.seeds:
        wanted = {text: choice for text, choice in choices.items() if (text, seed) not in done}
        if not wanted:
            continue
        drawn = limited(data, config_for(seed, arguments).data, Seeds(seed))
        if drawn.test is None:
            parser.error(f"--data {arguments.data} has no test images")
        control = trained(drawn.train, drawn, seed, arguments) if arguments.epochs else None
        with _empty_cache():
            optimised = any(hasattr(ATTACKS.get(choice.name), "surrogate_epochs") for choice in wanted.values())
            arguments.seconds_surrogate = shared_surrogate(drawn.train, seed, arguments) if optimised else None
            for text, choice in wanted.items():
                cell = measure(text, choice, seed, drawn, control, arguments)
                cells.append(cell)
                names = ("ca", "control_ca", "asr", "control_asr", "cover_asr")
                shares = " ".join(f"{n} {100 * cell[n]:5.1f}" for n in names if cell.get(n) is not None)
                seconds = f"{cell['seconds_prepare']} s, {cell['images_per_second']}/s"
                print(f"{text:24s} seed {seed}: {shares} psnr {cell['psnr']} {seconds}", flush=True)
                _write(arguments, cells)


def _write(arguments: argparse.Namespace, cells: list[dict[str, Any]]) -> None:
    source = "embedded" if arguments.data == "embedded" else Path(arguments.data).name
    config = config_for(arguments.seeds[0], arguments).dump() | {"data": source}
    if not arguments.epochs:
        config["train"] = None
    content = {
        **made_by(arguments.device),
        "config": config,
        "summary": summarise(cells),
        "cells": cells,
    }
    write(arguments.json, content)


def _difference(before: Tensor, after: Tensor) -> Tensor:
    return (before.int() - after.int()).abs().mul(10).clamp(0, 255).byte()


class _empty_cache:
    """A cache of its own, so that the seconds of a preparation are those of making it."""

    def __enter__(self) -> None:
        self._before = os.environ.get("ANTIBACKDOOR_CACHE")
        self._folder = tempfile.TemporaryDirectory()
        os.environ["ANTIBACKDOOR_CACHE"] = self._folder.name

    def __exit__(self, *_: object) -> None:
        del os.environ["ANTIBACKDOOR_CACHE"]
        if self._before is not None:
            os.environ["ANTIBACKDOOR_CACHE"] = self._before
        self._folder.cleanup()


if __name__ == "__main__":
    main()
