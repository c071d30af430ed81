"""What cleanlab takes for label errors is removed: the tool that is at hand today, and knows nothing of backdoors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.defences.base import Defence
from antibackdoor.defences.encoding import encode
from antibackdoor.defences.retrain import without_flagged
from antibackdoor.errors import ConfigError
from antibackdoor.extras import need
from antibackdoor.models import BuildModel
from antibackdoor.models.encoders import NO_ENCODER, check_encoder, encoder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan, logits_of
from antibackdoor.types import History, ImageSet, Isolation, Outcome

__all__ = ["Cleanlab", "folds_of", "predicted_from_features"]

FILTERS = (
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "predicted_neq_given",
    "low_normalized_margin",
    "low_self_confidence",
)


def folds_of(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Return the fold of every image, int64 (N,) in 0..folds-1, every class spread evenly.

    Args:
        labels: int64 (N,).
        folds: How many.
        generator: Draws them.
    """
    found = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        found[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % folds
    return found


def predicted_from_features(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    trained: NDArray[np.bool_],
    fold: NDArray[np.int64],
    num_classes: int,
) -> NDArray[np.float64]:
    """Return probabilities of logistic regressions that were not fitted to the image in question, (N, K).

    Args:
        features: (N, D); each is brought to mean 0 and deviation 1 over what a regression is fitted to.
        labels: (N,).
        trained: bool (N,), who may be fitted to.
        fold: (N,), whom a regression leaves out together.
        num_classes: K.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predicted = np.zeros((len(labels), num_classes))
    for number in np.unique(fold):
        rows, others = fold == number, trained & (fold != number)
        if len(np.unique(labels[others])) < 2:
            predicted[np.ix_(rows, np.unique(labels[others]))] = 1.0
            continue
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=400))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(features[others], labels[others])
        predicted[np.ix_(rows, regression.classes_)] = regression.predict_proba(features[rows])
    return predicted


@dataclass(frozen=True)
class Cleanlab(Defence):
    """Remove the images whose labels cleanlab takes for errors, and train on the rest.

    Every image is predicted without having been trained on: the set is cut into ``folds``, each class evenly, and a
    network is trained by the plan without each in turn (``witness`` none), or logistic regressions are fitted to the
    features of a frozen encoder (``witness`` efficientnet-lite0, or another). ``cleanlab.filter.find_label_issues``
    says from these probabilities which labels are wrong, and a network is trained by the plan without them. Scores are
    1 minus the probability of the given label. Costs ``folds`` - 1 trainings beside the last, or one and a pass of the
    encoder.

    It looks for wrong labels and not for backdoors, so it is what is at hand today and no rival. A network that has
    learned a trigger from the other folds takes poison for what its label says, and flags none of it; poison under its
    right label is no label error to either. It flags wrong and hard labels of clean sets too, so the verdict is always
    "undecided". Needs the extra ``cleanlab``.

    Attributes:
        witness: Encoder whose features are looked at, as for the defence ``witnesses``; "none" for networks of the run.
        folds: At least 2.
        filter_by: The rule of cleanlab's that decides.

    Source:
        Northcutt, Jiang, Chuang, Confident Learning, JAIR 2021; the package cleanlab, with its defaults. Features of a
        pretrained network with logistic regression are what its tutorials for images begin with.
    """

    witness: str = NO_ENCODER
    folds: int = 5
    filter_by: str = "prune_by_noise_rate"

    def __post_init__(self) -> None:
        check_encoder(self.witness)
        if self.folds < 2:
            raise ConfigError(f"folds: must be at least 2, got {self.folds}")
        if self.filter_by not in FILTERS:
            raise ConfigError(f"filter_by: must be one of {', '.join(FILTERS)}, got {self.filter_by!r}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Predict every image without having trained on it, and flag.

        Returns:
            No network where those of the folds predict; one that was trained on everything where an encoder does.

        Raises:
            ConfigError: The package is not installed, or the encoder cannot be had.
        """
        need("cleanlab", "cleanlab", "defence.name: cleanlab")
        encoder = encoder_from(self.witness, fit.runtime.device)
        fold = folds_of(data.labels, self.folds, seeds.generator("folds"))
        if encoder is None:
            predicted, histories = self._by_networks(data, fold, build_model, fit, plan, seeds)
            return Outcome(None, self._isolated(predicted, data, fit), histories)
        model = build_model(seeds.generator("init"))
        history = fit(model, data, Phase("train", plan))
        features = encode(encoder, data, fit.runtime)
        predicted = predicted_from_features(
            features, data.labels.numpy(), history.trained, fold.numpy(), data.num_classes
        )
        return Outcome(model, self._isolated(predicted, data, fit), (history,))

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Scan, and train by the plan without what is flagged.

        Raises:
            ConfigError: The package is not installed, or the encoder cannot be had.
        """
        found = self.scan(data, build_model=build_model, fit=fit, plan=plan, seeds=seeds)
        if found.model is not None:
            return without_flagged(found, data, build_model=build_model, fit=fit, plan=plan, seeds=seeds)
        flagged = data.unvouched(found.isolation.flagged)
        model = build_model(seeds.generator("init"))
        history = fit(model, data, Phase("train", plan), subset=~flagged if bool(flagged.any()) else None)
        return Outcome(model, found.isolation, (*found.histories, history))

    def _isolated(self, predicted: NDArray[np.float64], data: ImageSet, fit: Fit) -> Isolation:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        predicted = fit.runtime.first(predicted)  # All processes must leave out the same images.
        labels = data.labels.numpy()
        issues = find_label_issues(labels, predicted, filter_by=self.filter_by, n_jobs=1)
        quality = get_label_quality_scores(labels, predicted, method="self_confidence")
        flagged = torch.from_numpy(np.asarray(issues, dtype=bool))
        wrong = float((predicted.argmax(1) != labels).mean())
        by = "networks" if self.witness == NO_ENCODER else f"logistic regressions on the features of {self.witness}"
        evidence = (
            f"cleanlab takes the labels of {int(flagged.sum())} of {len(flagged)} images for errors. Of {by} that were "
            f"fitted to other images, {100 * wrong:.3g} % of the predictions are not the given label.",
            "Label errors are no sign of a backdoor, and what has learned a trigger sees none in poison.",
        )
        return Isolation(torch.from_numpy(1 - quality).float(), flagged, "undecided", evidence)

    def _by_networks(
        self, data: ImageSet, fold: Tensor, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds
    ) -> tuple[NDArray[np.float64], tuple[History, ...]]:
        predicted = torch.zeros((len(data), data.num_classes), dtype=torch.float64)
        histories = []
        for number in range(self.folds):
            name = f"fold {number + 1}"
            model = build_model(seeds.child(name).generator("init"))
            histories.append(fit(model, data, Phase(name, plan), subset=fold != number))
            rows = (fold == number).nonzero().squeeze(1)
            predicted[rows] = logits_of(model, data, fit.runtime, index=rows).double().softmax(1)
        return predicted.numpy(), tuple(histories)
