"""The network of a run as one file that runs without this package: pixels in, probabilities out."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from antibackdoor import storage
from antibackdoor.errors import RunExistsError, StorageError
from antibackdoor.extras import need
from antibackdoor.files import atomic_write_bytes
from antibackdoor.types import RunRecord

__all__ = ["ABOUT", "NETWORKS", "ONNX", "TORCH_EXPORT", "export_network"]

TORCH_EXPORT, ONNX = "torch-export", "onnx"
NETWORKS = (TORCH_EXPORT, ONNX)
ABOUT = "antibackdoor.json"  # in the file, beside the network
_CLOSE = 1e-4  # greatest difference of a probability between the two


class _Portable(nn.Module):
    """A network with what comes before and after it.

    Args:
        model: From float (N, C, H, W) in [0, 1] to logits (N, K).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, float32 (N, K), of pixels, uint8 (N, C, H, W)."""
        logits: Tensor = self.model(images.float() / 255)
        return logits.softmax(1)


def export_network(run: Path, path: Path, to: str = TORCH_EXPORT, *, overwrite: bool = False) -> float:
    """Write the network of a run as a program of ``torch.export`` or as ONNX, and compare the file with it.

    It takes pixels, uint8 (N, C, H, W) at the size of the run, and gives probabilities, float32 (N, K). The file says
    its classes, its size and the verdict of the run under the name ``antibackdoor.json``: an extra file of the program,
    or an entry of ONNX's metadata.

    Args:
        run: A finished run folder.
        path: The file, mostly ``*.pt2`` or ``*.onnx``.
        to: One of ``NETWORKS``.
        overwrite: Replace a file that is there.

    Returns:
        The greatest difference of a probability between the network and the file, over the images of the run's gallery.

    Raises:
        RunExistsError: There is such a file.
        StorageError: No finished run, no network in it, one that torch cannot export or that gives something else then,
            or a file that cannot be written.
        ConfigError: The network was the user's own, or a package is missing.
    """
    if path.exists() and not overwrite:
        raise RunExistsError(f"{path} is there already; give --overwrite to replace it, or another name")
    if to == ONNX:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package, "onnx")
    record = storage.read_record(run)
    network = _Portable(storage.load_model(run, record)).eval()
    images = torch.from_numpy(storage.load_run(run).gallery).permute(0, 3, 1, 2).contiguous()
    try:
        with torch.no_grad():
            program = torch.export.export(
                network, (images[:2],), dynamic_shapes={"images": {0: torch.export.Dim("images", min=1)}}
            )
            content, again = (_onnx if to == ONNX else _program)(program, json.dumps(_about(record)))
            difference = float((again(images) - network(images)).abs().max())
    except Exception as error:  # torch raises errors of many kinds here
        raise StorageError(f"torch cannot export this network: {' '.join(str(error).split())[:300]}") from None
    if not difference <= _CLOSE:
        raise StorageError(
            f"the exported network gives other probabilities, by up to {difference:.2g}; nothing written"
        )
    atomic_write_bytes(path, content)
    return difference


def _program(program: torch.export.ExportedProgram, about: str) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    """Return the file, and what is in it, from pixels to probabilities."""
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={ABOUT: about})
    content.seek(0)
    return content.getvalue(), torch.export.load(content).module()


def _onnx(program: torch.export.ExportedProgram, about: str) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    import onnxruntime

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter speaks of itself
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["probabilities"], verbose=False
        )
    if made is None:
        raise RuntimeError("the exporter gave nothing")
    proto = made.model_proto
    proto.metadata_props.add(key=ABOUT, value=about)
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def again(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return content, again


def _about(record: RunRecord) -> dict[str, object]:
    data = record.data
    return {
        "classes": data["classes"],
        **{name: data[name] for name in ("channels", "height", "width")},
        "input": "pixels, uint8 (N, C, H, W)",
        "output": "probabilities, float32 (N, K), in the order of classes",
        "verdict": record.verdict,
        "versions": record.versions,
    }
