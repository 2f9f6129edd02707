"""The miniature CLIP: two towers of 64 channels with a tokenizer of their own, as a `transformers` folder."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from miniature import renderer
from miniature.training import Pictures, train

WIDTH, LENGTH = 64, 77
START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt: the byte alphabet of CLIP, and merges that leave our words one to three tokens."""
    words = f"a an photo of on background large small {' '.join(renderer.NAMES)} {' '.join(renderer.TONES)}"
    alphabet = list(bytes_to_unicode().values())  # the printable character that stands for each byte
    tokens, merges = [*alphabet, *(c + "</w>" for c in alphabet)], []
    for word in sorted(set(words.split())):
        left = word[0]
        for k, letter in enumerate(word[1:], start=1):
            right = letter + ("</w>" if k == len(word) - 1 else "")
            if left + right not in tokens:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    folder.mkdir(parents=True, exist_ok=True)
    numbered = {token: i for i, token in enumerate([*tokens, START, END])}
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def build(folder: Path) -> nn.Module:
    """Write tokenizer and preprocessor into `folder`, return an untrained CLIPModel that fits them."""
    write_tokenizer(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    CLIPImageProcessorPil(**size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    both = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    words = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**both, **words, "num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    vision = {**both, "num_hidden_layers": 3, "image_size": 64, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIPModel._from_config(config, attn_implementation="eager")


def load(folder: Path) -> nn.Module:
    """The CLIPModel in `folder`, float32, frozen."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", use_safetensors=True)
    return model.eval().requires_grad_(False)


def tokens(folder: Path, captions: list[str]) -> Tensor:
    """Captions -> token ids (n, 77), padded with the end token as Stable Diffusion does."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


@torch.inference_mode()
def contexts(folder: Path, captions: list[str]) -> Tensor:
    """Captions -> the text tower's last hidden state after its final norm, (n, 77, 64): what the UNet attends to."""
    model = load(folder)
    return torch.cat([model.text_model(ids).last_hidden_state for ids in tokens(folder, captions).split(256)])


def _embed(model: nn.Module, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    image = model.get_image_features(pixel_values=images).pooler_output
    text = model.get_text_features(input_ids=ids).pooler_output
    return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


def train_clip(model: nn.Module, folder: Path, pictures: Pictures, steps: int, seed: int) -> dict:
    """Contrastive training; a batch describes all its pictures in the same way, equal captions are equally right.

    The model goes to `folder`, beside the tokenizer, as config.json and model.safetensors (fp16).
    """
    ways = []
    for captions in pictures.captions:
        number = {caption: k for k, caption in enumerate(sorted(set(captions)))}
        ids = tokens(folder, list(number))
        ids = ids[:, : int((ids != ids[0, -1]).sum(1).max()) + 1]  # causal attention: more padding changes nothing
        ways.append((ids, torch.tensor([number[c] for c in captions])))

    def loss_of(step: int, index: Tensor) -> Tensor:
        ids, which = ways[step % len(ways)]
        image, text = _embed(model, pictures.images(index), ids[which[index]])
        logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
        same = (which[index][:, None] == which[index][None, :]).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    figures = train("clip", model, loss_of, len(pictures), 128, 2e-3, steps, seed)
    model.half().save_pretrained(folder)
    return figures


@torch.inference_mode()
def zero_shot(folder: Path, pictures: Pictures) -> float:
    """Share of pictures whose own class caption is the nearest of all."""
    model, ids = load(folder), tokens(folder, pictures.class_captions())
    found = []
    for index in torch.arange(len(pictures)).split(250):
        image, text = _embed(model, pictures.images(index), ids)
        found.append((image @ text.T).argmax(1) == pictures.labels[index])
    return torch.cat(found).float().mean().item()
