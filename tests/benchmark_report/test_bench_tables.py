from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from antibackdoor.benchmark.published import PUBLISHED
from antibackdoor.benchmark.reading import read
from antibackdoor.benchmark.summary import stat_of, summarise
from antibackdoor.benchmark.tables import write_tables
from antibackdoor.benchmark.wording import percent
from antibackdoor.errors import StorageError

Record = dict[str, Any]
Make = Callable[..., Record]
Grid = Callable[..., list[Record]]


def rows_of(text: str) -> list[list[str]]:
    """The rows of the first Markdown table, head first."""
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    lines = [line for line in tables[0].splitlines() if not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def table(records: list[Record], out: Path) -> list[dict[str, str]]:
    """The Markdown table as one mapping a row."""
    write_tables(records, out)
    head, *rows = rows_of((out / "table.md").read_text(encoding="utf-8"))
    return [dict(zip(head, row, strict=True)) for row in rows]


def lines(records: list[Record], out: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of the CSV by attack and defence."""
    write_tables(records, out)
    reader = csv.DictReader(io.StringIO((out / "table.csv").read_text(encoding="utf-8")))
    return {(line["attack"], line["defence"]): line for line in reader}


def test_mean_and_sample_deviation() -> None:
    stat = stat_of([0.9, 0.8, 1.0])
    assert stat is not None
    assert (stat.mean, stat.sd, stat.n) == (pytest.approx(0.9), pytest.approx(0.1), 3)
    assert percent(stat) == "90.0 ± 10.0"
    single = stat_of([0.5])
    assert (percent(single), percent(None), stat_of([])) == ("50.0", "–", None)


def test_rows_are_settings_and_columns_are_defences(grid: Grid, tmp_path: Path) -> None:
    records = grid(data=("cifar10", "gtsrb"), rates=(0.05, 0.01))
    random.Random(0).shuffle(records)
    rows = table(records, tmp_path)
    assert len(rows) == 2 * (1 + 2 * 2)
    assert set(rows[0]) >= {"control", "none", r"nad \[5 % trusted\]", "abl", "witnesses"}
    assert list(rows[0])[6] == "none", "undefended training comes first"
    for data in ("cifar10", "gtsrb"):
        own = [(row["attack"], row["rate"]) for row in rows if row["data"] == data]
        assert own[0] == ("none", "–")
        assert [rate for _, rate in own[1:]] == ["1 %", "5 %"] * 2
    assert all(row["n"] == "3" for row in rows)


def test_means_are_over_seeds(record: Make, tmp_path: Path) -> None:
    records = [record(seed=seed, ca=ca, asr=asr) for seed, ca, asr in ((0, 0.9, 1.0), (1, 0.8, 0.9), (2, 1.0, 0.8))]
    (row,) = table(records, tmp_path)
    assert row["none"] == "90.0 ± 10.0 / 90.0 ± 10.0"
    assert row["control"] == "93.0 ± 0.0 / 1.0 ± 0.0"
    line = lines(records, tmp_path)["badnets", "none"]
    assert float(line["excess"]) == pytest.approx(0.89)
    assert (line["n"], line["seeds"], line["der"], line["cost"]) == ("3", "0 1 2", "", "1")
    assert float(line["ca_sd"]) == pytest.approx(0.1)


def test_a_share_of_a_class_is_no_share_of_the_set(record: Make, tmp_path: Path) -> None:
    # 10 % of all images stands in a published table; 10 % of a class are a tenth of that.
    of_set, of_class = record(rate=0.1), record(rate=0.1)
    of_class["config"]["attack"]["rate_of"] = "class"
    rows = table([of_class, of_set], tmp_path)
    assert [row["rate"] for row in rows] == ["10 %", "10 % of class"]
    assert all(row["n"] == "1" for row in rows)
    assert [row["published"] != "–" for row in rows] == [True, False]
    text = (tmp_path / "table.csv").read_text(encoding="utf-8")
    assert [(line["rate"], line["rate_of"]) for line in csv.DictReader(io.StringIO(text))] == [
        ("0.1", "dataset"),
        ("0.1", "class"),
    ]
    assert "10 \\% of class" in (tmp_path / "table.tex").read_text(encoding="utf-8")


def test_effectiveness_is_taken_seed_by_seed(record: Make, tmp_path: Path) -> None:
    records = [
        record(seed=0, ca=0.9, asr=1.0),
        record(seed=1, ca=0.8, asr=0.6),
        record(seed=0, defence="abl", ca=0.8, asr=0.2),
        record(seed=1, defence="abl", ca=0.9, asr=0.8),
    ]
    line = lines(records, tmp_path)["badnets", "abl"]
    # 0.85 with the first seed; 0.5 with the second, where both differences are cut off at zero.
    assert float(line["der"]) == pytest.approx(0.675)
    assert float(line["cost"]) == pytest.approx(1.5)


def test_best_is_the_highest_effectiveness(record: Make, tmp_path: Path) -> None:
    records = [
        record(ca=0.90, asr=0.99),
        record(defence="abl", ca=0.60, asr=0.00),  # the lowest attack success, at the price of accuracy
        record(defence="witnesses", ca=0.89, asr=0.03),
        record(attack="none", ca=0.9),
        record(attack="none", defence="abl", ca=0.91),
        record(attack="none", defence="witnesses", ca=0.8),
    ]
    clean, attacked = table(records, tmp_path)
    assert (attacked["abl"], attacked["witnesses"]) == ("60.0 / 0.0", "**89.0 / 3.0**")
    assert clean["abl"] == "**91.0 / –**"
    assert "**" not in attacked["none"] + clean["none"] + clean["witnesses"]
    assert "DER = " in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_nothing_is_best_without_an_effect_or_without_every_seed(record: Make, tmp_path: Path) -> None:
    idle = [record(ca=0.9, asr=0.1), record(defence="abl", ca=0.7, asr=0.1)]
    assert table(idle, tmp_path)[0]["abl"] == "70.0 / 10.0"
    partial = [record(seed=0), record(seed=1), record(seed=0, defence="witnesses"), record(seed=0, defence="abl")]
    partial.append(record(seed=1, defence="abl"))
    (row,) = table(partial, tmp_path)
    assert row["n"] == "2"
    assert row["witnesses"].endswith("(n=1)")
    assert row["abl"].startswith("**")


def test_failed_cells_are_listed_and_in_no_mean(record: Make, tmp_path: Path) -> None:
    records = [
        record(seed=0, ca=0.9, asr=1.0),
        record(seed=1, error="the loss | became infinite"),
        record(seed=0, defence="abl", error="no luck"),
        record(seed=0, defence="witnesses"),
    ]
    (row,) = table(records, tmp_path)
    assert row["none"] == "90.0 / 100.0 (n=1)"
    assert row["abl"] == "failed"
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "## Failed cells: 2" in text
    assert r"badnets 10 %, none, seed 1: NonFiniteLossError: the loss \| became infinite" in text
    line = lines(records, tmp_path)["badnets", "abl"]
    assert (line["n"], line["failed"], line["ca"]) == ("0", "1", "")
    assert "Failed cells, in no mean: 2." in (tmp_path / "table.tex").read_text(encoding="utf-8")


def test_a_cell_that_was_never_run_is_a_dash(record: Make, tmp_path: Path) -> None:
    rows = table([record(), record(attack="sig"), record(defence="abl")], tmp_path)
    assert [row["abl"] == "–" for row in rows] == [False, True]
    assert ("sig", "abl") not in lines([record(), record(attack="sig"), record(defence="abl")], tmp_path)


def test_what_a_defence_was_given_is_marked(record: Make, tmp_path: Path) -> None:
    elsewhere = record(defence="mcr", params={"trusted_share": 0.05})
    elsewhere["evidence"] = ["This defence was given 7 trusted images, those of a folder."]
    guessed = record(defence="spectral", label="guess", params={"rate": 0.3})
    guessed["evidence"] = ["This defence was told that 30 % of the images is poison."]
    records = [record(), record(defence="nad"), record(defence="spectral"), record(defence="witnesses")]
    records += [elsewhere, guessed]
    head = list(table(records, tmp_path)[0])
    assert r"nad \[5 % trusted\]" in head
    assert r"spectral \[true rate\]" in head
    assert r"mcr \[trusted images\]" in head
    assert r"guess \[a rate\]" in head
    assert "witnesses" in head
    assert "none" in head
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "nad: This defence was given 250 trusted images, 5 % of the training images." in text
    assert lines(records, tmp_path)["badnets", "nad"]["given"] == "5 % trusted"


def test_published_numbers_stand_apart_with_their_source(record: Make, tmp_path: Path) -> None:
    # A defence of the published column that was not run is not shown; another network or rate has none.
    records = [record(data="CIFAR-10"), record(data="CIFAR-10", attack="sig"), record(data="CIFAR-10", rate=0.01)]
    rows = table(records, tmp_path)
    assert [row["published"] for row in rows] == ["–", "none 93.2 / 100.0 (1); none 85.7 / 100.0 (2)", "–"]
    assert "1. github.com/bboylyg/ABL, README" in (tmp_path / "table.md").read_text(encoding="utf-8")
    own, with_abl = (
        lines(found, tmp_path)["badnets", "none"] for found in ([record()], [record(), record(defence="abl")])
    )
    assert own["ca"] == with_abl["ca"], "published numbers are in no mean"
    assert own["published_ca"] == "0.9324; 0.8565"
    assert "published" not in table([record(data="my photos")], tmp_path)[0]


def test_every_published_number_is_a_share_with_a_source() -> None:
    assert len({(p.data, p.model, p.attack, p.rate, p.defence, p.source) for p in PUBLISHED}) == len(PUBLISHED)
    assert all(0 <= p.ca <= 1 and 0 <= p.asr <= 1 and 0 < p.rate < 1 and p.source for p in PUBLISHED)


def test_different_settings_under_one_label_are_told_apart(record: Make) -> None:
    records = [
        record(defence="abl", params={"gamma": gamma, "share": 0.01}, ca=ca) for gamma, ca in ((0.5, 0.8), (0.9, 0.6))
    ]
    records.append(record(defence="abl", params={"gamma": 0.5, "share": 0.01}, attack="sig"))
    summary = summarise(records)
    assert summary.defences == ("abl (gamma=0.5)", "abl (gamma=0.9)")
    assert [entry.stats["ca"].n for entry in summary.entries.values()] == [1, 1, 1]


def test_of_two_records_of_one_cell_the_later_counts(record: Make) -> None:
    (cell,) = read([record(ca=0.1), record(ca=0.7)])
    assert cell.figures["ca"] == 0.7


def test_labels_tell_defences_and_attacks_apart(record: Make) -> None:
    other = record(defence="abl", label="abl, long")
    other["cell"]["attack_label"] = "badnets, big"
    summary = summarise([record(defence="abl"), other])
    assert summary.defences == ("abl", "abl, long")
    assert [setting.attack for setting in summary.settings] == ["badnets", "badnets, big"]


def test_what_is_not_a_number_counts_as_not_measured(record: Make, tmp_path: Path) -> None:
    (row,) = table([record(ca=float("nan"), asr=0.5), record(seed=1, ca=0.8, asr=None)], tmp_path)
    assert row["none"] == "80.0 / 50.0"


@pytest.mark.parametrize("change", [{"format": "antibackdoor cell 0"}, {"cell": {"data": "x"}}, {"cell": None}])
def test_another_format_is_one_clear_line(record: Make, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match="expected a record of format 'antibackdoor cell 1'") as caught:
        write_tables([record() | change], tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_csv_has_one_line_a_row_and_defence(grid: Grid, tmp_path: Path) -> None:
    found = lines(grid(), tmp_path)
    assert len(found) == 3 * 4
    nad = found["badnets", "nad"]
    assert (nad["data"], nad["model"], nad["rate"], nad["verdicts"]) == ("cifar10", "wrn-16-1", "0.1", "undecided: 3")
    assert 0.8 < float(nad["ca"]) < 0.9
    assert float(nad["control_asr"]) == pytest.approx(0.01)
    assert found["none", "nad"]["asr"] == found["none", "nad"]["der"] == ""


def test_latex_is_balanced_and_every_line_has_every_column(record: Make, grid: Grid, tmp_path: Path) -> None:
    records = grid(data=("cifar10", "my_data & co"), defences=("none", "nad", "spectral", "witnesses"))
    records.append(record(attack=r"odd_{50%}\#^~$<|>", error=r"C:\path {is bad"))
    write_tables(records, tmp_path)
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    bare = re.sub(r"\\[\\{}%&#$_]", "", text)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") == 2 * bare.count(r"$\pm$")
    assert "±" not in text
    # Of each data set: clean accuracy and attack success, then robust accuracy and defence effectiveness.
    assert re.findall(r"\\begin\{(\w+)\}", bare) == ["document", *["table", "tabular"] * 4]
    assert sorted(re.findall(r"\\begin\{(\w+)\}", bare)) == sorted(re.findall(r"\\end\{(\w+)\}", bare))
    # A table's lines: control, four defences, two columns each, after three; the published column is in all or in none.
    columns = [len(spec) for spec in re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)]
    assert columns == [3 + 2 * 5 + 1, 3 + 2 * 5] * 2
    for spec, part in zip(columns, bare.split(r"\begin{tabular}")[1:], strict=True):
        body = [line for line in part.splitlines() if line.count("&") > 2]
        multicolumn = [line.count("&") + line.count(r"\multicolumn") for line in body]
        assert {count + 1 for count in multicolumn} == {spec}
    # Nothing is left that TeX would read as a comment or a command of its own.
    assert [line for line in bare.splitlines() if "%" in line.removesuffix("{%")] == []
    assert r"odd\_\{50\%\}\textbackslash{}\#\textasciicircum{}\textasciitilde{}\$\textless{}|\textgreater{} & " in text


def test_robust_accuracy_effectiveness_and_what_figures_are_over(record: Make, tmp_path: Path) -> None:
    counts = {"n_test": 1000, "n_triggered": 900}
    records = [record(ca=0.9, asr=1.0, ra=0.0, **counts), record(defence="abl", ca=0.8, asr=0.2, ra=0.7, **counts)]
    records[1]["updates"] = 27146
    write_tables(records, tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    _, side, basis = (block.splitlines() for block in text.split("\n\n") if block.startswith("|"))
    # DER: (0.8 - 0.1 + 1) / 2.
    assert side[2] == "| cifar10 | wrn-16-1 | badnets | 10 % | 1 | 92.0 / – | 0.0 / – | **70.0 / 85.0** |"
    assert basis[0].endswith(
        "| training images | poison | test images | triggered | updates of none | updates of abl |"
    )
    assert basis[2] == "| cifar10 | wrn-16-1 | badnets | 10 % | 5,000 | 500 | 1,000 | 900 | – | 27,146 |"
    line = lines(records, tmp_path)["badnets", "abl"]
    assert (line["n_test"], line["n_triggered"], line["updates"]) == ("1000", "900", "27146")
    assert float(line["der"]) == pytest.approx(0.85)
    assert "& RA & DER " in (tmp_path / "table.tex").read_text(encoding="utf-8")


def test_what_a_grid_lacks_of_the_protocol_is_said(grid: Grid, record: Make, tmp_path: Path) -> None:
    full = grid(attacks=("badnets",), defences=("none", "abl"))
    for number, entry in enumerate(full):
        entry["config"]["attack"]["target"] = number % 2
        entry["updates"] = 100
    assert summarise(full).departures == ()
    short = [entry for entry in full if entry["cell"]["seed"] == 0]
    for entry in short:
        entry["config"]["attack"]["target"] = 4
    short[1]["updates"] = 250
    said = summarise([*short, record(attack="sig", defence="abl")]).departures
    assert [sentence.partition(": ")[2] for sentence in said] == [
        "3 of 3 entries have fewer than 3 seeds.",
        "all attacks aim at one class (4), and what is found may be about that class.",
        "1 of 2 rows have no undefended network, so no DER.",
        "longer than undefended training, in updates: abl (2.5 times); the control is as short as that training.",
    ]
    write_tables(short, tmp_path)
    assert "docs/protocol.md" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_files_are_returned_and_the_same_records_give_the_same_files(grid: Grid, tmp_path: Path) -> None:
    written = write_tables(grid(), tmp_path / "a")
    assert [path.name for path in written] == ["table.md", "table.csv", "table.tex"]
    again = write_tables(grid(), tmp_path / "b")
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_a_table_says_how_its_cells_were_made(grid: Grid, tmp_path: Path) -> None:
    records = grid(attacks=("badnets",), defences=("none", "abl"), seeds=(0, 1))
    for entry in records:
        entry["config"]["train"] = {"epochs": 20, "batch_size": 128, "augment": ["crop", "flip"]}
        entry["metrics"]["n_test"] = 1000
    write_tables(records, tmp_path)
    for name in ("table.md", "table.tex"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert (
            "cifar10, wrn-16-1: 5,000 training images, 1,000 test images, 20 epochs, batches of 128, augmentation crop "
            "and flip." in text
        )
        assert "Made on: Some CPU, cpu, bfloat16." in text
        assert "Versions: python 3.12.1, torch 2.13.0." in text
        assert "Mixed" not in text


def test_cells_that_do_not_belong_in_one_table_are_said_first(grid: Grid, tmp_path: Path) -> None:
    records = grid(attacks=("badnets",), defences=("none", "abl"), seeds=(0, 1))
    for number, entry in enumerate(records):
        entry["data"] = {"fingerprint": f"seed {entry['cell']['seed']}" if number else "other images"}
        entry["versions"]["antibackdoor code"] = "abc" if number < 2 else "def"
    records[-1]["device"] = {"name": "Some GPU", "type": "cuda", "precision": "bfloat16"}
    summary = summarise(records)
    assert summary.made[0] == (
        "Mixed: the cells of cifar10, seed 0, were made from 2 different sets of images, and do not compare."
    )
    assert summary.made[1] == "Mixed: the cells were made by 2 versions of this package's code: abc, def."
    assert any("Some GPU" in words and "several devices" in words for words in summary.made)


def test_defences_within_a_deviation_of_the_best_are_bold_as_well(record: Make, tmp_path: Path) -> None:
    values = {"abl": (0.1, 0.3, 0.2), "witnesses": (0.15, 0.2, 0.25), "nad": (0.5, 0.5, 0.5)}
    records = [record(seed=seed, ca=0.9, asr=1.0) for seed in range(3)]
    for defence, found in values.items():
        records += [record(seed=seed, ca=0.9, asr=asr, defence=defence) for seed, asr in enumerate(found)]
    bold = {entry.defence for entry in summarise(records).entries.values() if entry.best}
    assert bold == {"abl", "witnesses"}
    # Of one seed there is no deviation, and the rule says what that is worth.
    alone = {
        entry.defence
        for entry in summarise([r for r in records if r["cell"]["seed"] == 1]).entries.values()
        if entry.best
    }
    assert alone == {"witnesses"}
    write_tables(records, tmp_path)
    assert "bold is no evidence there" in (tmp_path / "table.md").read_text(encoding="utf-8")
