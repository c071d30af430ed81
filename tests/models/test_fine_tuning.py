"""Networks that begin with weights learned elsewhere: public ones, those of a file, those of timm."""

from __future__ import annotations

import json

import pytest
import torch
from end_to_end import assert_refused, invoke, write_npz
from safetensors.torch import save_file

from antibackdoor.errors import ConfigError
from antibackdoor.models import PRETRAINED, builder_from, rebuild

LITE0 = "efficientnet-lite0"


def seeded(number):
    return torch.Generator().manual_seed(number)


def apart(one, two):
    """Names of tensors that differ."""
    return {name for name, value in one.items() if not torch.equal(value, two[name])}


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite_pytorch")
    return LITE0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_public_network_keeps_its_weights_and_draws_its_last_layer(lite0, blobs, channels):
    data = blobs(6, 3, channels=channels, height=20, width=24)
    build, spec = builder_from(lite0, data, weights=PRETRAINED, input_size=32)
    first, again, other = (build(seeded(number)) for number in (0, 0, 1))
    assert not apart(first.state_dict(), again.state_dict())
    assert apart(first.state_dict(), other.state_dict()) == {"body._fc.weight", "body._fc.bias"}
    assert first.mean.flatten().tolist() == pytest.approx([127 / 255] * 3)
    assert first.std.flatten().tolist() == pytest.approx([128 / 255] * 3)
    seen = []
    first.body._conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    pixels = data.images.float() / 255
    with torch.no_grad():
        logits = first.eval()(pixels)
        assert seen == [(6, 3, 32, 32)]
        again = rebuild(type(spec)(**spec.to_json()))
        again.load_state_dict(first.state_dict())
        assert torch.equal(again.eval()(pixels), logits)
    assert logits.shape == (6, 3)


def test_without_a_size_a_public_network_sees_its_own(lite0, blobs):
    data = blobs(2, 2, height=32, width=32)
    assert builder_from(lite0, data, weights=PRETRAINED)[1].input_size == 224
    assert builder_from(lite0, data)[1].input_size is None
    assert builder_from("auto", data, weights=PRETRAINED)[1].name == lite0


def test_weights_of_a_file_are_those_of_the_network(blobs, tmp_path):
    data = blobs(12, 3, height=16, width=16)
    source = builder_from("wrn-10-1", data)[0](seeded(5)).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file(source, path)  # as a run of ours writes it, "body." before every name
    build, _ = builder_from("wrn-10-1", blobs(8, 4, height=16, width=16), weights=str(path))
    made = build(seeded(0)).state_dict()
    assert made["body.head.weight"].shape == (4, 64)
    body = {name for name in made if name.startswith("body.") and ".head." not in name}
    assert all(torch.equal(made[name], source[name]) for name in body)
    plain = {name.removeprefix("body."): value for name, value in source.items() if name.startswith("body.")}
    save_file(plain, path)
    build, _ = builder_from("wrn-10-1", data, weights=str(path))
    assert apart(build(seeded(0)).state_dict(), source) == {"body.head.weight", "body.head.bias"}


def spoiled(kind, tensors):
    name = "blocks.0.conv1.weight"
    if kind == "short":
        del tensors[name]
    elif kind == "long":
        tensors["extra.weight"] = torch.ones(2)
    elif kind == "shape":
        tensors[name] = torch.ones(16, 8, 3, 3)
    else:
        tensors[name][0, 0, 0, 0] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("kind", "words"),
    [("short", "has no 'blocks.0.conv1.weight'"), ("long", "an extra 'extra.weight'"), ("shape", "(16, 8, 3, 3)")]
    + [("nan", "not a number")],
)
def test_weights_of_another_network_are_refused(kind, words, blobs, tmp_path):
    data = blobs(6, 3, height=16, width=16)
    body = builder_from("wrn-10-1", data)[0](seeded(0)).body.state_dict()
    path = tmp_path / "weights.safetensors"
    save_file(spoiled(kind, {name: value.clone() for name, value in body.items()}), path)
    with pytest.raises(ConfigError) as caught:
        builder_from("wrn-10-1", data, weights=str(path))
    assert str(caught.value).startswith("weights: ")
    assert words in str(caught.value)


def test_a_network_of_your_own_takes_no_weights(blobs):
    data = blobs(6, 3, height=16, width=16)
    with pytest.raises(ConfigError, match="^weights, input_size: .*of your own"):
        builder_from(torch.nn.Flatten(), data, weights=PRETRAINED)


def test_the_command_fine_tunes_and_the_run_is_of_use(lite0, tmp_path):
    data, run = write_npz(tmp_path / "d.npz", 8), tmp_path / "run"
    options = ("--model", lite0, "--pretrained", "--set", "input_size=32", "--set", "train.ema=0.9", "--device", "cpu")
    done = invoke("train", data, "--out", run, *options, "--defence", "none", "--epochs", 1, "--quiet")
    assert done.code == 0, done
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["weights"] == "pretrained"
    train = record["config"]["train"]
    assert (train["optimizer"], train["lr"], train["backbone_lr"], train["warmup"]) == ("adamw", 1e-3, 0.1, 0.1)
    assert record["model"]["input_size"] == 32
    done = invoke("train", data, "--out", run, *options, "--defence", "none", "--epochs", 1, "--quiet", "--resume")
    assert done.code == 0, done
    done = invoke("evaluate", run, "--clean", tmp_path, "--device", "cpu", "--quiet")
    assert_refused(done, "class")  # no folder of images, but the network was rebuilt


BAD = {
    "both": (("--model", "wrn-10-1", "--pretrained", "--weights", "a.safetensors"), "exclude"),
    "no public weights": (("--model", "wrn-10-1", "--pretrained"), "no public weights"),
    "no file": (("--model", "wrn-10-1", "--weights", "nowhere.safetensors"), "no file at nowhere.safetensors"),
    "a file without a name": (("--weights", "nowhere.safetensors"), "name it by --model"),
    "an optimiser of no name": (("--optimizer", "adam"), "train.optimizer"),
    "a size of nothing": (("--set", "input_size=0"), "input_size"),
    "a warm-up of onecycle": (("--set", "train.warmup=0.1", "--set", "train.schedule=onecycle"), "warmup"),
    "a backbone faster than the head": (("--set", "train.backbone_lr=2"), "train.backbone_lr"),
    "a network of no name": (("--model", "efficientnet-lite", "--pretrained"), "Did you mean 'efficientnet-lite0'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_one_line(case, tmp_path):
    options, words = BAD[case]
    done = invoke("train", write_npz(tmp_path / "d.npz", 8), "--out", tmp_path / "run", *options, "--quiet")
    assert_refused(done, words)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    options = ("--model", "wrn-10-1", "--weights", tmp_path / "weights.pt")
    done = invoke("train", write_npz(tmp_path / "d.npz", 8), "--out", tmp_path / "run", *options, "--quiet")
    assert_refused(done, "weights.pt", "safetensors")


@pytest.fixture(scope="module")
def timm():
    """timm, where it is installed; beside a torch without torchvision's operators they are named, and never called."""
    pytest.importorskip("torchvision", exc_type=ImportError) if _has_operators() else _name_operators()
    return pytest.importorskip("timm", exc_type=ImportError)


def _has_operators():
    return hasattr(torch.ops.torchvision, "nms")


def _name_operators():
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[object] = []


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
def test_networks_of_timm(name, timm, blobs, tmp_path):
    data = blobs(6, 3, channels=1, height=20, width=20)
    path = tmp_path / "weights.safetensors"
    source = timm.create_model(name).state_dict()
    save_file({key: value.contiguous() for key, value in source.items()}, path)
    build, spec = builder_from(f"timm:{name}", data, weights=str(path))
    assert (spec.input_size, spec.input_channels) == (160, 3)
    made = build(seeded(0))
    own = {key.removeprefix("body."): value for key, value in made.state_dict().items() if key.startswith("body.")}
    head = timm.get_pretrained_cfg(name).classifier
    assert all(torch.equal(own[key], source[key]) for key in own if not key.startswith(f"{head}."))
    assert made.mean.flatten().tolist() == list(timm.get_pretrained_cfg(name).mean)
    with torch.no_grad():
        assert made.eval()(data.images.float() / 255).shape == (6, 3)
    smaller, spec = builder_from(f"timm:{name}", data, input_size=32)
    assert spec.input_size == 32
    with torch.no_grad():
        assert smaller(seeded(0)).eval()(data.images.float() / 255).shape == (6, 3)
