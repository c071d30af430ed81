"""``scan --against``: what a run keeps of its set, exact p-values, and batches that are other than before."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import FAST, assert_refused, invoke, pictures, reseal

import antibackdoor
from antibackdoor.defences.against import FILE, Against, read, statistics
from antibackdoor.defences.against.crowd import crowd
from antibackdoor.defences.against.groups import by_group
from antibackdoor.defences.against.judge import PICTURES, UNLIKE, judge
from antibackdoor.defences.against.projection import SCALE, contents_of, pictures_of
from antibackdoor.defences.against.statistics import Statistics
from antibackdoor.defences.against.unlike import ranks, scores, tail
from antibackdoor.defences.encoding import encoded_by
from antibackdoor.defences.witnesses import observe
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.files import read_checksums, write_checksums
from antibackdoor.models.encoders import Encoder
from antibackdoor.training import Runtime
from antibackdoor.types import Encoded, ImageSet

CLASSES = 3


def module_of(name: str, side: int) -> None:
    """An encoder that is quick: means of squares, and how the picture differs from left to right."""

    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), side).flatten(1) + 2

    module = type(sys)(name)
    module.encoder = lambda: Encoder(f"own:{name}", features, 12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    sys.modules[name] = module


def batch(count: int, seed: int, *, stamped: int = 0) -> ImageSet:
    """Pictures of three classes, of which the last carry a mark and the label 0."""
    images = pictures(count, CLASSES, seed=seed)
    labels = np.arange(count) % CLASSES
    if stamped:
        images[-stamped:, -4:, -4:] = (
            np.array([[255, 0], [0, 255]], dtype=np.uint8).repeat(2, 0).repeat(2, 1)[..., None]
        )
        labels[-stamped:] = 0
    return ImageSet(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(labels),
        ("0", "1", "2"),
        tuple(f"{seed}/{row}" for row in range(count)),
    )


def encoded(data: ImageSet) -> Encoded:
    features = torch.nn.functional.adaptive_avg_pool2d(data.images.float().mean(1, keepdim=True), 6).flatten(1) / 99
    return Encoded("own:squares", features.numpy(), np.ones((4, 36), dtype=np.float32))


def kept(data: ImageSet, rows: np.ndarray | None = None) -> Statistics:
    return Statistics.of(data, encoded(data), np.arange(len(data)) if rows is None else rows)


def views(data: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return contents_of(encoded(data).features), pictures_of(data.images), data.labels.numpy()


def test_statistics_of_parts_merge_to_the_bit_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_SAMPLE", 75)
    data = batch(300, 1)
    whole = kept(data)
    parts = [kept(data, np.flatnonzero(np.arange(300) % 3 == part)) for part in (0, 1, 2)]
    for a, b, c in itertools.permutations(parts):
        assert a.merged(b).merged(c).packed() == whole.packed()
    assert np.bincount(whole.labels).tolist() == [25, 25, 25]
    assert whole.counts.tolist() == [100, 100, 100]
    monkeypatch.setattr(statistics, "_AT_A_TIME", 7)
    assert kept(data).packed() == whole.packed()


def test_an_old_image_is_scored_as_if_it_had_not_been_there() -> None:
    data = batch(60, 2)
    contents, _, labels = views(data)
    old = kept(data)
    found, _ = scores(old, contents, labels)
    for place in (0, 17, 41):
        row = int(np.flatnonzero((contents == old.contents.sample[place]).all(1))[0])
        rest = np.delete(np.arange(60), row)
        x, y = contents.astype(float), labels
        means = np.stack([x[rest][y[rest] == k].mean(0) for k in range(CLASSES)])
        whole = np.stack([x[y == k].mean(0) for k in range(CLASSES)])
        scale = np.trace((x - whole[y]).T @ (x - whole[y]) / 60) / x.shape[1]
        residuals = x[rest] - means[y[rest]]
        # The floor that it shrinks to, and the number that it divides by, stay those of the whole.
        within = 0.9 * residuals.T @ residuals / 60 + 0.1 * scale * np.eye(x.shape[1])
        apart = x[row] - means
        distances = np.einsum("kd,de,ke->k", apart, np.linalg.inv(within), apart)
        others = np.delete(distances, y[row]).min()
        assert found[place] == pytest.approx((distances[y[row]] - others) / 2, rel=1e-6)


def test_p_values_are_not_too_small_where_all_are_of_one_kind() -> None:
    draw = np.random.default_rng(0)
    near, high = [], []
    for _ in range(300):
        values = draw.standard_normal((60, 4))
        near.append(crowd(values[:40], values[40:]).p)
        high.append(tail(values[:40, 0], values[40:, 0]))
    for found in (near, high):
        assert np.mean(np.array(found) <= 0.05) <= 0.075  # three deviations above .05 would be .088
        assert np.min(found) > 1e-4


def test_a_group_of_new_images_and_strange_ones_have_small_p_values() -> None:
    draw = np.random.default_rng(1)
    old, new = draw.standard_normal((80, 4)), draw.standard_normal((40, 4))
    new[:12] = 1.5 + draw.standard_normal((12, 4)) / 50
    found = crowd(old, new)
    assert found.p < 1e-3
    assert (found.each[:12] < 1e-4).all()
    assert np.median(found.each[12:]) > 0.05
    strange = np.concatenate([np.full(10, 9.0), draw.standard_normal(30)])
    assert tail(old[:, 0], strange) < 1e-4
    assert ranks(old[:, 0], strange)[:10].max() == pytest.approx(1 / 81)
    assert crowd(old[:1], new[:1]).p == 1.0


def test_a_shared_picture_is_named_and_so_is_who_brought_it() -> None:
    old, new = kept(batch(360, 3)), batch(180, 4, stamped=18)
    judged = judge(old, *views(new), 0.01)
    first = judged.answers[0]
    assert first.label == 0
    assert first.corrected < 1e-4
    assert UNLIKE in {answer.question for answer in judged.answers if answer.corrected <= 0.01}
    flagged = judged.flagged.nonzero()[0]
    assert set(range(162, 180)) <= set(flagged.tolist())
    assert len(flagged) <= 28
    assert {answer.label for answer in judged.answers if answer.corrected <= 0.01} == {0}
    names = ["mallory" if row >= 162 or row % 20 == 0 else f"c{row % 4}" for row in range(180)]
    groups = by_group("who", names, new.labels.numpy(), old.labels, judged)
    assert groups["count"] == 5
    assert [group["name"] for group in groups["groups"] if group["stands_out"]] == ["mallory"]
    clean = judge(old, *views(batch(180, 5)), 0.01)
    assert not clean.flagged.any()
    assert min(answer.corrected for answer in clean.answers) > 0.01


def test_a_picture_that_the_encoder_does_not_see_is_seen() -> None:
    clean = batch(180, 4)
    marked = clean.images.clone()
    rows = (clean.labels == 0).nonzero().flatten()[:20]
    marked[rows, :, ::2, ::3] = 255
    contents, _, labels = views(clean)
    judged = judge(kept(batch(360, 3)), contents, pictures_of(marked), labels, 0.01)
    accepted = [(answer.label, answer.question) for answer in judged.answers if answer.corrected <= 0.01]
    assert accepted == [(0, PICTURES)]
    assert set(rows.tolist()) <= set(judged.flagged.nonzero()[0].tolist())


def test_what_is_kept_of_an_image_is_small_whole_numbers_and_the_same_for_its_copy() -> None:
    data = batch(9, 6)
    contents, shown, _ = views(data)
    assert contents.dtype == shown.dtype == np.int16
    assert np.linalg.norm(contents / SCALE, axis=1) == pytest.approx(1, abs=0.25)
    assert (pictures_of(data.images[[4, 4]]) == shown[4]).all()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A folder with a finished run that keeps statistics of a set, and two batches, one of them poisoned."""
    folder = tmp_path_factory.mktemp("against")
    module_of("squares_of_pixels", 6)
    for name, data in {"new": batch(120, 8), "bad": batch(120, 9, stamped=15)}.items():
        np.savez(folder / f"{name}.npz", images=data.images.permute(0, 2, 3, 1).numpy(), labels=data.labels.numpy())
    shutil.copytree(finished_run, folder / "run")
    old = batch(240, 7)
    seen = encoded_by(sys.modules["squares_of_pixels"].encoder(), old, Runtime.create("cpu"))
    (folder / "run" / FILE).write_bytes(Statistics.of(old, seen, np.arange(240)).packed())
    write_checksums(folder / "run", {**(read_checksums(folder / "run") or {}), FILE: "0" * 64})
    reseal(folder / "run")
    return folder


def test_a_scan_keeps_statistics_of_what_it_does_not_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "EPOCHS", 2)
    module_of("squares_of_pixels", 6)
    data = batch(36, 10)
    np.savez(tmp_path / "few.npz", images=data.images.permute(0, 2, 3, 1).numpy(), labels=data.labels.numpy())
    own = ("--set", "defence.witness=own:squares_of_pixels", "--device", "cpu", "--quiet")
    done = invoke("scan", tmp_path / "few.npz", "--out", tmp_path / "run", *own)
    assert done.code == 0, done
    assert invoke("verify", tmp_path / "run").code == 0
    found = read(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert int(found.counts.sum()) == 36 - record["metrics"]["n_flagged"]
    assert (found.kept.classes, found.kept.shape) == (("0", "1", "2"), (3, 12, 12))
    # Runs without an encoder keep none, and what was kept by an earlier run in the folder is gone.
    done = invoke("scan", tmp_path / "few.npz", "--out", tmp_path / "run", *own[2:], "--overwrite", *FAST)
    assert done.code == 0, done
    assert not (tmp_path / "run" / FILE).exists()


def test_a_batch_is_compared_with_what_a_run_kept(runs: Path, tmp_path: Path) -> None:
    same = ("--against", runs / "run", "--quiet", "--device", "cpu", "--fail-on", "undecided")
    done = invoke("scan", runs / "new.npz", *same, "--out", tmp_path / "new")
    assert done.code == 0, done
    assert "No class of the batch stands out" in done.out
    done = invoke("scan", runs / "bad.npz", *same, "--out", tmp_path / "bad", "--format", "json")
    assert done.code == 3, done
    values = json.loads(done.out)
    assert values["verdict"] == "undecided"
    assert values["compared"][0]["label"] == "0"
    assert values["compared"][0]["corrected"] <= 0.01
    found = {suspect["id"] for suspect in values["suspects"]}
    assert len(found) == values["flagged"]
    assert sum(int(name.rpartition("/")[2]) >= 105 for name in found) == 15
    assert len(found) <= 20
    # The formats, the page and the next comparison are as after every scan.
    log = json.loads(invoke("report", tmp_path / "bad", "--format", "sarif").out)
    assert "stands out from the earlier set" in log["runs"][0]["results"][1]["message"]["text"]
    page = (tmp_path / "bad" / "report.html").read_text(encoding="utf-8")
    assert "Beside the earlier set" in page
    assert "another seed" not in page
    both = Against((str(runs / "run"), str(tmp_path / "bad"))).old
    assert int(both.counts.sum()) == 240 + 120 - len(found)


def test_what_cannot_be_compared_is_refused_in_one_line(runs: Path, finished_run: Path, tmp_path: Path) -> None:
    data = batch(120, 8)
    images = data.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "four.npz", images=images, labels=np.arange(120) % 4)
    np.savez(tmp_path / "grey.npz", images=images[..., :1], labels=data.labels.numpy())
    shutil.copytree(runs / "run", tmp_path / "damaged")
    content = bytearray((tmp_path / "damaged" / "statistics.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged" / "statistics.safetensors").write_bytes(content)
    out = ("--out", tmp_path / "out", "--quiet", "--device", "cpu")
    new = (runs / "new.npz", *out)
    with_run = ("--against", runs / "run")
    assert_refused(invoke("scan", *new, "--against", tmp_path / "none"), "no run folder")
    assert_refused(invoke("scan", *new, "--against", finished_run), "no statistics", "scan its set again")
    assert_refused(invoke("scan", *new, "--against", tmp_path / "damaged"), "damaged or was changed")
    reseal(tmp_path / "damaged")
    assert_refused(invoke("scan", *new, "--against", tmp_path / "damaged"), "does not match its checksum")
    assert_refused(invoke("scan", tmp_path / "four.npz", *out, *with_run), "class '3'", "0, 1, 2")
    assert_refused(invoke("scan", tmp_path / "grey.npz", *out, *with_run), "1x12x12", "3x12x12")
    assert_refused(invoke("scan", *new, *with_run, "--image-size", 16), "3x16x16", "3x12x12")
    assert_refused(invoke("scan", *new, *with_run, "--defence", "witnesses"), "exclude each other")
    assert_refused(invoke("scan", *new, *with_run, "--dry-run"), "exclude each other")
    assert_refused(invoke("scan", *new, *with_run, "--alpha", 2), "alpha", "below 1")
    assert_refused(invoke("scan", *new, *with_run, "--set", "defence.witness=efficientnet-lite0"), "own:squares")
    own = ("--defence", "against", "--set", f"defence.runs=[{runs / 'run'}]")
    assert_refused(invoke("train", *new, *own), "trains no network")
    assert not (tmp_path / "out").exists()


def test_another_encoder_of_the_same_name_is_refused(runs: Path, tmp_path: Path) -> None:
    module_of("squares_of_pixels", 3)
    try:
        done = invoke("scan", runs / "new.npz", "--against", runs / "run", "--out", tmp_path / "out", "--quiet")
    finally:
        module_of("squares_of_pixels", 6)
    assert_refused(done, "is not the one that looked at the set")
    with pytest.raises(ConfigError, match="give the folder"):
        Against()


def test_another_order_of_classes_is_refused(runs: Path) -> None:
    against = Against((str(runs / "run"),))
    with pytest.raises(DataError, match="another order"):
        against.given(replace(batch(30, 1), classes=("1", "0", "2")), None, "")
    few = replace(batch(30, 1), classes=("0", "2"), labels=torch.arange(30) % 2)
    assert against.given(few, None, "").runs == against.runs


def test_from_python_it_is_a_defence_by_name(runs: Path) -> None:
    settings = {"defence": {"runs": [str(runs / "run")], "alpha": 0.02}, "device": "cpu"}
    run = antibackdoor.scan(batch(60, 11, stamped=12), defence="against", settings=settings)
    assert run.model is None
    assert run.isolation.flagged[-12:].all()
    assert run.record.config["defence"]["alpha"] == 0.02
    assert run.record.data["compared"][0]["corrected"] <= 0.02
