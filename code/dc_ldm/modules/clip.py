"""Frozen CLIP: pictures and sentences -> points of one space; a `transformers` folder or a hub name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from runtime.errors import UserError


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
            raise UserError(
                f"{path} is not a CLIP model that transformers can load: {str(error).splitlines()[0]}"
            ) from error
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
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Sentences or class names -> (N, dim) float32, not normalised."""
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(self.path)(
            list(texts), padding=True, truncation=True, return_tensors="pt"
        )
        return self.model.get_text_features(**tokens.to(self.device)).pooler_output.float().cpu()

    @torch.inference_mode()
    def text_start(self, length: int) -> tuple[Tensor, Tensor]:
        """What Stable Diffusion's condition is without a caption, and how CLIP reads a text state.

        Returns the last hidden states of the empty caption (length, W) and the text projection (dim, W).
        """
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(self.path)(
            [""], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        states = self.model.text_model(**tokens.to(self.device)).last_hidden_state[0]
        return states.float().cpu().clone(), self.model.text_projection.weight.float().cpu().clone()

    @torch.inference_mode()
    def text_states(self, captions: Sequence[str], length: int = 77) -> Tensor:
        """What Stable Diffusion attends to: last hidden states of captions, padding not masked, (N, length, W)."""
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(self.path)(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.model.text_model(tokens.input_ids.to(self.device)).last_hidden_state.float()

    def fingerprint_parts(self) -> tuple[torch.nn.Module, str]:
        """What an image embedding depends on: image tower and projection, and the preprocessing as text."""
        tower = torch.nn.ModuleList([self.model.vision_model, self.model.visual_projection])
        return tower, json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
