"""Bars in a notebook, and lines where there can be none."""

from __future__ import annotations

import importlib.util

import pytest
from rich.console import Console

from antibackdoor import console


@pytest.mark.parametrize(
    ("widgets", "jupyter", "bars"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_bars_where_they_can_be_shown(
    widgets: bool, jupyter: bool, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Console(force_jupyter=False, force_terminal=False)
    made.is_jupyter = jupyter
    monkeypatch.setattr(console, "Console", lambda **_: made)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    shown: list[str] = []

    class Bars:
        def __init__(self, *_: object, **__: object) -> None:
            shown.append("made")

        def __enter__(self) -> Bars:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def add_task(self, title: str, *, total: int, note: str) -> int:
            shown.append(f"{title} of {total}")
            return 0

        def advance(self, task: int, steps: int) -> None:
            shown.append(f"{steps} more")

    monkeypatch.setattr(console, "Progress", Bars)
    with console.ConsoleProgress().bar("reading", 3, "images") as bar:
        bar.advance()
    assert shown == (["made", "reading of 3", "1 more"] if bars else [])
