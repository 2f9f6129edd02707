"""Training of the miniature Stable Diffusion. The networks are passed in: this package knows none of dc_ldm.

Shapes: B batch, S picture side, h = S / 8, K captions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniature.classifier import stages
from miniature.training import Pictures, train
from runtime import draws

UNET_SIZES = {"in_channels": 4, "out_channels": 4, "model_channels": 64, "attention_resolutions": [2, 1]}
UNET_SIZES |= {"num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 4, "context_dim": 64}
VAE_SIZES = {"ch": 16, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4}
KL_WEIGHT = 2e-4  # per latent value; the latents stay near unit size, the pictures hardly suffer
FEATURE_WEIGHT = 0.1


def train_vae(vae: nn.Module, judge: nn.Module, pictures: Pictures, steps: int, seed: int, lr: float) -> dict:
    """Squared error, distance in the classifier's feature maps, and a small KL term; returns `train`'s figures."""

    def loss_of(step: int, index: Tensor) -> Tensor:
        images = pictures.images(index)
        posterior = vae.encode(images)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + (logvar / 2).exp() * draws.randn(mean.shape, seed, "vae noise", step)
        back = vae.decode(z).float()
        feature = sum(
            F.mse_loss(a.float(), b.float()) / b.float().square().mean()
            for a, b in zip(stages(judge, back), stages(judge, images), strict=True)
        )
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return F.mse_loss(back, images) + FEATURE_WEIGHT * feature + KL_WEIGHT * kl

    return train("vae", vae, loss_of, len(pictures), 32, lr, steps, seed)


@torch.inference_mode()
def encode(vae: nn.Module, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of every picture, each (N, 4, h, h)."""
    parts = [vae.encode(pictures.images(index)) for index in torch.arange(len(pictures)).split(100)]
    return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])


def train_unet(
    unet: nn.Module, latents: tuple[Tensor, Tensor], context: Callable[[list[str]], Tensor], pictures: Pictures,
    alphas_cumprod: Tensor, steps: int, seed: int,
) -> dict:  # fmt: skip
    """Predict the noise in scaled latents (`latents`: mean, std) from captions; a tenth of the captions are empty.

    `context` turns captions into (K, 77, C). Returns `train`'s figures.
    """
    number = {caption: k for k, caption in enumerate(sorted({"", *sum(pictures.captions, [])}))}
    table = context(list(number))
    ways = torch.tensor([[number[c] for c in way] for way in pictures.captions])
    mean, std = latents

    def loss_of(step: int, index: Tensor) -> Tensor:
        u = draws.rand((3, len(index)), seed, "unet choices", step)
        caption = ways[(u[0] * len(ways)).long(), index].where(u[1] > 0.1, torch.tensor(number[""]))
        noises = draws.randn((2, *mean[index].shape), seed, "unet noise", step)
        t = (u[2] * len(alphas_cumprod)).long()
        a = alphas_cumprod[t].float().view(-1, 1, 1, 1)
        x = a.sqrt() * (mean[index] + std[index] * noises[0]) + (1 - a).sqrt() * noises[1]
        return F.mse_loss(unet(x, t, table[caption]).float(), noises[1])

    return train("unet", unet, loss_of, len(pictures), 64, 1e-3, steps, seed)
