"""The list of the images of a run, one row an image, for people and programs that go on with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

from antibackdoor.csvs import as_text, lines_of
from antibackdoor.extras import need

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "ImageList", "frame_of"]

COLUMNS = ("id", "file", "label", "score", "suspect", "class_verdict", "decision")


@dataclass(frozen=True, eq=False)
class ImageList:
    """N images, in the order of their run.

    Attributes:
        id: Their names, as in suspects.csv.
        file: Where each lies; empty where it is no file.
        label: The class that each is to be trained under.
        score: Higher is more suspect; NaN where there is none.
        suspect: Whether each is to be left out: by what was decided, else by what the defence flagged.
        class_verdict: What the run says of the class that each came with.
        decision: What a person decided, or empty.
    """

    id: Sequence[str]
    file: Sequence[str]
    label: Sequence[str]
    score: Sequence[float]
    suspect: Sequence[bool]
    class_verdict: Sequence[str]
    decision: Sequence[str]

    def __len__(self) -> int:
        return len(self.id)

    def of(self, mask: Sequence[bool]) -> ImageList:
        """Return the list without the images where ``mask``, (N,), is False."""
        return ImageList(*(list(compress(getattr(self, name), mask)) for name in COLUMNS))

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns by name."""
        return {name: list(getattr(self, name)) for name in COLUMNS}

    def csv(self) -> str:
        """Return the list as CSV; suspect is 0 or 1, and a score that is not there is empty."""
        named = [as_text(name) for name in self.label]
        columns = (
            map(as_text, self.id),
            map(as_text, self.file),
            named,
            ("" if math.isnan(value) else f"{value:.6g}" for value in self.score),
            map(int, self.suspect),
            self.class_verdict,
            self.decision,
        )
        return lines_of([COLUMNS, *zip(*columns, strict=True)])

    def rows(self) -> list[dict[str, object]]:
        """Return one mapping an image, for JSON; a score that is not there is None."""
        columns = self.columns()
        columns["score"] = [None if math.isnan(value) else float(f"{value:.6g}") for value in self.score]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def parquet(self) -> bytes:
        """Return the list as a Parquet file.

        Raises:
            ConfigError: pandas or pyarrow is not installed.
        """
        import io

        content = io.BytesIO()
        need("pyarrow", "tables")  # pandas would say less of what is missing
        frame_of(self.columns()).to_parquet(content, engine="pyarrow", index=False)
        return content.getvalue()


def frame_of(columns: Mapping[str, Sequence[object]]) -> pd.DataFrame:
    """Return columns as a pandas DataFrame.

    Raises:
        ConfigError: pandas is not installed.
    """
    need("pandas", "tables")
    import pandas as pd

    return pd.DataFrame(columns)
