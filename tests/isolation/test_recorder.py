from __future__ import annotations

import numpy as np
import pytest
import torch

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.isolation import Evidence, Loss, LossRecorder, isolate
from antibackdoor.types import History

LABELS = [0, 0, 1, 1]


def filled(epochs=3):
    recorder = LossRecorder(LABELS)
    for epoch in range(epochs):
        recorder.update([0, 1], [0.9 - 0.1 * epoch, 0.1])
        recorder.update(torch.tensor([3, 2]), torch.tensor([0.4, 0.5]))
        recorder.end_epoch()
    return recorder


def test_losses_are_put_in_their_places():
    losses = filled().losses
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, torch.tensor([[0.9, 0.1, 0.5, 0.4], [0.8, 0.1, 0.5, 0.4], [0.7, 0.1, 0.5, 0.4]]))


def test_what_is_recorded_is_a_copy_without_gradient():
    recorder = LossRecorder(torch.tensor([0, 1]))
    values = torch.tensor([0.5, 0.6], requires_grad=True)
    recorder.update(torch.tensor([0, 1]), values)
    with torch.no_grad():
        values += 1
    recorder.end_epoch()
    assert not recorder.losses.requires_grad
    assert recorder.losses.tolist() == [pytest.approx([0.5, 0.6])]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_lists_arrays_and_tensors(kind):
    recorder = LossRecorder(kind(LABELS))
    recorder.update(kind([0, 1, 2, 3]), kind([0.5, 0.25, 0.5, 1.0]))
    recorder.end_epoch()
    assert recorder.losses.tolist() == [[0.5, 0.25, 0.5, 1.0]]


def test_a_second_loss_replaces_the_first_and_a_missing_one_is_that_of_the_epoch_before():
    recorder = filled(1)
    recorder.update([0], [0.3])
    recorder.update([0], [0.2])
    recorder.end_epoch()
    assert recorder.losses[1].tolist() == pytest.approx([0.2, 0.1, 0.5, 0.4])


def test_a_sample_without_a_loss_in_the_first_epoch():
    recorder = LossRecorder(LABELS)
    recorder.update([0, 1], [0.1, 0.2])
    with pytest.raises(ConfigError, match="2 samples have no loss in the first epoch"):
        recorder.end_epoch()
    # What was missing can still be given.
    recorder.update([2, 3], [0.1, 0.2])
    recorder.end_epoch()
    assert recorder.losses.shape == (1, 4)


@pytest.mark.parametrize(
    ("indices", "losses", "message"),
    [
        ([0, 1], [0.5], "one loss a sample"),
        ([0, 1], 0.5, "one loss a sample"),
        ([[0, 1]], [[0.5, 0.5]], "one loss a sample"),
        ([0, 4], [0.5, 0.5], r"outside 0\.\.3"),
        ([-1, 0], [0.5, 0.5], r"outside 0\.\.3"),
        ([1, 3], [0.5, float("nan")], "sample 3 is nan; losses must be finite"),
        ([1, 3], [float("inf"), 0.5], "sample 1 is inf; losses must be finite"),
    ],
)
def test_batches_that_do_not_fit(indices, losses, message):
    recorder = LossRecorder(LABELS)
    with pytest.raises(ConfigError, match=f"^update: .*{message}"):
        recorder.update(indices, losses)


def test_an_empty_batch_is_nothing():
    recorder = filled(1)
    recorder.update([], [])
    recorder.end_epoch()
    assert torch.equal(recorder.losses[0], recorder.losses[1])


def test_isolating_before_the_first_epoch():
    with pytest.raises(ConfigError, match="at least one epoch"):
        LossRecorder(LABELS).isolate()


def test_a_batch_that_is_refused_leaves_what_was_there():
    recorder = LossRecorder(LABELS)
    recorder.update([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ConfigError, match="must be finite"):
        recorder.update([0, 1], [0.9, float("nan")])
    recorder.end_epoch()
    assert recorder.losses.tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.4])]


def test_negative_labels():
    with pytest.raises(ConfigError, match="^labels: must be at least 0, got -1$"):
        LossRecorder([0, -1, 1])


def test_the_lowest_loss_is_isolated():
    isolation = filled().isolate(signal="loss", share=0.25)
    assert isolation.flagged.tolist() == [False, True, False, False]
    assert isolation.scores.tolist() == pytest.approx([-0.7, -0.1, -0.5, -0.4])
    assert isolation.verdict == "undecided"
    assert "1 of 4" in isolation.evidence[0]


def test_by_class_each_class_has_its_own():
    isolation = filled().isolate(signal=Loss(), share=0.5, scope="class")
    assert isolation.flagged.tolist() == [False, True, False, True]


def test_an_unknown_signal():
    with pytest.raises(UnknownNameError, match=r"unknown signal 'los'\. Did you mean 'loss'"):
        filled().isolate(signal="los")


def test_nothing_flagged_is_said_so():
    isolation = filled().isolate(signal="loss", share=0.0)
    assert not bool(isolation.flagged.any())
    assert "none" in isolation.evidence[0]


def test_evidence_is_checked():
    labels = torch.tensor(LABELS)
    for losses in (torch.zeros(4), torch.zeros(0, 4), torch.zeros(2, 3)):
        with pytest.raises(ConfigError, match="isolation: losses have shape"):
            Evidence(losses, labels, 2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="not finite"):
            Evidence(torch.full((2, 4), bad), labels, 2)


def test_evidence_of_a_phase_is_the_recorders():
    recorder = filled()
    history = History("isolate", recorder.losses.numpy(), np.zeros(3), np.zeros(3))
    by_phase = isolate(Evidence.of(history, torch.tensor(LABELS), 2), signal="loss-drop", share=0.25)
    by_hand = recorder.isolate(signal="loss-drop", share=0.25)
    assert torch.equal(by_phase.scores, by_hand.scores)
    assert torch.equal(by_phase.flagged, by_hand.flagged)


def test_held_out_images_are_marked():
    losses = filled().losses.numpy()
    held_out = np.array([True, False, False, False])
    history = History("isolate", losses, np.zeros(3), np.zeros(3), held_out=held_out)
    evidence = Evidence.of(history, torch.tensor(LABELS), 2)
    assert evidence.trained.tolist() == [False, True, True, True]
    history = History("isolate", losses, np.zeros(3), np.zeros(3))
    assert bool(Evidence.of(history, torch.tensor(LABELS), 2).trained.all())
