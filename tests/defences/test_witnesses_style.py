"""How images are made: figures of single images, and a part of a class that is told by them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from antibackdoor.defences.witnesses.evidence import picture, style
from antibackdoor.defences.witnesses.natural import Natural
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.parts import Part, alike, parts_of
from antibackdoor.defences.witnesses.scene import Scene
from antibackdoor.defences.witnesses.style import standard, styles_of
from antibackdoor.defences.witnesses.views import Features, views_of
from antibackdoor.training import Runtime

TARGET, COUNT = 2, 600


def fewer_levels(images):
    return (images / 51.0).round().mul(51).to(torch.uint8)


def seen_of(data):
    """Return what was seen of a set: features are of what images show, and all are learned alike."""
    generator = np.random.default_rng(0)
    shown = generator.normal(size=(data.num_classes, 16))[data.labels.numpy()]
    features = (6 * shown + generator.normal(size=(len(data), 16))).astype(np.float32)
    losses = generator.normal(size=(8, len(data))) * 0.3 - np.linspace(0, 4, 8)[:, None]
    everything, styles = np.ones(len(data), dtype=bool), styles_of(data.images)
    runtime = Runtime(torch.device("cpu"), torch.float32, "float32, for tests", compile_mode="off")
    return Seen(data, nn.Identity(), runtime, losses, features, styles, "by hand", everything)


def changed(blobs, change):
    """Return a set in which a quarter of the target class is changed, and which these are, bool (N,)."""
    data = blobs(COUNT, 5, height=16, width=16)
    inside = np.zeros(COUNT, dtype=bool)
    inside[np.flatnonzero(data.labels.numpy() == TARGET)[::4]] = True
    images = data.images.clone()
    images[torch.from_numpy(inside)] = change(images[torch.from_numpy(inside)])
    return seen_of(dataclasses.replace(data, images=images)), inside


def target_of(seen):
    features = Features(seen)
    return Scene(seen, features, TARGET), next(views_of(seen, features, Natural(seen), only=TARGET))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 5, 40), (3, 1, 1), (4, 9, 9), (2, 64, 48)])
def test_images_of_any_shape_have_finite_figures_each_its_own(shape):
    images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    found = styles_of(images)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found[3:4] == pytest.approx(styles_of(images[3:4]), abs=1e-4)


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_colour_have_finite_figures(value):
    found = styles_of(torch.full((3, 3, 16, 16), value, dtype=torch.uint8))
    assert np.isfinite(found).all()
    assert (standard(found) == 0).all()


def test_a_figure_is_compared_in_deviations_of_all_images():
    values = np.random.default_rng(0).normal(5, 3, (2000, 2)).astype(np.float32)
    values[0] = 1000
    found = standard(values)
    assert found[1:].std(0) == pytest.approx([1, 1], abs=0.1)
    assert found[0].tolist() == [6, 6]


def test_a_part_that_is_made_otherwise_stands_off_by_its_style_and_not_by_a_picture(blobs):
    seen, inside = changed(blobs, fewer_levels)
    scene, views = target_of(seen)
    part = Part(views, inside[views.rows], "mixture")
    assert style(scene, part) > 8
    assert picture(scene, part) < 2


def test_a_part_that_is_made_as_the_rest_does_not_stand_off(blobs):
    seen, inside = changed(blobs, lambda images: images)
    scene, views = target_of(seen)
    assert style(scene, Part(views, inside[views.rows], "mixture")) < 2


def test_a_part_with_half_of_a_style_is_cut_by_it(blobs):
    seen, inside = changed(blobs, fewer_levels)
    truth = inside.copy()
    mixed = dataclasses.replace(seen, trajectories=seen.trajectories - 1.5 * (truth & (np.arange(COUNT) % 8 < 7)))
    _, views = target_of(mixed)
    found = [part for part in parts_of(views) if part.source == "style"]
    assert max(alike(part.members, truth[views.rows]) for part in found) > 0.95


def test_without_other_classes_to_compare_with_style_says_nothing(blobs):
    seen, _ = changed(blobs, fewer_levels)
    alone = np.flatnonzero((seen.labels == TARGET) | (np.arange(COUNT) < 40))
    _, views = target_of(seen.at(alone))
    assert not views.styles.any()
