"""What a victim of CL has learned: the patch, or the noise that should have made its class hard to learn.

    python benchmarks/cl_shortcut.py --data DIR --seeds 0 1

CL succeeds or fails by seed at the CPU size. For each seed this trains a victim as benchmarks/attacks.py does and
prints the share of test images that it gives the target class: of those of the target class and of the others, with the
patch, with noise made for them as CL makes it, with both, and as they are. A victim that gives the class to other
images with noise, and not to those with the patch, has learned the noise.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from attacks import config_for, prepared, read_attack, trained
from torch import Tensor

from antibackdoor.attacks import poison
from antibackdoor.attacks.cl import LabelConsistent
from antibackdoor.attacks.surrogate import train_surrogate
from antibackdoor.data.sources import Loaded, load
from antibackdoor.models import builder_from
from antibackdoor.pipeline import limited
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime, Trainer, logits_of


def measure(drawn: Loaded, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the shares that are given the target class, by kind of image."""
    runtime, seeds, choice = Runtime.create(arguments.device), Seeds(seed), read_attack(arguments.attack)
    build_model, _ = builder_from(arguments.model, drawn.train)
    attack, _ = prepared(choice, drawn.train, build_model, runtime, seeds)
    if not isinstance(attack, LabelConsistent):
        raise SystemExit("--attack must be cl")
    planted = poison(drawn.train, attack, rate=choice.rate, generator=seeds.generator("poison"))
    victim = trained(planted.observed, drawn, seed, arguments)
    fit = Trainer(runtime, seeds.child("surrogate"))
    surrogate = train_surrogate(drawn.train, build_model=build_model, fit=fit, seeds=seeds.child("attack"))
    test, shares = drawn.test, dict[str, Any]()
    assert test is not None

    def share(rows: Tensor, images: Tensor) -> float:
        shown = dataclasses.replace(test.select(rows), images=images)
        return round(float((logits_of(victim, shown, runtime).argmax(1) == attack.target).float().mean()), 3)

    for name, mask in (("target", test.labels == attack.target), ("others", test.labels != attack.target)):
        rows = mask.nonzero().squeeze(1)
        clean, generator = test.images[rows], torch.Generator().manual_seed(0)
        noise = torch.cat([attack.harden(surrogate, part, generator=generator) for part in clean.split(256)])
        noisy = (clean.int() + noise.int()).clamp(0, 255).byte()

        def patched(images: Tensor, rows: Tensor = rows) -> Tensor:
            pixels = attack.stamp_test(images.float().div(255), rows, test.labels[rows])
            return pixels.mul(255).round().byte()

        kinds = {"clean": clean, "patch": patched(clean), "noise": noisy, "noise + patch": patched(noisy)}
        shares |= {f"{name}, {kind}": share(rows, images) for kind, images in kinds.items()}
    return shares


def main() -> None:
    """Print a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--attack", default="cl@0.08")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--limit-test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    data = load(arguments.data)
    for seed in arguments.seeds:
        drawn = limited(data, config_for(seed, arguments).data, Seeds(seed))
        shares = measure(drawn, seed, arguments)
        print(f"seed {seed}: {'; '.join(f'{name} {100 * value:.1f} %' for name, value in shares.items())}", flush=True)


if __name__ == "__main__":
    main()
