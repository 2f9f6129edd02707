"""Frozen CLIP: pictures and sentences -> points of one space; a `transformers` folder or hub name, or open_clip's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image, new
from torch import Tensor

from runtime.checkpoints import check_finite, loaded, read_plain
from runtime.errors import UserError, as_sentence
from runtime.model_files import read_tensors
from vision.clip_files import OPEN_CLIP, clip_files, fetch_clip, read_facts


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
        folder = fetch_clip(path)
        read_facts(path, clip_files(folder))
        self.path, self.device = str(folder), torch.device(device)
        with as_sentence(f"{path} is not a CLIP model that transformers can load"):
            self.processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
            # Only safetensors: a pickled weight file could run code.
            options = {"use_safetensors": True, "dtype": torch.float32, "local_files_only": True}
            self.model = CLIPModel.from_pretrained(folder, **options)
            made, taken = self._pixels([new("RGB", (8, 8))]).shape[-1], self.model.config.vision_config.image_size
        if made != taken:
            raise UserError(
                f"{folder}/preprocessor_config.json: makes pictures of {made} pixels, the model takes {taken}"
            )
        self.model.to(self.device).eval().requires_grad_(False)
        _loaded(self.model, f"{folder}/model.safetensors: CLIP")

    @property
    def dim(self) -> int:
        """Width of the shared space: 768 for ViT-L/14."""
        return self.model.config.projection_dim

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """PIL pictures of any size -> (N, dim) float32, not normalised."""
        pixels = self._pixels(images)
        return self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output.float().cpu()

    @torch.inference_mode()
    def text_start(self, length: int) -> tuple[Tensor, Tensor]:
        """What Stable Diffusion's condition is without a caption, and how CLIP reads a text state.

        Returns the last hidden states of the empty caption (length, W) and the text projection (dim, W).
        """
        states = self._read([""], length)[0]
        return states.cpu().clone(), self.model.text_projection.weight.float().cpu().clone()

    @torch.inference_mode()
    def text_states(self, captions: Sequence[str], length: int = 77) -> Tensor:
        """What Stable Diffusion attends to: last hidden states of captions, padding not masked, (N, length, W)."""
        return self._read(captions, length, "input_ids")

    def _pixels(self, images: Sequence[Image]) -> Tensor:
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"]

    def _read(self, texts: Sequence[str], length: int, *only: str) -> Tensor:
        """The text tower's last hidden states; only: of what the tokenizer says, to be heeded; none: all."""
        from transformers import AutoTokenizer

        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        with as_sentence(f"{self.path}: its tokenizer cannot be loaded, or does not belong to its text tower"):
            tokenize = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            said = tokenize(list(texts), **options).to(self.device)
            return self.model.text_model(**{name: said[name] for name in only or said}).last_hidden_state.float()

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
        with as_sentence(f"{name} is not a CLIP model that open_clip can load"):
            if ":" in known:
                look_at_weights(Path(weights))
            self.model, _, self.preprocess = open_clip.create_model_and_transforms(model, weights, device=device)
        self.model.eval().requires_grad_(False)
        _loaded(self.model, f"{name}: CLIP")
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


def look_at_weights(path: Path) -> None:
    """Refuse a weight file that open_clip would unpickle, or read in ways that are not checked. Raises UserError."""
    if path.suffix == ".safetensors":
        read_tensors(path, "CLIP")
    elif path.suffix in (".pt", ".pth", ".bin"):
        read_plain(path, "weight file of CLIP")
    else:
        raise UserError(f"{path}: is no weight file of a kind that is read: .safetensors, .pt, .pth or .bin")


def _loaded(model: torch.nn.Module, what: str) -> None:
    """Say how many tensors were loaded by a library that, as asked or told, loads all or none. Raises UserError."""
    check_finite(model.state_dict(), what)
    print(f"{what}: {loaded(model)} tensors loaded")
