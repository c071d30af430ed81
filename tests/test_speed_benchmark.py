"""The speed benchmark runs and says what it promises; what it measures is not judged here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def naive(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("naive")


@pytest.fixture
def speed(naive: ModuleType) -> ModuleType:
    return importlib.import_module("speed")


def test_json_holds_three_positive_ratios_and_the_details(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    options = ["--images", "200", "--rounds", "1", "--batch-size", "64", "--score-images", "20", "--workers", "0"]
    command = [sys.executable, str(BENCHMARKS / "speed.py"), *options, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert list(result) == ["lga_epoch", "finetune_epoch", "scoring", "details"]
    assert all(result[name] > 0 for name in ("lga_epoch", "finetune_epoch", "scoring"))
    details = result["details"]
    assert details["images"] == 200
    assert details["naive_scoring_scaled"]
    assert str(tmp_path) not in json.dumps(result)
    for contest in details["results"].values():
        assert len(contest["naive_seconds"]) == len(contest["our_seconds"]) == 1
        assert min(contest["naive_seconds"] + contest["our_seconds"]) > 0
    assert "synthetic" in done.stdout
    assert "scaled" in done.stdout
    assert "torchvision" not in done.stderr


def test_whole_run_mode_counts_its_epochs(
    speed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    options = ["--gpu-epochs", "4", "--images", "120", "--batch-size", "32", "--device", "cpu", "--compile", "off"]
    speed.main([*options, "--threads", str(torch.get_num_threads()), "--json", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    phases = result["details"]["phases"]
    assert list(phases) == ["isolate", "fine-tune", "unlearn"]
    assert sum(len(phase["seconds"]) for phase in phases.values()) == 4
    assert 0 < result["seconds_excluding_compile"] <= result["seconds_including_compile"]
    assert "4 epochs" in capsys.readouterr().out


def test_naive_stage_one_learns_and_its_scoring_agrees_with_ours(speed: ModuleType, naive: ModuleType) -> None:
    from antibackdoor.models import builder_from
    from antibackdoor.ops.objectives import ce
    from antibackdoor.seeds import Seeds
    from antibackdoor.training import Runtime, logits_of

    data = speed.synthetic(256, seed=1)
    build, _ = builder_from("wrn-10-1", data)
    model = build(Seeds(1).generator("init"))
    mean, std = (tuple(x.flatten().tolist()) for x in (model.mean, model.std))
    dataset = naive.NaiveImages(data.images.numpy(), data.labels.tolist(), naive.evaluation_transforms(mean, std))
    loader = naive.loader_of(dataset, 64, shuffle=True, workers=0)
    optimizer = naive.optimizer_of(model.body, 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trajectory = [naive.train_epoch(model.body, loader, optimizer, flood_level=0.5) for _ in range(5)]
    assert trajectory[-1] < 0.6 * trajectory[0]
    assert trajectory[-1] < trajectory[1]

    one_by_one, _ = naive.losses_at_batch_one(
        model.body, naive.loader_of(dataset, 1, shuffle=False, workers=0), at_most=64
    )
    ours = ce(logits_of(model, data, Runtime.create("cpu", precision="fp32")), data.labels)[:64]
    torch.testing.assert_close(torch.tensor(one_by_one), ours, rtol=1e-3, atol=1e-3)


def test_naive_transforms_keep_shape_and_do_what_they_say(naive: ModuleType) -> None:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    picture = Image.fromarray(pixels)
    assert torch.equal(naive.to_tensor(picture), torch.ones(3, 32, 32))
    assert naive.RandomCrop(4)(picture).size == (32, 32)
    assert naive.random_flip(picture).size == (32, 32)
    holes = [int((naive.Cutout(9)(torch.ones(1, 32, 32)) == 0).sum()) for _ in range(200)]
    assert max(holes) == 81
    assert min(holes) >= 25
    normalised = naive.Normalise((0.5,), (0.25,))(torch.ones(1, 2, 2))
    assert torch.equal(normalised, torch.full((1, 2, 2), 2.0))
