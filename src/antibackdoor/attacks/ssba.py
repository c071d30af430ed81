"""SSBA-like: a network hides one bit string in each image as a faint residual (Li et al., ISSBA, ICCV 2021)."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.minibatches import Minibatches, batch_size_for, descend
from antibackdoor.attacks.surrogate import artefact_key, cached
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.models.generators import BitDecoder, BitEncoder, apply_in_blocks, build_seeded, frozen
from antibackdoor.ops.perception import round_through
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Ssba"]

_LOG = logging.getLogger(__name__)
_BATCH = 64
_LR = 2e-3
# The residual starts this much stronger, so that the decoder soon finds anything, and shrinks over half of the steps.
_HEAD_START = 4.0
# The price of a visible residual rises while more of the bits than this are read and it is too visible; else it falls.
_READABLE = 0.98


@dataclass(frozen=True)
class Ssba(DirtyLabelAttack):
    """A residual that differs from image to image and hides the same bits in all of them.

    Attributes:
        steps: Updates of encoder and decoder together, at least 1.
        bits: Bits hidden, 1..256.
        secret_seed: Decides the one string that all poisoned images hide.
        strength: Largest change of a pixel, in steps of 255, 2..128. Under 2 it would not survive rounding.
        psnr: Peak signal-to-noise ratio in dB, above 0: as long as bits can be read, the residual grows fainter until
            it is there.
        width: Channels of the encoder at full resolution.
        encoder: What preparation trains; None before.
        readable: Share of the bits that the decoder reads from rounded images not trained on last; None before.

    Source:
        Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021. Like theirs, an encoder after
        StegaStamp is trained with random strings and a decoder, then frozen with one string. Ours is bounded
        (``strength tanh(u)``) in place of perceptual and adversarial losses, sees rounded images while it learns
        (straight-through), and is trained for minutes on the data set itself, not downloaded.
    """

    steps: int = 600
    bits: int = 20
    secret_seed: int = 0
    strength: float = 16.0
    psnr: float = 30.0
    width: int = 16
    encoder: nn.Module | None = field(default=None, init=False, repr=False, compare=False)
    readable: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.bits <= 256:
            raise ConfigError(f"bits: must be in 1..256, got {self.bits}")
        if not 2 <= self.strength <= 128:
            raise ConfigError(f"strength: must be in 2..128 steps of 255, got {self.strength}")
        if not self.psnr > 0:
            raise ConfigError(f"psnr: must be above 0 dB, got {self.psnr}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the encoder on the clean images, or take it from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        channels = clean.shape[0]
        encoder = build_seeded(
            lambda: BitEncoder(channels, self.bits, width=self.width), seeds.generator("ssba encoder")
        )
        names = ("steps", "bits", "strength", "psnr", "width")
        params = {name: getattr(self, name) for name in names}

        def make() -> dict[str, Tensor]:
            readable = self._train(encoder, clean, seeds)
            return {**encoder.state_dict(), "readable": torch.tensor(readable)}

        state = cached(artefact_key("ssba", clean, params, seeds), make)
        readable = float(state.pop("readable"))
        encoder.load_state_dict(state)
        if readable < 0.9:
            _LOG.warning("ssba: only %.0f %% of the hidden bits can be read back; raise attack.steps", 100 * readable)
        return ready._ready(encoder=frozen(encoder), readable=readable)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Hide the bits in every image; the result lies on the 256 levels of files."""
        if self.encoder is None:
            raise PoisonError("the ssba attack must be prepared before use, since its encoder is learnt")
        encoder = self.encoder
        secret = torch.randint(2, (self.bits,), generator=torch.Generator().manual_seed(self.secret_seed)).float()

        def residual(block: Tensor) -> Tensor:
            made: Tensor = encoder(block, secret.expand(len(block), -1))
            return made

        return round_through(images + self.strength / 255 * apply_in_blocks(residual, images))

    def _train(self, encoder: BitEncoder, clean: ImageSet, seeds: Seeds) -> float:
        """Train with random strings; returns the share of the bits that are read at the end."""
        decoder = build_seeded(lambda: BitDecoder(clean.shape[0], self.bits), seeds.generator("ssba decoder"))
        strings = seeds.generator("ssba strings")
        size = batch_size_for(clean.shape, _BATCH, least=16)
        batches = Minibatches(clean, size, torch.device("cpu"), seeds, "ssba")
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=_LR)
        price, right = 0.0, 0.5
        for step in range(self.steps):
            images, _ = batches.draw()
            secrets = torch.randint(2, (size, self.bits), generator=strings).float()
            residual = encoder(images, secrets)
            boost = max(1.0, _HEAD_START ** (1 - 2 * step / self.steps))
            read = decoder(round_through(images + boost * self.strength / 255 * residual))
            loss = F.binary_cross_entropy_with_logits(read, secrets) + price * residual.square().mean()
            descend(optimizer, loss, _LR, step, self.steps)
            right = 0.9 * right + 0.1 * float(((read > 0) == secrets.bool()).float().mean())
            if boost == 1.0:
                change = self.strength / 255 * float(residual.detach().square().mean().sqrt())
                visible = -20 * math.log10(max(change, 1e-9)) < self.psnr
                price = max(0.0, price + (1 if visible and right > _READABLE else -1) / self.steps)
        with torch.no_grad():
            decoder.eval()
            images = torch.cat([batches.draw()[0] for _ in range(4)])
            secrets = torch.randint(2, (len(images), self.bits), generator=strings).float()
            read = decoder(round_through(images + self.strength / 255 * encoder(images, secrets)))
        return float(((read > 0) == secrets.bool()).float().mean())
