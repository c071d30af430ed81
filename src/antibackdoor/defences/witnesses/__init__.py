"""Defence ``witnesses``, the default: a detector and a frozen encoder, one decision with a stated error."""

from __future__ import annotations

from dataclasses import dataclass

from antibackdoor.defences.base import Defence
from antibackdoor.defences.witnesses.flow import Search
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel
from antibackdoor.models.encoders import DEFAULT_ENCODER, check_encoder, encoder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import ImageSet, Outcome

__all__ = ["Witnesses"]


@dataclass(frozen=True)
class Witnesses(Defence):
    """Ordinary training without what two witnesses agree on: how images are learned, and what an encoder sees in them.

    1. A small network learns the set without augmentation; a forward pass after every epoch gives every image a
       trajectory of losses. A frozen public encoder gives it features.
    2. Every class is cut into parts by both together, and every part is asked what poison would answer otherwise than a
       clean part: ``evidence.QUESTIONS``. Images in which another class is seen are set against that class: ``origin``.
    3. The answers have p-values from clean trainings; combined, and corrected for the number of classes, they accuse a
       class at an error of ``alpha``.
    4. The network that is asked for is trained without the suspects, and judges those that it was not shown.

    Attributes:
        alpha: Largest probability of accusing any class of a clean set in one look, above 0 and below 1, as far as the
            null holds (``calibration``: few clean runs so far).
        witness: The encoder: "efficientnet-lite0", "timm:NAME", "own:MODULE" or "none".

    Raises:
        ConfigError: ``alpha`` is out of its range.
        UnknownNameError: No encoder has that name.

    Source:
        Ours; the rooms name what each step was taken from.
    """

    alpha: float = 0.01
    witness: str = DEFAULT_ENCODER

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha: must be above 0 and below 1, got {self.alpha}")
        check_encoder(self.witness)

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train the detector, ask the encoder, and decide once."""
        search = self._search(data, build_model, fit, plan, seeds)
        search.look_with_detector()
        return search.outcome(scanned=True)

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Decide, train without the suspects, and let that network judge."""
        search = self._search(data, build_model, fit, plan, seeds)
        search.look_with_detector()
        search.train()
        return search.outcome(scanned=False)

    def _search(self, data: ImageSet, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Search:
        return Search(data, build_model, fit, plan, seeds, self.alpha, encoder_from(self.witness, fit.runtime.device))
