"""SCAn's statistics, transcribed slowly from its paper: one image at a time, plain inverses, no whitening."""

from __future__ import annotations

import numpy as np
import pytest

from antibackdoor.defences.scan import untangle_classes

CLASSES, FEATURES = 5, 4


@pytest.fixture
def features():
    """Five classes with skew variations; class 3 holds a second group, and some images were not trained on."""
    draw = np.random.default_rng(1)
    mix = draw.standard_normal((FEATURES, FEATURES))
    centres = 4 * draw.standard_normal((CLASSES, FEATURES))

    def of(labels):
        return centres[labels] + draw.standard_normal((len(labels), FEATURES)) @ mix

    labels, known_labels = np.arange(150) % CLASSES, np.arange(60) % CLASSES
    observed, known = of(labels), of(known_labels)
    observed[(labels == 3) & (np.arange(150) % 4 == 0)] += 9 * mix[0]
    return observed, labels, np.arange(150) % 11 != 6, known, known_labels


def global_model(features, labels):
    """Expectation and maximisation: identities from their posterior means, then both covariances anew."""
    x = [row - features.mean(0) for row in features]
    members = {k: [i for i in range(len(x)) if labels[i] == k] for k in range(CLASSES)}
    identity = {k: np.mean([x[i] for i in members[k]], axis=0) for k in members}
    last = None
    for _ in range(101):
        between = np.cov(np.stack([identity[k] for k in labels]).T)
        within = np.cov(np.stack([x[i] - identity[labels[i]] for i in range(len(x))]).T)
        if last is not None:
            change = np.linalg.norm(between - last[0]) + np.linalg.norm(within - last[1])
            if change <= 1e-5 * (np.linalg.norm(between) + np.linalg.norm(within)):
                break
        last = between, within
        for k in members:
            # The precision of an identity is that of the prior and of each of its images.
            precision = np.linalg.inv(between) + len(members[k]) * np.linalg.inv(within)
            pull = sum(np.linalg.inv(within) @ x[i] for i in members[k])
            identity[k] = np.linalg.solve(precision, pull)
    return between, within


def distance(x, centre, within):
    return float((x - centre) @ np.linalg.inv(within) @ (x - centre))


def split_and_test(x, between, within, start):
    group = [bool(value) for value in start]
    for _ in range(100):
        first = np.mean([row for row, second in zip(x, group, strict=True) if not second], axis=0)
        second = np.mean([row for row, second in zip(x, group, strict=True) if second], axis=0)
        moved = [distance(row, second, within) < distance(row, first, within) for row in x]
        if moved == group:
            break
        group = moved
    precision = np.linalg.inv(between) + len(x) * np.linalg.inv(within)
    whole = np.linalg.solve(precision, sum(np.linalg.inv(within) @ row for row in x))
    one = sum(distance(row, whole, within) for row in x)
    two = sum(distance(row, second if is_second else first, within) for row, is_second in zip(x, group, strict=True))
    return (one - two) / len(x), group, first, second


def test_untangling_is_what_the_paper_says(features):
    observed, labels, trained, known, known_labels = features
    found = untangle_classes(
        observed,
        labels,
        trained,
        (known, known_labels),
        num_classes=CLASSES,
        shrink=False,
        starts=1,
        draw=np.random.default_rng(7),
    )
    between, within = global_model(known, known_labels)
    draw = np.random.default_rng(7)
    everything = np.concatenate([observed[trained], known])
    statistic, margins = [], np.zeros(len(observed))
    for k in range(CLASSES):
        inside = np.concatenate([observed[trained & (labels == k)], known[known_labels == k]]) - everything.mean(0)
        value, group, first, second = split_and_test(inside, between, within, draw.random(len(inside)) >= 0.5)
        statistic.append(value)
        trusted = group[-int((known_labels == k).sum()) :]
        strange, other = (second, first) if sum(trusted) < len(trusted) / 2 else (first, second)
        if 2 * sum(trusted) == len(trusted):
            strange, other = (second, first) if sum(group) < len(group) / 2 else (first, second)
        for i in range(len(observed)):
            if labels[i] == k:
                x = observed[i] - everything.mean(0)
                apart = distance(x, other, within) - distance(x, strange, within)
                margins[i] = apart / (2 * np.sqrt(distance(strange, other, within)))
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-6)
    np.testing.assert_allclose(found.margins, margins, atol=1e-6)
    median = np.median(statistic)
    spread = 1.4826 * np.median([abs(value - median) for value in statistic])
    expected = [max(0.0, (value - median) / spread) for value in statistic]
    np.testing.assert_allclose(found.outlying, expected, rtol=1e-5, atol=1e-9)
    assert int(np.argmax(found.outlying)) == 3
    planted = (labels == 3) & (np.arange(150) % 4 == 0)
    assert ((found.margins > 0) & (labels == 3) == planted).all()
