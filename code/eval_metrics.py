"""Scores of generated pictures and of EEG embeddings, item by item, and the metrics.json of a folder of them.

python code/eval_metrics.py <folder>                        # metrics.json again, from files alone
python code/eval_metrics.py <folder> networks=auto          # also by the field's networks whose weights are at hand
python code/eval_metrics.py <pictures> classifier=vit_h_14 clip=openai/clip-vit-large-patch14 networks=auto

Shapes: N trials, S pictures of a trial, K classes of the classifier, U distinct images among the truths.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from config import from_cli, setting
from evaluation.features import keep, look
from evaluation.folder import is_bare
from evaluation.n_way import n_way_accuracy
from evaluation.page.page import write_page
from evaluation.page.tables import table
from evaluation.plain_files import read_run
from evaluation.scores import write_metrics
from runtime.devices import pick_device
from runtime.errors import UserError, cli

__all__ = ["n_way_accuracy"]


@dataclass
class ScoreConfig:
    """Scores of a folder of pictures, test<trial>-<k>.png with k = 0 the truth: python code/eval_metrics.py <folder>"""

    n_way: int = setting(0, "classes to tell apart; 0: as stage C did; else, and of bare pictures, 50, or all if fewer")
    top_k: int = setting(0, "a hit is the true class among the k best; 0: as stage C did; else 1")
    classifier: str = setting("", "look at bare pictures with it: folder, ViT-H/14 weights file, vit_h_14; empty: no")
    clip: str = setting("", "look at bare pictures with it: folder, hub name or open_clip:<model>/<tag>; empty: no")
    networks: str = setting("", "auto: look with the networks of the standard set whose weights are at hand")
    root_path: str = setting(".", "folder that holds pretrains/features and datasets/cache")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")


def main() -> None:
    """Score a folder again; where networks are named, they look at its pictures first."""
    folder, *settings = sys.argv[1:] or ["--help"]
    if folder.startswith("-") or "=" in folder:
        settings = [folder, *settings]
    cfg = from_cli(ScoreConfig, settings)
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; usage: python code/eval_metrics.py <folder> [name=value ...]")
    device = str(pick_device(cfg.device))
    more, facts = look(folder, cfg.classifier, cfg.clip, cfg.networks, cfg.root_path, device)
    if more and not is_bare(folder):
        keep(folder, more)
    # of a bare folder nothing but its pictures counts: what looked at them before is not known to look now
    run = {} if is_bare(folder) else read_run(folder)
    asked = {name: getattr(cfg, name) for name in ("n_way", "top_k") if getattr(cfg, name)}
    print(table(write_metrics(folder, run | facts | asked, device, more, cfg.root_path)))
    if (Path(folder) / "index.html").is_file():
        write_page(folder)


if __name__ == "__main__":
    cli(main)
