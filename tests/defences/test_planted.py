from __future__ import annotations

import numpy as np
import torch

from antibackdoor.defences.planted import detection_limit
from antibackdoor.seeds import Seeds
from antibackdoor.types import History


def looking(data, finds):
    """Return a training that marks the first ``finds[phase]`` of the copies, and the phases it was asked for."""
    asked = []

    def looked_at(longer, name):
        asked.append((name, len(longer) - len(data)))
        suspects = torch.zeros(len(longer), dtype=torch.bool)
        suspects[len(data) : len(data) + finds[name]] = True
        losses, figures = np.ones((2, len(longer)), np.float32), np.ones(2)
        return suspects, [History(f"{name} look", losses, figures, figures), History(name, losses, figures, figures)]

    return looked_at, asked


def test_shares_shrink_until_most_copies_are_missed(blobs):
    data = blobs(1000, 5)
    looked_at, asked = looking(data, {"control 2": 20, "control 1": 9, "control 0.5": 4})
    words, histories = detection_limit(data, looked_at, Seeds(0))
    assert asked == [("control 2", 20), ("control 1", 10), ("control 0.5", 5)]
    assert words == [
        "Planted control, copies with a patch of ours: of 2 % all but 0 % were found; of 1 % all but 10 % were found; "
        "of 0.5 % (5 images) 80 % were found."
    ]
    assert [history.losses.shape for history in histories] == [(2, 1000)] * 6, "of the set's own images"


def test_nothing_smaller_is_tried_once_a_share_is_missed(blobs):
    looked_at, asked = looking(blobs(100, 5), {"control 2": 0})
    words, _ = detection_limit(blobs(100, 5), looked_at, Seeds(0))
    assert asked == [("control 2", 2)]
    assert words[0].endswith("of 2 % (2 images) 0 % were found.")


def test_all_shares_may_be_found(blobs):
    data = blobs(1000, 5)
    looked_at, asked = looking(data, {"control 2": 20, "control 1": 10, "control 0.5": 5, "control 0.2": 2})
    words, _ = detection_limit(data, looked_at, Seeds(0))
    assert len(asked) == 4
    assert words[0].endswith("of 0.2 % all but 0 % were found.")
