"""The benchmark of the convolutions' limit runs and counts what it says; what it measures is not judged here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("limit")


def test_it_says_where_the_loop_stands(limit, tmp_path, capsys):
    out, threads = tmp_path / "limit.json", str(torch.get_num_threads())
    sizes = ["--model", "wrn-10-1", "--batch-size", "8", "--batches", "3", "--rounds", "2", "--threads", threads]
    limit.main([*sizes, "--ideas", "fused", "in-place", "--json", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["percent_of_limit"] > 0
    assert set(found["ideas"]) == {"fused", "in-place"}
    assert {len(seconds) for seconds in found["seconds"].values()} == {2}
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    assert found["shares"]["convolution"] > 0
    assert "convolutions alone" in capsys.readouterr().out


def test_operations_are_counted_by_hand(limit, blobs):
    data = blobs(8, 10, height=32, width=32)
    build, _ = builder_from("wrn-10-1", data)
    model = build(Seeds(0).generator("init"))
    found = limit.convolutions_of(model, (2, 3, 32, 32), Runtime.create("cpu", "fp32"))
    assert len(found) == 9  # the stem, two in each of three blocks, two shortcuts
    assert [convolution.first for convolution in found] == [True, *[False] * 8]
    assert found[0].flops == 2 * 2 * (2 * 16 * 32 * 32) * (3 * 9)
    assert found[1].flops == 3 * 2 * (2 * 16 * 32 * 32) * (16 * 9)
    assert all(convolution.inputs.is_contiguous(memory_format=torch.channels_last) for convolution in found)


def test_what_is_done_in_place_changes_no_bit(limit):
    loop = limit.Loop(limit.synthetic(24, 0), Runtime.create("cpu", "auto", "off"), "wrn-10-1", 8)
    plain = loop.prepared()()
    with limit.in_place():
        changed = loop.prepared()()
    assert (plain.losses == changed.losses).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolution"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::threshold_backward", "relu"),
        ("aten::empty", "rest"),
    ],
)
def test_what_an_operation_belongs_to(limit, name, kind):
    assert limit.kind_of(name) == kind


def test_too_little_to_measure_is_refused(limit):
    with pytest.raises(SystemExit):
        limit.parse(["--rounds", "0"])
