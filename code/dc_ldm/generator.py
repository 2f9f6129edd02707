"""DreamDiffusion behind the seam: EEG in, pictures and embeddings out, for controls, scores and notebooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dc_ldm import weights
from dc_ldm.ceilings import ceilings
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import check_steps, ddim, dpm_solver, guided, plms, sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.modules.conditioner import EEGConditioner
from dc_ldm.published import load_base_of, read_stage_b
from runtime import draws
from runtime.checkpoints import loaded, on_meta
from runtime.devices import free_memory
from runtime.errors import UserError, memory_ended
from runtime.pictures import to_uint8
from runtime.sampling import PAPER, Sampling
from runtime.system import About, Drawing, EEGInput, Shown

SAMPLERS = {"plms": plms, "ddim": ddim, "dpm_solver": dpm_solver}
DECODED_AT_ONCE = 2**18  # pixels: one picture of 512 x 512, enough to keep a device busy
MOST_AT_ONCE = {"cpu": 2**13, "cuda": 2**17}  # latent pixels; beyond, a batch is later finished and no faster


@dataclass
class EEGImageGenerator:
    """A trained stage B model. A picture depends on its EEG and seed, never on its batch.

    All modules are on one device. UNet and VAE compute in the type of their weights, everything between them in
    float32. no_context is the condition of no EEG, for guidance, which needs a model trained with cond_drop
    (`guidable`).
    """

    conditioner: EEGConditioner
    unet: UNet
    vae: AutoencoderKL
    alphas_cumprod: Tensor  # (1000,)
    no_context: Tensor  # (77, 768)
    latent_shape: tuple[int, int, int]  # (4, h, w)
    scale_factor: float = 0.18215
    guidable: bool = False
    input: EEGInput | None = None
    made_from: About | None = None
    base_folder: Path | None = None  # Stable Diffusion as it was before stage B
    text_states: Callable[[Sequence[str]], Tensor] | None = None  # captions -> (K, 77, 768), of its own text tower

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """In what UNet and VAE compute."""
        return next(self.unet.parameters()).dtype

    def check(self, sampling: Sampling) -> None:
        """Refuse a sampler, a number of steps or a guidance that this model cannot do: UserError."""
        check_sampler(sampling.sampler, sampling.steps)
        if sampling.guidance != 1 and not self.guidable:
            raise UserError(f"guidance={sampling.guidance}: the checkpoint was trained without cond_drop; use 1")

    @torch.inference_mode()
    def encode(self, eeg: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """EEG (N, C, T) -> context (N, 77, 768), embedding (N, D), float32 on the CPU. Raises UserError."""
        finite = eeg.flatten(1).isfinite().all(1)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            raise UserError(f"EEG of trial {first} has NaN or infinite samples; leave it out")
        pairs = [self.conditioner(chunk.float().to(self.device)) for chunk in eeg.split(batch_size)]
        context, embedding = (torch.cat(parts).float().cpu() for parts in zip(*pairs, strict=True))
        return context, embedding

    def embed(self, eeg: Tensor) -> Tensor:
        """EEG (N, C, T) -> the embedding that training aligned with CLIP's of the picture, (N, D) float32."""
        return self.encode(eeg)[1]

    @torch.inference_mode()
    def generate(self, eeg: Tensor, seeds: Tensor, sampling: Sampling = PAPER) -> Tensor:
        """Pictures (N, H, W, 3) uint8 of eeg (N, C, T), seeds (N,) int64; (N, S, H, W, 3) of seeds (N, S).

        A starting latent depends on the picture's seed alone. Raises UserError.
        """
        self.check(sampling)
        if len(seeds) != len(eeg):
            raise UserError(f"{len(seeds)} seeds for {len(eeg)} trials; give one row of seeds a trial")
        context = self.encode(eeg)[0].repeat_interleave(seeds[0].numel(), dim=0)
        pictures = self.from_context(context, seeds.flatten(), sampling)
        return pictures.unflatten(0, tuple(seeds.shape))

    @torch.inference_mode()
    def from_context(self, context: Tensor, seeds: Tensor, sampling: Sampling) -> Tensor:
        """Pictures (N, H, W, 3) uint8 of conditions (N, 77, 768), seeds (N,), as `generate` makes them of EEG."""
        fitting = self.fitting_batch(sampling)
        n = min(sampling.batch or fitting, len(seeds))
        try:
            parts = zip(context.split(n), seeds.split(n), strict=True)
            return torch.cat([self._sample(some, own.tolist(), sampling) for some, own in parts])
        except (MemoryError, RuntimeError) as error:
            if not memory_ended(error):
                raise
            smaller = f"batch_size={min(fitting, n // 2)} should" if n > 1 else "another device or size may"
            raise UserError(f"{n} pictures at once do not fit in the memory of {self.device}; {smaller}") from error

    def memory(self, n: int, guidance: float = 1.0) -> int:
        """About how many bytes sampling n pictures at once takes beside the weights.

        Measured: 40 maps of the UNet's first width a picture, 16 of the decoder's last, as large as the picture.
        """
        _, h, w = self.latent_shape
        passes = 1 if guidance == 1 else 2
        sampling = 40 * self.unet.model_channels * h * w * passes * n
        decoding = 16 * self.vae.decoder.conv_out.in_channels * max(64 * h * w, min(DECODED_AT_ONCE, 64 * h * w * n))
        return self.dtype.itemsize * (sampling + decoding)

    def fitting_batch(self, sampling: Sampling = PAPER, free: float | None = None) -> int:
        """How many pictures to sample at once, at least one: as many as fit, up to where more are no faster.

        free: bytes beside the weights; None: those that are free where the models are.
        """
        most = MOST_AT_ONCE[self.device.type] // math.prod(self.latent_shape[1:])
        free = 0.9 * (free_memory(self.device) if free is None else free)
        return next((n for n in range(most, 1, -1) if self.memory(n, sampling.guidance) <= free), 1)

    @torch.inference_mode()
    def round_trip(self, images: Tensor) -> Tensor:
        """What the VAE makes of images (N, 3, H, W) in [-1, 1]: (N, H, W, 3) uint8, no EEG can give more."""
        parts = images.to(self.device, self.dtype).split(max(1, DECODED_AT_ONCE // images[0, 0].numel()))
        return torch.cat([self._decode(self.vae.encode(part).mean) for part in parts])

    @property
    def img_size(self) -> int:
        """Pixels of a side of a picture."""
        return self.latent_shape[1] * 2 ** (len(self.vae.decoder.up) - 1)

    def ceilings(self, trials: Shown, sampling: Sampling) -> dict[str, Drawing]:
        """What Stable Diffusion draws without EEG (dc_ldm/ceilings.py)."""
        return ceilings(self, trials, sampling)

    def about(self) -> About:
        """Where the checkpoint comes from."""
        return self.made_from

    def _sample(self, context: Tensor, seeds: list[int], sampling: Sampling) -> Tensor:
        start = torch.stack([draws.randn(self.latent_shape, seed, "starting latent") for seed in seeds])
        context = context.to(self.device, self.dtype)
        if sampling.guidance != 1:
            context = torch.cat([self.no_context.to(context).expand_as(context), context])
        prepared = self.unet.prepare(context)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return self.unet(x.to(self.dtype), t, prepared).float()

        denoise = denoise if sampling.guidance == 1 else guided(denoise, sampling.guidance)
        latent = SAMPLERS[sampling.sampler](denoise, start.to(self.device), self.alphas_cumprod, sampling.steps)
        return self._decode(latent / self.scale_factor)

    def _decode(self, latent: Tensor) -> Tensor:
        """Latents (B, 4, h, w), unscaled -> pictures (B, H, W, 3) uint8."""
        parts = latent.to(self.dtype).split(max(1, DECODED_AT_ONCE // (64 * latent[0, 0].numel())))
        return torch.cat([to_uint8(self.vae.decode(part)) for part in parts])


def check_sampler(sampler: str, steps: int) -> None:
    """Refuse a sampler that does not exist, or a number of steps that it cannot do: UserError."""
    if sampler not in SAMPLERS:
        raise UserError(f"sampler={sampler}: no such sampler; there are {', '.join(SAMPLERS)}")
    check_steps(steps, sampler)


def load_generator(
    checkpoint: str | Path, pretrain_gm_path: str | Path, device: torch.device,
    make_encoder: Callable[..., nn.Module], dtype: torch.dtype = torch.float32,
) -> EEGImageGenerator:  # fmt: skip
    """Rebuild a generator from a stage B checkpoint, ours or the published one.

    Ours needs the Stable Diffusion under pretrain_gm_path that it was trained on. make_encoder: EEGEncoder, passed in
    because this package does not know sc_mbm. dtype: of UNet and VAE; the conditioner stays in float32. Raises
    UserError.
    """
    content = read_stage_b(checkpoint, pretrain_gm_path)
    config = content["config"]
    base = load_base_of(content, checkpoint, pretrain_gm_path)
    what, encoder, maps = f"{checkpoint}: the EEG conditioner", config["encoder"], config["conditioner"]
    conditioner = on_meta(lambda: EEGConditioner(make_encoder(**encoder), **maps), what)
    weights.load_trained_state(conditioner, base.unet, content["model"], str(checkpoint))
    return EEGImageGenerator(
        conditioner.eval().requires_grad_(False).to(device),
        *base.ready(device, dtype),
        sd_alphas_cumprod(base.sizes.linear_start, base.sizes.linear_end),
        content["no_context"].to(device),
        base.sizes.latent_shape(config["img_size"]),
        base.sizes.scale_factor,
        guidable=config["cond_drop"] > 0,
        input=_input(content),
        made_from=_about(content, Path(checkpoint), {"conditioner": conditioner, "unet": base.unet, "vae": base.vae}),
        base_folder=Path(pretrain_gm_path),
    )


def _input(content: dict) -> EEGInput:
    known = {name: content["input"].get(name) for name in ("sfreq", "window", "ch_names")}
    sizes = {name: content["config"]["encoder"][name] for name in ("n_chans", "n_times")}
    return EEGInput(**sizes, scale=content["input"]["scale"], **known)


def _about(content: dict, checkpoint: Path, parts: dict[str, nn.Module]) -> About:
    training = content.get("run", {})
    hashes = {"base_sha256": content["base"]["sha256"], "stage_a_sha256": training.get("stage_a_sha256")}
    licences = {"Stable Diffusion 1.5": "CreativeML OpenRAIL-M"}
    tensors = {name: loaded(part) for name, part in parts.items()}
    return About(checkpoint.name, content["config"]["img_size"], hashes, training, licences, tensors)
