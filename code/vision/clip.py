"""Frozen CLIP: pictures and sentences -> points of one space; a `transformers` folder or hub name, or open_clip's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from runtime.errors import UserError

OPEN_CLIP = "open_clip:"


def load_clip(name: str | Path, device: str | torch.device = "cpu") -> FrozenCLIP | OpenCLIP:
    """The CLIP of a folder, hub name, `open_clip:<model>/<tag>` or `open_clip:<model>:<weight file>`."""
    return OpenCLIP(str(name), device) if str(name).startswith(OPEN_CLIP) else FrozenCLIP(name, device)


class FrozenCLIP:
    """CLIP's two towers in eval mode without gradients, with the preprocessing that its folder names."""

    def __init__(self, path: str | Path, device: str | torch.device = "cpu"):
        """path: a folder made by `save_pretrained`, or a hub name. Raises UserError."""
        # A second of import that --help does not need.
        from transformers import CLIPImageProcessorPil, CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        if not Path(path).is_dir() and str(path).count("/") != 1:
            raise UserError(f"{path}: no such folder; name one, or a hub model such as openai/clip-vit-large-patch14")
        self.path, self.device = str(path), torch.device(device)
        try:
            self.processor = CLIPImageProcessorPil.from_pretrained(path)
            # Only safetensors: a pickled weight file could run code.
            self.model = CLIPModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _not_loaded(path, "transformers", error) from error
        self.model.to(self.device).eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width of the shared space: 768 for ViT-L/14."""
        return self.model.config.projection_dim

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """PIL pictures of any size -> (N, dim) float32, not normalised."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output.float().cpu()

    @torch.inference_mode()
    def text_start(self, length: int) -> tuple[Tensor, Tensor]:
        """What Stable Diffusion's condition is without a caption, and how CLIP reads a text state.

        Returns the last hidden states of the empty caption (length, W) and the text projection (dim, W).
        """
        states = self.model.text_model(**self._tokens([""], length)).last_hidden_state[0]
        return states.float().cpu().clone(), self.model.text_projection.weight.float().cpu().clone()

    @torch.inference_mode()
    def text_states(self, captions: Sequence[str], length: int = 77) -> Tensor:
        """What Stable Diffusion attends to: last hidden states of captions, padding not masked, (N, length, W)."""
        return self.model.text_model(self._tokens(captions, length).input_ids).last_hidden_state.float()

    def _tokens(self, texts: Sequence[str], length: int):
        from transformers import AutoTokenizer

        tokenize = AutoTokenizer.from_pretrained(self.path)
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        return tokenize(list(texts), **options).to(self.device)

    def fingerprint_parts(self) -> tuple[torch.nn.Module, str]:
        """What an image embedding depends on: image tower and projection, and the preprocessing as text."""
        tower = torch.nn.ModuleList([self.model.vision_model, self.model.visual_projection])
        return tower, json.dumps(self.processor.to_dict(), sort_keys=True, default=str)


class OpenCLIP:
    """The same of a model that open_clip knows, with the preprocessing that open_clip gives it."""

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        """name: as `load_clip` takes it, tag and file as open_clip's `pretrained`. Raises UserError."""
        import open_clip

        known = name.removeprefix(OPEN_CLIP)
        model, _, weights = known.partition(":" if ":" in known else "/")
        if not weights:
            raise UserError(f"{name}: names no weights; write {OPEN_CLIP}<model>/<tag> or {OPEN_CLIP}<model>:<file>")
        try:
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, weights, device=device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _not_loaded(name, "open_clip", error) from error
        self.model.eval().requires_grad_(False)
        self.device, self.dim = torch.device(device), open_clip.get_model_config(model)["embed_dim"]

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """As FrozenCLIP's."""
        pixels = torch.stack([self.preprocess(image) for image in images])
        return self.model.encode_image(pixels.to(self.device)).float().cpu()

    def text_start(self, length: int) -> tuple[Tensor, Tensor]:
        """Refused: only the CLIP that Stable Diffusion was trained with says what its empty caption is."""
        raise UserError("text_start needs Stable Diffusion's own CLIP, read by transformers; use text_start=false")

    def fingerprint_parts(self) -> tuple[torch.nn.Module, str]:
        """As FrozenCLIP's."""
        return self.model.visual, str(self.preprocess)


def _not_loaded(name: str | Path, library: str, error: Exception) -> UserError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(f"{name} is not a CLIP model that {library} can load: {first}")
