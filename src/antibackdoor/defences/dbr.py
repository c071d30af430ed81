"""D-BR: train, set suspects and clean images apart, then unlearn the ones and relearn the others, round by round.

The published rounds end in collapse or need test labels to choose among them. Here forgetting is bounded, and a tenth
of each part, which the rounds never see, decides: on the clean images, whether the network still classifies; on the
suspects, whether it still gives them their labels.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from antibackdoor.defences.base import Defence
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import SIGNALS, Evidence, Network, Scope, isolate, rank_within_classes
from antibackdoor.models import BuildModel
from antibackdoor.ops.objectives import complement
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, Runtime, Step, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Isolation, Outcome

__all__ = ["Dbr", "Ruling", "Standing"]

Ruling: TypeAlias = Literal["done", "go on", "harmed"]


@dataclass(frozen=True)
class Standing:
    """How the network stands on what the rounds do not see; shares, 0..1.

    Attributes:
        accuracy: On the clean images.
        by_class: The same within each of the K classes; 0 in a class that has none of them.
        agreement: Suspects that are predicted as labelled.
        largest: Suspects that are predicted as the class that most of them are.
        judges: Clean images of each class that judge; () is any number.
    """

    accuracy: float
    by_class: tuple[float, ...]
    agreement: float
    largest: float
    judges: tuple[int, ...] = ()

    @property
    def gain(self) -> float:
        """What the best round has most of: accuracy less agreement."""
        return self.accuracy - self.agreement


@dataclass(frozen=True, eq=False)
class _Parts:
    """The rows, int64, of the suspects and of the clean images: those of the rounds, and those that judge them."""

    suspects: Tensor
    clean: Tensor
    judging_suspects: Tensor
    judging_clean: Tensor


@dataclass(frozen=True)
class Dbr(Defence):
    """Ordinary training by the plan, isolation, then rounds of one epoch of unlearning and one of relearning.

    Differences from the paper: suspects are ranked by ``signal`` and not by the change of features under transforms;
    the clean part is the least suspect share of every class, so that none is missing; unlearning minimises
    ``-log(1 - p)`` of the suspect label, which is bounded, without augmentation and weight decay, with frozen
    batch-normalisation statistics, clipped gradients, fresh momentum in every phase and a higher learning rate, as
    clipped steps are small; rounds stop by :meth:`ruling`, which looks at no test label. If the network does not give
    the suspects their labels to begin with, they are no learned backdoor and nothing is unlearned. What judges was
    trained on before the rounds, so its accuracy is above that on new images.

    Attributes:
        signal: What ranks the images; see ``isolation.signals``.
        scope: Rank suspects over the whole "set" or within each "class".
        share: Share to isolate as suspects, 0..1.
        clean_share: Share of each class that counts as clean, 0..1; the middle is used by neither part.
        hold_out: Share of each part that the rounds do not see, 0..1, at least one image.
        rounds: Most rounds.
        unlearn_lr: Constant learning rate of unlearning.
        unlearn_batch_size: Images in one update of unlearning.
        relearn_lr: Constant learning rate of relearning.
        learnt: Agreement below which suspects are not a learned backdoor.
        harm: Fall of accuracy from which a round is not used.
        patience: Such rounds in a row that end the rounds: a few images judge, and the next round may repair it.
        slack: Fall of accuracy within which forgetting counts as done.
        class_slack: The same, for the accuracy within every class.
        largest: Share of the suspects in one predicted class above which the trigger was moved, not forgotten.

    Source:
        Chen et al., Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples, NeurIPS 2022;
        github.com/SCLBD/Effective_backdoor_defense (20 rounds at a learning rate of 1e-4, parts of 5 % and 20 %).
    """

    signal: str = "trajectory"
    scope: Scope = "set"
    share: float = 0.05
    clean_share: float = 0.2
    hold_out: float = 0.1
    rounds: int = 20
    unlearn_lr: float = 1e-3
    unlearn_batch_size: int = 128
    relearn_lr: float = 1e-3
    learnt: float = 0.9
    harm: float = 0.02
    patience: int = 3
    slack: float = 0.01
    class_slack: float = 0.05
    largest: float = 0.5

    def __post_init__(self) -> None:
        SIGNALS.get(self.signal)
        for name in ("share", "clean_share", "hold_out", "learnt", "harm", "slack", "class_slack", "largest"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be above 0 and below 1, got {getattr(self, name)}")
        for name, least in {"rounds": 1, "patience": 1, "unlearn_batch_size": 2}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        for name in ("unlearn_lr", "relearn_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: must be a finite number above 0, got {value}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan and isolate."""
        model = build_model(seeds.generator("init"))
        isolation, history = self._isolate(model, data, fit, plan)
        return Outcome(model, isolation, (history,))

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, isolate, unlearn and relearn; the network is that of the best round."""
        model = build_model(seeds.generator("init"))
        isolation, history = self._isolate(model, data, fit, plan)
        parts = self._parts(isolation, history, data.labels, seeds)
        rounds, sentence = self._alternate(model, data, parts, fit, plan)
        isolation = dataclasses.replace(isolation, evidence=(*isolation.evidence, sentence))
        return Outcome(model, isolation, (history, *rounds))

    def ruling(self, start: Standing, now: Standing, *, suspects: int) -> Ruling:
        """Say what a round has come to.

        Args:
            start: Before the first round.
            now: After relearning.
            suspects: Suspects that both standings were measured on.

        Returns:
            "harmed" if accuracy fell by more than ``harm``. "done" if suspects get their label no more often than by
            chance (and two standard deviations, yet at most half of them), no class takes most of them, and accuracy is
            kept, over all and within every class: if the suspects carry their right labels, that class goes down
            with them. Else "go on".
        """
        if now.accuracy < start.accuracy - self.harm:
            return "harmed"
        classes = len(start.by_class)
        forgotten = now.agreement <= min(0.5, 1 / classes + 2 * math.sqrt(1 / (classes * suspects)))
        # Of two classes the other one takes all suspects, whether they are seen as what they are or the trigger moved.
        spread = classes == 2 or now.largest <= self.largest
        # Of few judging images one is more than the slack, and one is chance.
        one = [1.5 / max(count, 1) for count in start.judges] or [0.0] * classes
        kept = now.accuracy >= start.accuracy - self.slack and all(
            after >= before - max(self.class_slack, least)
            for before, after, least in zip(start.by_class, now.by_class, one, strict=True)
        )
        return "done" if forgotten and spread and kept else "go on"

    def _isolate(self, model: nn.Module, data: ImageSet, fit: Fit, plan: TrainPlan) -> tuple[Isolation, History]:
        history = fit(model, data, Phase("train", plan))
        evidence = Evidence.of(history, data.labels, data.num_classes, Network(model, data, fit.runtime))
        isolation = isolate(evidence, signal=self.signal, share=self.share, scope=self.scope)
        isolation = dataclasses.replace(isolation, flagged=data.unvouched(isolation.flagged))
        return fit.runtime.first(isolation), history  # All processes must leave out the same images.

    def _parts(self, isolation: Isolation, history: History, labels: Tensor, seeds: Seeds) -> _Parts:
        usable = torch.ones_like(isolation.flagged)
        if history.held_out is not None:
            usable &= ~torch.from_numpy(history.held_out)
        unsuspected = rank_within_classes(isolation.scores, labels) <= self.clean_share
        suspects = self._split(isolation.flagged & usable, seeds.generator("judging suspects"))
        clean = self._split(unsuspected & ~isolation.flagged & usable, seeds.generator("judging clean"))
        return _Parts(suspects[0], clean[0], suspects[1], clean[1])

    def _split(self, part: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = part.nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = max(1, round(self.hold_out * len(rows)))
        return rows[count:], rows[:count]

    def _alternate(
        self, model: nn.Module, data: ImageSet, parts: _Parts, fit: Fit, plan: TrainPlan
    ) -> tuple[list[History], str]:
        """Train the rounds; returns their histories and what came of them."""
        least = 2 * fit.runtime.world
        if min(len(parts.suspects), len(parts.clean)) < least:
            return [], (
                f"Nothing was unlearned: of {len(parts.suspects)} suspects and {len(parts.clean)} clean images both "
                f"must be at least {least}."
            )
        start = _standing(model, data, parts, fit.runtime)
        if start.agreement < self.learnt:
            return [], (
                f"Nothing was unlearned: the network gives {100 * start.agreement:.1f} % of the suspects their label, "
                f"less than the {100 * self.learnt:g} % of a learned backdoor."
            )
        histories: list[History] = []
        best, best_round, weights = start, 0, _copied(model)
        outcome, harmed = f"all {self.rounds} rounds were used", 0
        for number in range(1, self.rounds + 1):
            histories += self._round(number, model, data, parts, fit, plan)
            if histories[-1].stopped:
                outcome = f"round {number} ended in a loss that is not finite"
                break
            now = _standing(model, data, parts, fit.runtime)
            ruling = self.ruling(start, now, suspects=len(parts.judging_suspects))
            harmed = harmed + 1 if ruling == "harmed" else 0
            if harmed == self.patience:
                outcome = f"the last {harmed} of {number} rounds cost too much accuracy"
                break
            # A round that is done is the best: an earlier one with a greater gain has only moved the trigger.
            if ruling == "done" or (not harmed and now.gain > best.gain):
                best, best_round, weights = now, number, _copied(model)
            if ruling == "done":
                outcome = f"round {number} met the stop rule"
                break
        model.load_state_dict(weights)
        return histories, (
            f"Of {len(parts.judging_suspects)} suspects kept apart {100 * start.agreement:.1f} % had their label before"
            f" the rounds and {100 * best.agreement:.1f} % after round {best_round}, whose weights are used; accuracy"
            f" on {len(parts.judging_clean)} clean images kept apart went from {100 * start.accuracy:.1f} to"
            f" {100 * best.accuracy:.1f} %; {outcome}."
        )

    def _round(
        self, number: int, model: nn.Module, data: ImageSet, parts: _Parts, fit: Fit, plan: TrainPlan
    ) -> list[History]:
        """Train one epoch on each part; the second is left out where the first stopped."""
        relearn = plan.by_sgd(epochs=1, lr=self.relearn_lr, schedule="constant")
        unlearn = relearn.but(batch_size=self.unlearn_batch_size, lr=self.unlearn_lr, augment=(), weight_decay=0.0)
        phase = Phase(f"unlearn {number}", unlearn, freeze_norm=True, clip_norm=1.0, stop_on_nonfinite=True)
        histories = [fit(model, data, phase, objective=_forgetting, subset=_mask(parts.suspects, len(data)))]
        if not histories[0].stopped:
            phase = Phase(f"relearn {number}", relearn, stop_on_nonfinite=True)
            histories.append(fit(model, data, phase, subset=_mask(parts.clean, len(data))))
        return histories


def _forgetting(step: Step) -> Tensor:
    return complement(step.logits, step.labels).mean()


def _mask(rows: Tensor, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[rows] = True
    return mask


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _standing(model: nn.Module, data: ImageSet, parts: _Parts, runtime: Runtime) -> Standing:
    classes, clean, suspects = data.num_classes, parts.judging_clean, parts.judging_suspects
    predicted = logits_of(model, data, runtime, index=torch.cat([clean, suspects])).argmax(1)
    on_clean, on_suspects = predicted.split([len(clean), len(suspects)])
    truth = data.labels[clean]
    right = torch.bincount(truth[on_clean == truth], minlength=classes)
    agree = (on_suspects == data.labels[suspects]).sum()
    largest = torch.bincount(on_suspects, minlength=classes).max()
    # The rounds must end alike in all processes, so all of them go by the same figures.
    counts = runtime.sum(torch.cat([right, agree[None], largest[None]]).to(runtime.device)).cpu() // runtime.world
    totals = torch.bincount(truth, minlength=classes)
    return Standing(
        accuracy=int(counts[:-2].sum()) / len(clean),
        by_class=tuple((counts[:-2] / totals.clamp_min(1)).tolist()),
        agreement=int(counts[-2]) / len(suspects),
        largest=int(counts[-1]) / len(suspects),
        judges=tuple(totals.tolist()),
    )
