"""Stage C: pictures from EEG that no training saw, scores with their controls, a page.

python code/gen_eval_eeg.py                                   # the paper's run, on pretrains/generation/paper.pth
python code/gen_eval_eeg.py preset=miniature                  # the demo's
python code/gen_eval_eeg.py --dataset EEG --model_path pretrains/models/checkpoint.pth
"""

import sys
import time

from config import GenerateConfig, from_cli
from evaluation.baselines import baselines
from evaluation.controls import look_ahead
from evaluation.inputs import (
    begin,
    clip_hashes,
    evaluation_files,
    find_paths,
    identity,
    input_hashes,
    open_inputs,
    paths_of,
)
from evaluation.page.page import write_page
from evaluation.page.tables import table
from evaluation.record import score
from evaluation.sampling import sample_and_look
from generate import check_request, load_generator
from runtime import ranks
from runtime.findings import Findings
from runtime.paths import under_root
from runtime.runs import look_at_folder, open_for_all, remember_hashes
from runtime.sampling import Sampling


def main() -> None:
    cfg, started = from_cli(GenerateConfig), time.time()
    remember_hashes(cfg, writes=ranks.lead() and not cfg.dry_run)
    if cfg.dry_run:
        dry_run(cfg)

    # The run: other files behind the same names make another one
    paths = find_paths(cfg)
    check_request(paths.model, paths.stable_diffusion, Sampling.of(cfg))  # no folder is made for what none can do
    hashes = ranks.from_lead(lambda: input_hashes(paths))
    folder = under_root(cfg.root_path, f"results/eval/{cfg.name}")
    run = open_for_all(cfg, folder, identity(cfg) | hashes, evaluation_files)
    if run.finished:
        print(f"{run.folder} is finished; its page is {run.folder / 'index.html'}")
        return

    # Inputs; the baselines come before hours of sampling, because they may refuse the trials
    run.sources.note()
    inputs = open_inputs(cfg, paths, load_generator, Findings())
    run.sources.begin(clip_hashes(cfg) | {"EEG": hashes["eeg_sha256"]})
    decoders = baselines(inputs.trials["train"], inputs.test)
    ranks.from_lead(lambda: begin(run.folder, inputs.test))

    # Pictures, and what the frozen networks see in them; the first process goes on alone
    sampled = sample_and_look(inputs, run.folder)
    if sampled is None:
        return

    # Scores, and the page
    metrics = score(run.folder, inputs, sampled, decoders, hashes, started)
    page = write_page(run.folder)
    run.finish(seconds=round(time.time() - started, 1))
    print(table(metrics), f"stage C done in {time.time() - started:.0f} s -> {page}", sep="\n")


def dry_run(cfg: GenerateConfig) -> None:
    """Open every input, list what is there and what is wrong, and end: status 0 where stage C can start, else 1."""
    findings = Findings(keep_going=True)
    paths = paths_of(cfg)
    if paths.model.exists():
        request = lambda: check_request(paths.model, paths.stable_diffusion, Sampling.of(cfg))  # noqa: E731
        findings.open("settings", request, lambda _: "understood")
    inputs = open_inputs(cfg, paths, load_generator, findings)
    look_ahead(inputs, findings)
    config = identity(cfg) | input_hashes(paths) if inputs.generator and inputs.trials else None
    findings.open("run folder", lambda: look_at_folder(cfg, "eval", config, None, evaluation_files), str)
    sys.exit(findings.report("C"))


if __name__ == "__main__":
    ranks.cli(main)
