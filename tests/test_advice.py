"""What a verdict tells to do: the first sentence, and what would make it surer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from end_to_end import FAST, invoke, write_npz

from antibackdoor.advice import advise
from antibackdoor.report import render
from antibackdoor.storage import load_run
from antibackdoor.stored import StoredRun

Make = Callable[..., StoredRun]


@pytest.fixture(scope="module")
def make(finished_run: Path) -> Make:
    """Gives a run of three classes; ``flagged`` says how many images of each class are flagged."""
    stored = load_run(finished_run)

    def build(
        verdict: str | None,
        *,
        flagged: tuple[int, int, int] = (0, 0, 0),
        doubtful: tuple[int, ...] = (),
        per_class: int = 200,
        epochs: int = 4,
        losses: float = 0.1,
        defence: str = "witnesses",
        scan: bool = False,
        classes: tuple[str, ...] = ("cat", "dog", "owl"),
    ) -> StoredRun:
        labels = np.repeat(np.arange(3), per_class)
        marks = np.concatenate([np.arange(per_class) < count for count in flagged])
        config: dict[str, Any] = {"defence": {"name": defence}}
        data = {"name": "photos", "classes": list(classes)} | ({"scan": True} if scan else {})
        return dataclasses.replace(
            stored,
            record=dataclasses.replace(stored.record, verdict=verdict, config=config, data=data),  # type: ignore[arg-type]
            ids=tuple(map(str, range(len(labels)))),
            labels=labels.astype(np.int64),
            classes=classes,
            scores=marks.astype(np.float32),
            flagged=marks,
            losses=np.full((epochs, len(labels)), losses, dtype=np.float32),
            phases=("look",) * epochs,
            gallery_index=np.zeros(0, dtype=np.int64),
            gallery=stored.gallery[:0],
            seen=None,
            content=None,
            doubtful=doubtful,
        )

    return build


def test_a_poisoned_set_is_not_to_be_trained_on(make: Make) -> None:
    advice = advise(make("poisoned", flagged=(2, 9, 0)))
    assert advice.next == (
        "Do not train on this set as it is: look at the 11 suspects, first those of classes 'dog' and 'cat', take out "
        "what does not belong there, and scan again."
    )
    assert advice.surer == ()


def test_a_class_in_doubt_is_to_be_looked_at(make: Make) -> None:
    assert advise(make("undecided", doubtful=(2,), scan=True)).next == (
        "Do not take this set for clean yet: look at the most suspect images of class 'owl', and scan with another "
        "`--seed`."
    )
    assert advise(make("undecided", doubtful=(2,))).next.endswith("and train with another `--seed`.")


def test_small_classes_are_to_have_more_images(make: Make) -> None:
    advice = advise(make("undecided", doubtful=(0, 1, 2), per_class=20))
    assert advice.next == (
        "This set cannot be cleared as it is: have 40 images a class, better a few hundred, and scan again."
    )
    assert "More images: 3 classes have under 40, too few to be looked at." in advice.surer


def test_too_few_epochs_are_to_be_more(make: Make) -> None:
    advice = advise(make("undecided", doubtful=(0, 1, 2), epochs=1))
    assert "could clear no class" in advice.next
    assert "`--epochs`" in advice.next
    # Runs of before the classes in doubt were kept say the same.
    assert advise(make("undecided", epochs=1)).next == advice.next


@pytest.mark.parametrize("verdict", ["undecided", None])
def test_a_defence_that_does_not_judge_says_so(make: Make, verdict: str | None) -> None:
    advice = advise(make(verdict, defence="abl", flagged=(1, 0, 0)))
    assert "does not judge the set" in advice.next
    assert "antibackdoor scan" in advice.next


def test_no_sign_of_poison_is_no_more_than_that(make: Make) -> None:
    scanned, trained = (advise(make("no sign of poison", scan=scan)) for scan in (True, False))
    assert "use the set, with the care" in scanned.next
    assert "use the network, with the care" in trained.next


def test_of_a_run_of_the_former_default_the_present_one_is_named(make: Make) -> None:
    former, present = (advise(make("no sign of poison", defence=name)) for name in ("filter", "witnesses"))
    assert former.next == present.next
    surer = "A scan with 'witnesses', which replaces the defence of this run and sees more."
    assert former.surer == (surer, *present.surer)
    assert "could clear no class" in advise(make("undecided", defence="filter")).next


def test_what_was_not_learned_is_said(make: Make) -> None:
    learned, hardly = (advise(make("no sign of poison", losses=loss)) for loss in (0.1, 2.0))
    assert "600 images in 3 classes of 200, after 4 epochs, when the network was sure of 100 %" in learned.looked
    assert "sure of 0 % of the labels" in hardly.looked
    assert "do not take the set for clean yet" in hardly.next
    assert "do not take" not in learned.next


def test_names_of_many_classes_are_cut_short(make: Make) -> None:
    run = make("undecided", doubtful=(0, 1))
    assert "classes 'cat' and 'dog', and" in advise(run).next
    many = dataclasses.replace(
        run,
        classes=("a", "b", "c", "d", "e", "f"),
        labels=np.arange(600, dtype=np.int64) % 6,
        doubtful=(0, 1, 2, 3, 4),
    )
    assert "classes 'a', 'b', 'c' and 2 more, and" in advise(many).next


@pytest.mark.parametrize("verdict", ["poisoned", "undecided", "no sign of poison", None])
def test_the_page_says_first_what_to_do(make: Make, verdict: str | None) -> None:
    run = make(verdict, flagged=(0, 3, 0))
    page = render(run)
    after = page[page.index('<h2 id="verdict">') :]
    step = re.sub("`([^`]+)`", r"<code>\1</code>", advise(run).next.replace("'", "&#39;"))
    assert after.index(step) < after.index("</p>")
    assert "What a network does not learn" in after


def test_a_scan_is_told_from_a_training(tmp_path: Path, finished_run: Path) -> None:
    done = invoke("scan", write_npz(tmp_path / "d.npz", 4), "--out", tmp_path / "run", *FAST, "--quiet")
    assert done.code == 0, done
    assert load_run(tmp_path / "run").record.data["scan"] is True
    assert "scan" not in load_run(finished_run).record.data
    assert "verdict: undecided. The defence of this run does not judge" in done.out
