"""Images as a set of Hugging Face's ``datasets``, in the form that ``load_from_disk`` reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from antibackdoor.imagelist import ImageList

__all__ = ["save_to_disk"]

_TABLE = ".rows.arrow"


def save_to_disk(
    folder: Path,
    images: ImageList,
    content: Callable[[int], bytes],
    classes: Sequence[str],
    *,
    name: Callable[[int], str],
    step: Callable[[], object],
) -> None:
    """Write images with what is known of them; a few are in memory at a time.

    The columns are image (the bytes of the file, as they are), label (of classes), id, score (NaN where there is none),
    class_verdict and decision.

    Args:
        folder: To be made.
        images: The images, N rows.
        content: Gives the bytes of the image of a row.
        classes: All class names, in label order.
        name: Gives the name of its file.
        step: Called after each image.

    Raises:
        OSError: It cannot be written.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(classes)),
            "id": datasets.Value("string"),
            "score": datasets.Value("float32"),
            "class_verdict": datasets.Value("string"),
            "decision": datasets.Value("string"),
        }
    )
    table = folder.with_name(f"{folder.name}{_TABLE}")  # a set is not saved over itself
    folder.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrowWriter(path=str(table), features=features, writer_batch_size=32)
    for row, of in enumerate(images.id):
        image = {"bytes": content(row), "path": name(row)}
        values = (image, images.label[row], of, images.score[row], images.class_verdict[row], images.decision[row])
        writer.write(features.encode_example(dict(zip(features, values, strict=True))))
        step()
    writer.finalize()
    writer.close()
    with _no_bars():
        datasets.Dataset.from_file(str(table)).save_to_disk(str(folder))
    table.unlink()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
