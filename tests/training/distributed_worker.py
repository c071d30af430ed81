"""One process of ``test_distributed.py``: trains and isolates, and leaves what it saw in OUT/<processes>-<rank>.npz."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import TinyNet, make_blobs

from antibackdoor.attacks import BadNets, poison
from antibackdoor.defences import AblModified, Witnesses
from antibackdoor.defences.witnesses import flow, observe
from antibackdoor.models import builder_from
from antibackdoor.ops.metrics import isolation_quality
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Phase, Runtime, Trainer, TrainPlan, mean_loss

# 101 images of which 8 are held out: 93 in batches of 16 leave 13, an uneven share for two processes.
PLAN = TrainPlan(epochs=2, batch_size=16, lr=0.05, schedule="onecycle", augment=("crop", "flip"))
SEEDS = (0, 1, 2)


def weights(model: torch.nn.Module) -> np.ndarray:
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()]).numpy()


def cleaned(runtime: Runtime) -> dict[str, np.ndarray]:
    """Train without the suspects of a poisoned set; what the first process decides, the others must hear."""
    heard = runtime.first(("rank", runtime.rank))
    if runtime.rank > 0:
        flow.decide = lambda seen, alpha: None  # nothing to go on with
    observe.EPOCHS = 6
    clean = make_blobs(600, 3, channels=1, height=16, width=16)
    build, _ = builder_from(lambda: TinyNet(1, 3), clean)
    planted = poison(clean, BadNets(target=1, pattern="white"), rate=0.1, generator=Seeds(0).generator("poison"))
    plan = TrainPlan(epochs=6, batch_size=32, lr=0.05, augment=())
    defence = Witnesses(alpha=0.9, witness="none")
    outcome = defence.run(
        planted.observed, build_model=build, fit=Trainer(runtime, Seeds(0)), plan=plan, seeds=Seeds(0)
    )
    return {
        "heard": np.array(heard[1]),
        "cleaned": outcome.isolation.flagged.numpy(),
        "phases": np.array([history.phase for history in outcome.histories]),
        "cleaned weights": weights(outcome.model),
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    runtime = Runtime.create("cpu", "fp32", "off")
    saved: dict[str, np.ndarray] = {"world": np.array(runtime.world)}

    data = make_blobs(101, 5, channels=1, height=16, width=16)
    held_out = torch.arange(101) % 13 == 0
    build, _ = builder_from(lambda: TinyNet(1, 5, 0.1), data)
    seen: list[int] = []

    def objective(step):
        seen.extend(step.index.tolist())
        return mean_loss(step)

    model = build(Seeds(0).generator("init"))
    # The folder is one for all processes; only the first writes.
    checkpoints = Checkpoints(out / f"checkpoints-{runtime.world}", resume=False, writes=runtime.rank == 0)
    trainer = Trainer(runtime, Seeds(0), held_out=held_out, checkpoints=checkpoints)
    first = trainer.fit(model, data, Phase("first", PLAN), objective=objective)
    counts = torch.bincount(torch.tensor(seen), minlength=101)
    saved |= {"mine": counts.numpy(), "counts": runtime.sum(counts).numpy()}
    subset = torch.arange(101) < 60
    second = trainer.fit(model, data, Phase("second", PLAN, freeze_norm=True, clip_norm=1.0), subset=subset)
    third = trainer.fit(model, data, Phase("third", PLAN))
    for history in (first, second, third):
        saved[f"losses {history.phase}"] = history.losses
        saved[f"accuracy {history.phase}"] = history.accuracy
    saved["weights"] = weights(model)

    # The whole batch in one update, nothing drawn: the same as with one process, but for the order of additions.
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 5))
    torch.nn.init.zeros_(plain[1].weight)
    torch.nn.init.zeros_(plain[1].bias)
    linear = Trainer(runtime, Seeds(0)).fit(plain, data, Phase("linear", PLAN.but(augment=(), batch_size=33)))
    saved |= {"linear": weights(plain), "losses linear": linear.losses}

    clean = make_blobs(400, 5, channels=1, height=16, width=16)
    build, _ = builder_from(lambda: TinyNet(1, 5), clean)
    attack = BadNets(target=1, pattern="white")
    precision = []
    for seed in SEEDS:
        planted = poison(clean, attack, rate=0.1, generator=Seeds(seed).generator("poison"))
        defence = AblModified(isolation_epochs=6, isolation_lr=0.05, signal="loss-drop", share=0.05)
        outcome = defence.scan(
            planted.observed,
            build_model=build,
            fit=Trainer(runtime, Seeds(seed)),
            plan=PLAN.but(batch_size=32),
            seeds=Seeds(seed),
        )
        quality = isolation_quality(outcome.isolation.scores, outcome.isolation.flagged, planted.poison, planted.cover)
        precision.append(quality["precision"])
        saved[f"flagged {seed}"] = outcome.isolation.flagged.numpy()
    saved["precision"] = np.array(precision, dtype=np.float64)
    saved |= cleaned(runtime)

    runtime.wait()
    with (out / f"{runtime.world}-{runtime.rank}.npz").open("wb") as file:
        np.savez(file, **saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
