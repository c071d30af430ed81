"""Sets of many classes: what is summed once for all of them is what each would have alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import antibackdoor
from antibackdoor.defences.against.judge import CONTENTS, judge
from antibackdoor.defences.against.projection import contents_of, pictures_of
from antibackdoor.defences.against.statistics import Statistics
from antibackdoor.defences.witnesses import observe
from antibackdoor.defences.witnesses import views as views_module
from antibackdoor.defences.witnesses.natural import Natural
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.scene import Scene
from antibackdoor.defences.witnesses.style import styles_of
from antibackdoor.defences.witnesses.views import Features, views_of
from antibackdoor.training import Runtime
from antibackdoor.types import Encoded, ImageSet

CLASSES = 100


def drawn(count: int, seed: int, classes: int = CLASSES) -> tuple[ImageSet, np.ndarray]:
    """Images of noise, and features of them that tell the classes."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = torch.from_numpy(draw.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8))
    names = tuple(f"c{label:03d}" for label in range(classes))
    centres = np.random.default_rng(99).standard_normal((classes, 24))
    features = (centres[labels] + draw.standard_normal((count, 24))).astype(np.float32)
    return ImageSet(images, torch.from_numpy(labels), names, tuple(map(str, range(count)))), features


@pytest.fixture
def seen(runtime: Runtime) -> Seen:
    """Twelve classes of 50 images and less, held-out ones among them."""
    data, features = drawn(600, 1, 12)
    rows = np.flatnonzero((data.labels.numpy() != 3) | (np.arange(600) < 540))
    draw = np.random.default_rng(2)
    logs, trained = draw.standard_normal((5, len(rows))), draw.random(len(rows)) < 0.95
    kept = data.select(torch.from_numpy(rows))
    return Seen(kept, nn.Identity(), runtime, logs, features[rows], styles_of(kept.images), "features", trained)


def test_hosts_are_spread_over_the_other_classes(seen: Seen) -> None:
    hosts = Scene(seen, Features(seen), 5).hosts
    order = np.random.default_rng(0).permutation(np.flatnonzero((seen.labels != 5) & seen.trained))
    rank = [int((seen.labels[order[:place]] == seen.labels[row]).sum()) for place, row in enumerate(order)]
    assert hosts.tolist() == order[np.argsort(rank, kind="stable")][:120].tolist()
    counts = np.bincount(seen.labels[hosts], minlength=12)
    assert counts[5] == 0
    assert np.delete(counts, 5).min() >= 10


def test_a_class_is_whitened_by_all_others(seen: Seen) -> None:
    features = Features(seen)
    views = next(views_of(seen, features, Natural(seen), only=7))
    values, labels = features.values, seen.labels
    others = labels != 7
    means = np.stack([values[labels == label].mean(0) for label in range(12)])
    residuals = (values - means[labels])[others]
    covariance = 0.9 * residuals.T @ residuals / len(residuals)
    covariance += 0.1 * np.trace(residuals.T @ residuals / len(residuals)) / len(covariance) * np.eye(len(covariance))
    own = values[views.rows] - values[views.rows][views.fitted].mean(0)
    assert views.white @ views.white.T == pytest.approx(own @ np.linalg.inv(covariance) @ own.T, rel=1e-5, abs=1e-5)
    assert views.between.shape == (values.shape[1], 8)
    assert views.between.T @ views.between == pytest.approx(np.eye(8), abs=1e-8)


def test_images_are_classified_a_part_at_a_time(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Features(seen)
    monkeypatch.setattr(views_module, "_AT_A_TIME", 7)
    parts = Features(seen)
    assert parts.foreign == pytest.approx(whole.foreign, rel=1e-9, abs=1e-9)
    assert (parts.shown == whole.shown).all()


def test_a_hundred_classes_of_few_images_go_through_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "EPOCHS", 1)
    data, _ = drawn(5 * CLASSES, 3)
    run = antibackdoor.scan(data, device="cpu", settings={"defence": {"witness": "none"}})
    assert run.isolation.verdict == "undecided"
    assert len(run.class_verdicts) == CLASSES
    assert not run.isolation.flagged.any()


def test_a_batch_of_a_hundred_classes_is_compared() -> None:
    (old, seen_old), (new, seen_new) = drawn(40 * CLASSES, 4), drawn(8 * CLASSES, 5)
    probe = np.ones((1, 24), dtype=np.float32)
    kept = Statistics.of(old, Encoded("one", seen_old, probe), np.arange(len(old)))
    labels = new.labels.numpy().copy()
    moved = np.flatnonzero(labels == 60)[:8].tolist() + np.flatnonzero(labels == 61)[:6].tolist()
    seen_new[moved] += 9 * np.eye(24, dtype=np.float32)[3]
    labels[moved] = 17
    judged = judge(kept, contents_of(seen_new), pictures_of(new.images), labels, 0.01)
    accepted = [answer for answer in judged.answers if answer.corrected <= 0.01]
    assert {answer.label for answer in accepted} == {17}
    assert CONTENTS in {answer.question for answer in accepted}
    assert len(judged.answers) == 3 * (CLASSES - 2)
    assert judged.passed == (61,)
    assert judged.flagged[moved].mean() > 0.9
