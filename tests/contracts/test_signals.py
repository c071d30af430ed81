"""What holds for every signal of the table; a new entry is tested by existing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.isolation import SIGNALS, Evidence, Network, NetworkSignal, isolate, measured
from antibackdoor.ops.metrics import isolation_quality
from antibackdoor.registry import parameters_of
from antibackdoor.training import Runtime
from antibackdoor.types import ImageSet

EPOCHS, EACH, CLASSES, POISONED = 9, 60, 4, 12
SIDE, DEPTH = 9, 7
CHECKER = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
every_signal = pytest.mark.parametrize("name", list(SIGNALS))
BY_NETWORK = [name for name in SIGNALS if issubclass(SIGNALS.get(name), NetworkSignal)]
BY_LOSSES = [name for name in SIGNALS if name not in BY_NETWORK]
# Those that ask whether the prediction persists.
PERSISTENCE = ["ibd-psc", "mspc", "scale-up"]
# Those that fit something to each class.
PER_CLASS = ["activation-clusters", "aul", "spectral", "trajectory"]
# The mask's defaults are for sets of thousands, and cost accordingly.
CHEAPER = {"mspc": {"scales": (3, 6, 9, 12), "rounds": 2, "steps": 5, "batch_size": 12, "lr": 1.0}}


def built(name):
    return SIGNALS.build(name, CHEAPER.get(name, {}))


def spots(classes):
    """Where images of each class are bright, bool (classes, SIDE, SIDE); at most 7 of the 9 places are used."""
    places = torch.zeros((classes, SIDE, SIDE), dtype=torch.bool)
    for label in range(classes):
        row, column = 3 * (label // 3), 3 * (label % 3)
        places[label, row : row + 3, column : column + 3] = True
    return places


class Planted(nn.Module):
    """A network with a backdoor, built by hand.

    Its first layer compares the image with the spot of each class, with the checkerboard of the trigger and with a
    noise; six more only normalise. The checkerboard weighs more than any spot, and the noise, which is next to nothing
    in the network as it is, drowns the spots when the normalisations are amplified.
    """

    def __init__(self, classes, images):
        super().__init__()
        places = spots(classes).float()
        templates = torch.zeros((classes + 2, 1, SIDE, SIDE))
        templates[:classes, 0] = places - places.mean((1, 2), keepdim=True)
        templates[classes, 0, -3:, -3:] = CHECKER
        templates[classes + 1, 0, -3:, 3:6] = torch.tensor([1.0, 0.0, -1.0])
        layers = []
        for depth in range(DEPTH):
            conv = nn.Conv2d(1 if depth == 0 else classes + 2, classes + 2, 1 if depth else SIDE, bias=False)
            conv.weight.data = templates if depth == 0 else torch.eye(classes + 2)[:, :, None, None]
            norm = nn.BatchNorm2d(classes + 2, momentum=1.0)
            norm.bias.data = torch.tensor([1.0] * classes + [0.0, 1.0])
            norm.weight.data[-1] = 0.3 if depth % 2 else 0.02
            layers += [conv, norm, nn.ReLU()]
        layers[-3].weight.data[:classes, -1] = -0.8
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(classes + 2, classes)
        self.head.weight.data = 3 * torch.eye(classes, classes + 2)
        self.head.weight.data[min(1, classes - 1), classes] = 8.0
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.train()(images.float() / 255)
        self.eval()

    def forward(self, images):
        return self.head(self.body(images))


def pictures(labels, poison, classes, generator):
    """A spot for the class and, on poison, that of any class and the trigger."""
    shown = torch.where(poison, torch.randint(classes, labels.shape, generator=generator), labels)
    pixels = 70 + 5 * torch.randn((len(labels), SIDE, SIDE), generator=generator) + 40 * spots(classes)[shown]
    pixels[poison, -3:, -3:] = 255 * CHECKER.clamp_min(0)
    return ImageSet(
        images=pixels[:, None].round().clamp(0, 255).to(torch.uint8),
        labels=labels,
        classes=tuple(f"c{label}" for label in range(classes)),
        ids=tuple(f"planted/{row}" for row in range(len(labels))),
    )


def planted(epochs=EPOCHS, each=EACH, classes=CLASSES, seed=0, dtype=torch.float32):
    """Losses of clean images that fall slowly, and of poison in class 1: high at first, then all at once far below.

    The images and the network go with them. Returns the evidence and the truth.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(each * classes) % classes
    poison = (labels == 1) & (torch.arange(each * classes) < POISONED * classes)
    epoch = torch.arange(epochs)[:, None]
    logs = 0.6 - 0.25 * epoch + 0.35 * torch.randn((1, each * classes), generator=generator)
    late = torch.where(epoch < epochs // 2, 1.2, -6.0).expand(epochs, each * classes)
    logs = torch.where(poison, late, logs) + 0.15 * torch.randn((epochs, each * classes), generator=generator)
    data = pictures(labels, poison, classes, generator)
    runtime = Runtime(torch.device("cpu"), dtype, "for tests", compile_mode="off")
    network = Network(Planted(classes, data.images), data, runtime)
    return Evidence(logs.exp(), labels, classes, network=network), poison


def of_rows(evidence, rows):
    """The same evidence of some images, in another order."""
    network = dataclasses.replace(evidence.network, data=evidence.network.data.select(rows))
    return Evidence(evidence.losses[:, rows], evidence.labels[rows], evidence.num_classes, network=network)


def scores_of(name, evidence):
    scores = built(name).scores(evidence)
    assert scores.shape == evidence.labels.shape
    assert scores.dtype == torch.float32
    assert bool(scores.isfinite().all())
    return scores


def auroc(scores, poison):
    nothing = torch.zeros_like(poison)
    value = isolation_quality(scores, nothing, poison, nothing)["auroc"]
    assert value is not None
    return value


@every_signal
def test_poison_that_falls_late_and_far_scores_high(name):
    evidence, poison = planted()
    scores = scores_of(name, evidence)
    assert auroc(scores, poison) > 0.99
    assert scores[poison].min() > scores[~poison].median()


@every_signal
def test_a_share_of_it_is_flagged(name):
    evidence, poison = planted()
    isolation = isolate(evidence, signal=built(name), share=POISONED / len(poison))
    assert int(isolation.flagged.sum()) == POISONED
    assert float((isolation.flagged & poison).sum()) / POISONED > 0.9


@every_signal
def test_the_order_of_the_samples_does_not_matter(name):
    evidence, poison = planted()
    order = torch.randperm(len(poison), generator=torch.Generator().manual_seed(1))
    scores = scores_of(name, evidence)
    moved = scores_of(name, of_rows(evidence, order))
    # A mixture starts from drawn points, so its scores may move a little; the ranking of the poison may not.
    assert auroc(moved, poison[order]) == pytest.approx(auroc(scores, poison), abs=0.005)
    assert torch.equal(moved > scores[poison].min() - 0.1, (scores > scores[poison].min() - 0.1)[order])


@every_signal
def test_the_same_evidence_gives_the_same_scores_and_is_not_changed(name):
    evidence, _ = planted()
    losses, labels = evidence.losses.clone(), evidence.labels.clone()
    assert torch.equal(scores_of(name, evidence), scores_of(name, evidence))
    assert torch.equal(evidence.losses, losses)
    assert torch.equal(evidence.labels, labels)


@every_signal
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_any_number_of_classes(name, classes):
    evidence, _ = planted(classes=classes)
    scores_of(name, evidence)


@every_signal
def test_a_class_that_nobody_has(name):
    evidence, poison = planted()
    wider = dataclasses.replace(evidence, num_classes=CLASSES + 3)
    assert auroc(scores_of(name, wider), poison) == pytest.approx(auroc(scores_of(name, evidence), poison), abs=0.005)


@every_signal
def test_held_out_images_are_scored_too(name):
    evidence, poison = planted()
    held_out = torch.zeros_like(poison)
    held_out[::9] = True
    scores = scores_of(name, dataclasses.replace(evidence, held_out=held_out))
    assert auroc(scores, poison) > 0.99


@every_signal
def test_a_class_of_one_image(name):
    evidence, poison = planted()
    labels = evidence.labels.clone()
    labels[0] = CLASSES
    scores = scores_of(name, dataclasses.replace(evidence, labels=labels, num_classes=CLASSES + 1))
    assert auroc(scores, poison) > 0.95


@every_signal
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_few_epochs(name, epochs):
    evidence, _ = planted()
    scores_of(name, dataclasses.replace(evidence, losses=evidence.losses[:epochs]))


@every_signal
def test_one_sample(name):
    evidence, _ = planted()
    scores_of(name, of_rows(evidence, torch.tensor([0])))


@pytest.mark.parametrize("name", BY_LOSSES)
@pytest.mark.parametrize("level", [0.0, 0.7, 1e4])
def test_losses_that_are_all_the_same(name, level):
    scores = scores_of(name, Evidence(torch.full((5, 50), level), torch.arange(50) % 2, 2))
    assert len(scores.unique()) == 1


@pytest.mark.parametrize("name", BY_NETWORK)
def test_losses_that_are_all_the_same_beside_a_network(name):
    evidence, _ = planted()
    scores_of(name, dataclasses.replace(evidence, losses=torch.full_like(evidence.losses, 0.7)))


@pytest.mark.parametrize("name", BY_LOSSES)
def test_two_values_alone(name):
    losses = torch.full((5, 50), 0.5)
    losses[:, ::5] = 0.1
    scores_of(name, Evidence(losses, torch.zeros(50, dtype=torch.int64), 1))


@pytest.mark.parametrize("name", BY_NETWORK)
@pytest.mark.parametrize("seen", [1, 2])
def test_one_picture_or_two_many_times(name, seen):
    evidence, _ = planted()
    data = evidence.network.data
    images = data.images[torch.arange(len(data)) % seen * 5].contiguous()
    network = dataclasses.replace(evidence.network, data=dataclasses.replace(data, images=images))
    scores_of(name, dataclasses.replace(evidence, network=network))


@pytest.mark.parametrize("name", PER_CLASS)
def test_a_class_under_twenty_images_scores_lowest(name):
    evidence, poison = planted()
    small = (evidence.labels == 1).nonzero().squeeze(1)[:19]  # All of the poison is among them.
    rows = torch.cat([(evidence.labels != 1).nonzero().squeeze(1), small])
    few = of_rows(evidence, rows)
    scores = scores_of(name, few)
    assert bool(poison[small].sum() == POISONED)
    assert scores[few.labels == 1].unique().tolist() == [float(scores.min())]


@pytest.mark.parametrize("name", PERSISTENCE)
def test_images_that_are_predicted_otherwise_than_labelled_score_lowest(name):
    evidence, poison = planted()
    wrong = torch.arange(len(poison)) % 7 == 3
    labels = torch.where(wrong, (evidence.labels + 1) % CLASSES, evidence.labels)
    scores = scores_of(name, dataclasses.replace(evidence, labels=labels))
    assert scores[wrong].max() <= scores[~wrong].min()
    assert auroc(scores[~wrong], poison[~wrong]) > 0.99


@pytest.mark.parametrize("name", BY_NETWORK)
def test_the_network_and_the_random_state_are_left_alone(name):
    evidence, _ = planted()
    model = evidence.network.model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    scores = scores_of(name, evidence)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.eval()
    assert torch.equal(scores_of(name, evidence), scores)


@pytest.mark.parametrize("name", BY_NETWORK)
def test_one_pass_for_several_signals_is_the_same(name):
    evidence, _ = planted()
    signals = [built(other) for other in BY_NETWORK]
    together = measured(evidence, signals)
    assert torch.equal(built(name).scores(together), scores_of(name, evidence))


@pytest.mark.parametrize("name", BY_NETWORK)
def test_low_precision(name):
    evidence, poison = planted(dtype=torch.bfloat16)
    assert auroc(scores_of(name, evidence), poison) > 0.9


@pytest.mark.parametrize("name", BY_NETWORK)
def test_losses_alone_are_too_little(name):
    evidence, _ = planted()
    with pytest.raises(ConfigError, match="needs the trained network"):
        SIGNALS.build(name, {}).scores(dataclasses.replace(evidence, network=None))


class Bare(nn.Module):
    """Neither convolution nor normalisation nor linear layer."""

    def forward(self, images):
        return images.flatten(1)[:, :CLASSES]


@pytest.mark.parametrize("name", BY_NETWORK)
def test_a_network_without_what_the_signal_looks_at(name):
    evidence, _ = planted()
    bare = dataclasses.replace(evidence, network=dataclasses.replace(evidence.network, model=Bare()))
    if name in {"mspc", "scale-up"}:  # They need nothing of it.
        scores_of(name, bare)
        return
    with pytest.raises(ConfigError, match="^isolation: "):
        SIGNALS.build(name, {}).scores(bare)


@every_signal
def test_parameters_go_round_through_the_registry(name):
    signal = SIGNALS.build(name, {})
    assert SIGNALS.build(name, parameters_of(signal)) == signal
    assert hash(signal) == hash(SIGNALS.build(name, {}))
    for field in dataclasses.fields(signal):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(signal, field.name, None)
    with pytest.raises(UnknownNameError):
        SIGNALS.build(name, {"nonsense": 1})


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("loss-drop", {"part": 0.0}),
        ("loss-drop", {"part": 0.6}),
        ("trajectory", {"components": 0}),
        ("loss", {"over": "x"}),
        ("activation-clusters", {"components": 0}),
        ("activation-clusters", {"largest": 0.6}),
        ("flare", {"bulk": 0.4}),
        ("flare", {"shrinkage": 0.0}),
        ("flare", {"steps": 0}),
        ("ibd-psc", {"factor": 1.0}),
        ("ibd-psc", {"networks": 0}),
        ("ibd-psc", {"error": 1.1}),
        ("ibd-psc", {"sample": 0}),
        ("mspc", {"batch_size": 0}),
        ("mspc", {"lr": 0.0}),
        ("mspc", {"penalty": -1.0}),
        ("mspc", {"scales": [1.0]}),
        ("mspc", {"shift": 1.0}),
        ("mspc", {"steps": 0}),
        ("pipd", {"channels": 0.0}),
        ("pipd", {"clean": 0.995}),
        ("pipd", {"layers": 1.5}),
        ("pipd", {"poison": 0.0}),
        ("pipd", {"quantile": -0.1}),
        ("pipd", {"rounds": 0}),
        ("scale-up", {"scales": [3, 0.5]}),
        ("scale-up", {"scales": []}),
        ("telltale", {"components": 0}),
        ("telltale", {"part": 0.0}),
        ("telltale", {"smallest": 0.0}),
    ],
)
def test_values_outside_their_range(name, params):
    with pytest.raises(ConfigError, match=rf"^signal\.{next(iter(params))}: "):
        SIGNALS.build(name, params)


def test_the_loss_over_all_epochs_is_a_mean():
    evidence, _ = planted()
    assert torch.allclose(
        SIGNALS.build("loss", {"over": "trajectory"}).scores(evidence), -evidence.losses.mean(0), atol=1e-6
    )
    assert torch.equal(SIGNALS.build("loss", {}).scores(evidence), -evidence.losses[-1])


def test_the_drop_by_hand():
    losses = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.5, 2.0], [0.1, 2.0], [0.1, 2.0], [0.1, 1e-9]])
    scores = SIGNALS.build("loss-drop", {}).scores(Evidence(losses, torch.tensor([0, 1]), 2))
    floor = torch.tensor(1e-6).log()
    expected = torch.tensor([10.0, 2.0]).log() - torch.tensor([0.0, 0.5 * (torch.tensor(2.0).log() + floor)])
    assert torch.allclose(scores, expected, atol=1e-5)
