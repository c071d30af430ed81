"""Which defences work without batch normalisation and convolutions: those that docs/finetuning.md says do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from antibackdoor.attacks import BadNets, poison
from antibackdoor.defences import DEFENCES, RatedDefence, TrustedDefence
from antibackdoor.errors import ConfigError
from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer, TrainPlan

DOCUMENT = Path(__file__).parents[2] / "docs" / "finetuning.md"
# AdamW, a lower rate for the backbone and an average, as fine-tuning has them.
PLAN = TrainPlan(epochs=2, batch_size=32, lr=1e-3, schedule="cosine", augment=("flip",), optimizer="adamw")
PLAN = PLAN.but(backbone_lr=0.5, warmup=0.1, ema=0.5, weight_decay=0.05)
SHORTER = {"isolation_epochs": 2, "unlearn_epochs": 1, "biased_epochs": 1, "scan_epochs": 1, "rounds": 1}
SHORTER |= {"tune_updates": 2, "updates": 2, "curve_updates": 2, "tune_epochs": 1, "epochs": 3, "turning_epoch": 2}
SHORTER |= {"witness": "none", "fewest": 1, "detector": "wrn-10-1"}


class TinyAttention(nn.Module):
    """Patches of 4x4 pixels through one attention layer with LayerNorm; no convolution, no batch normalisation."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(16 * channels, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
        return self.head(self.norm(self.block(self.embed(patches)).mean(1)))


def rows_of_the_table():
    lines = re.findall(r"^\| `([a-z-]+)` \| (.+?) \| (.+?) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: with_attention for name, _, with_attention in lines}


def test_the_table_names_every_defence():
    assert sorted(rows_of_the_table()) == sorted(DEFENCES)


@pytest.mark.parametrize("name", list(DEFENCES))
def test_a_defence_works_with_attention_or_says_at_once_that_it_does_not(name, runtime, blobs):
    data = blobs(48, 2, channels=1, height=16, width=16)
    observed = poison(data, BadNets(target=1), rate=0.1, generator=torch.Generator().manual_seed(0)).observed
    known = DEFENCES.get(name).__dataclass_fields__
    skipped = {"updates", "witness"} if name.startswith("abl-") else set()
    defence = DEFENCES.build(name, {k: v for k, v in SHORTER.items() if k in known and k not in skipped})
    if isinstance(defence, TrustedDefence):
        defence = defence.with_trusted(blobs(12, 2, channels=1, height=16, width=16, seed=5))
    if isinstance(defence, RatedDefence):
        defence = defence.with_rate(0.1)
    phases = []

    class Noting(Trainer):
        def fit(self, model, data, phase, **rest):
            phases.append(phase.name)
            return super().fit(model, data, phase, **rest)

    build, _ = builder_from(lambda: TinyAttention(1, 2), observed)
    seeds = Seeds(0)
    works = not rows_of_the_table()[name].startswith("no")

    def run():
        return defence.run(observed, build_model=build, fit=Noting(runtime, seeds), plan=PLAN, seeds=seeds)

    if not works:
        with pytest.raises(ConfigError, match="^(model|isolation|defence)"):
            run()
        assert not phases
        return
    outcome = run()
    assert outcome.model is not None
    with torch.no_grad():
        logits = outcome.model.eval()(observed.images.float() / 255)
    assert bool(logits.isfinite().all())
    assert outcome.isolation.scores.shape == (48,)
