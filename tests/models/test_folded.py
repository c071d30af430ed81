"""The encoder's folded network is the package's network, up to rounding."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.models import folded as folded_module
from antibackdoor.models.folded import FoldedLite0
from antibackdoor.models.packaged import efficientnet_lite0

pytest.importorskip("efficientnet_lite_pytorch")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """Return the network with statistics that its batch norms did not start with."""
    made = efficientnet_lite0(3, 1000, weights=True).eval()
    generator = torch.Generator().manual_seed(0)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean += 0.01 * torch.randn(module.running_mean.shape, generator=generator)
    return made


@pytest.mark.parametrize("side", [96, 64, 75])
@pytest.mark.parametrize("fused", [True, False])
@torch.inference_mode()
def test_it_is_the_same_function(network: torch.nn.Module, side: int, fused: bool) -> None:
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    folded = FoldedLite0(network, CPU)
    folded._fuses = fused
    expected = network.extract_features(images)
    torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("able", [True, False])
@torch.inference_mode()
def test_under_autocast_it_computes_in_its_type(
    network: torch.nn.Module, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the processor has instructions for the type or not."""
    if not able:
        monkeypatch.setattr(folded_module, "_has", lambda dtype: False)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    folded = FoldedLite0(network, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        half = folded(images)
        package = network.extract_features(images)
    assert half.dtype == torch.bfloat16
    exact = network.extract_features(images)
    error, allowed = ((found.float() - exact).abs().mean() for found in (half, package))
    assert error < 1.5 * allowed
    assert folded(images).dtype == torch.float32
