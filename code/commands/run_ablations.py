"""Train and score every model of a table by the stages' commands; a page and a CSV compare them.

python code/run.py run_ablations preset=miniature workers=2              # the paper's models (ablations.yaml)
python code/run.py run_ablations preset=miniature only=full,no-clip seeds=1,2,3
python code/run.py run_ablations preset=miniature table=bands            # frequency bands (bands.yaml)

Each command is printed, so that it can be given by hand. Runs are called <name>-<row>-seed<seed>; one that has
finished says so and ends, a stopped one resumes. -> results/ablations/<name>/: index.html, scores.csv, logs/
"""

import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from commands.ablation.page import write_results
from commands.ablation.results import Result
from commands.ablation.table import STAGES, Job, chain, read_table
from config import Controls, FinetuneConfig, from_cli, setting
from runtime import ranks
from runtime.errors import UserError
from runtime.paths import in_place, under_root
from training_inputs import wanted_files


@dataclass
class AblationConfig:
    """Train and score every model of a table; one page and one CSV."""

    table: str = setting("ablations", "ablations, bands, or a YAML file in their format")
    preset: str = setting("paper", "paper or miniature: of the stages, and of the table's sizes and files")
    name: str = setting("", "first word of all runs, and the page's folder; empty: <table>-<preset>")
    root_path: str = setting(".", "folder that holds datasets/, pretrains/ and results/")
    only: str = setting("", "rows to run, separated by commas; empty: all. The page shows what is there of all")
    seeds: str = setting("2022", "of training and sampling, separated by commas")
    workers: int = setting(1, "processes at once; each takes a GPU of its own, in turn, where there are any", least=1)
    num_samples: int = setting(1, "pictures a trial", least=1)
    controls: Controls = setting("basic", "of stage C")


def main() -> None:
    cfg = from_cli(AblationConfig)
    table, seeds = read_table(cfg.table, cfg.preset), cfg.seeds.split(",")
    only = cfg.only.split(",") if cfg.only else list(table.rows)
    if unknown := [word for word in only if word not in table.rows]:
        raise UserError(f"only={cfg.only}: there is no row {unknown[0]}; the rows are {', '.join(table.rows)}")
    if not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"seeds={cfg.seeds}: expected numbers with commas")
    name = cfg.name or f"{Path(cfg.table).stem}-{cfg.preset}"
    folder, stage_a = under_root(cfg.root_path, f"results/ablations/{name}"), {}
    given = [f"preset={cfg.preset}", *([f"root_path={cfg.root_path}"] if cfg.root_path != "." else [])]
    scoring = {"num_samples": cfg.num_samples, "controls": cfg.controls}
    chains = {
        (row, seed): chain(given, name, table.rows[row], seed, scoring, stage_a) for row in table.rows for seed in seeds
    }

    problems = {place: lacking(jobs[-2].cfg) for place, jobs in chains.items() if place[0] in only}
    ready = {place: chains[place] for place, problem in problems.items() if not problem}
    runner = Runner(cfg.workers, folder / "logs")
    runner.run(list(ready.values()))
    for place, jobs in ready.items():
        problems[place] = next(filter(None, (job.future.result() for job in jobs)), "")

    results = {name: Result(row) for name, row in table.rows.items()}
    for (row, seed), jobs in chains.items():
        results[row].add(seed, jobs, problems.get((row, seed), ""))
    print(f"-> {write_results(folder, table, results)}\n-> {folder / 'scores.csv'}")
    if runner.signal:
        print("stopped; the same command resumes")
        sys.exit(128 + runner.signal)
    if failed := [f"row {row}, seed {seed}: {problem}" for (row, seed), problem in problems.items() if problem]:
        raise UserError("; ".join(failed))


def lacking(cfg: FinetuneConfig) -> str:
    """Which data of a row are missing, as a sentence; "" if none. Without this its stage A would run in vain."""
    try:
        in_place(cfg, wanted_files(replace(cfg, pretrain_mbm_path="none")))
    except UserError as error:
        return str(error)
    return ""


class Runner:
    """Runs jobs as processes of their own, some at once, and stops them cleanly with itself."""

    def __init__(self, workers: int, logs: Path):
        self.workers, self.logs, self.signal = workers, logs, 0
        self.children: set[subprocess.Popen] = set()
        self.environment = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000", **os.environ}
        # spinning threads slow each other on few cores; sleeping at once is slower still for a process that is alone
        if workers > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
        self.worker = threading.local()  # its `gpu` is what a worker sets for its processes

    def run(self, chains: list[list[Job]]) -> None:
        """Run every job once, those of stage A first, and wait; on SIGINT or SIGTERM the processes get SIGTERM."""
        self.logs.mkdir(parents=True, exist_ok=True)
        jobs = {(job.stage, job.name): job for jobs in chains for job in jobs}
        print(f"{len(jobs)} runs, {self.workers} at once; what each says is in {self.logs}", flush=True)
        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
        gpus = itertools.cycle([{"CUDA_VISIBLE_DEVICES": gpu} for gpu in visible] if count else [{}])
        workers = ThreadPoolExecutor(self.workers, initializer=lambda: setattr(self.worker, "gpu", next(gpus)))
        with ranks.signals_to(self._stop), workers as pool:
            # what does not wait for stage A comes first after it; then nobody waits for what was not begun
            for job in sorted(jobs.values(), key=lambda job: (job.stage, job.needs is not None)):
                job.future = pool.submit(self._job, job)
            wait([job.future for job in jobs.values()])

    def _stop(self, number: int, _: object) -> None:
        self.signal = number
        for child in list(self.children):
            child.terminate()

    def _job(self, job: Job) -> str:
        """Run one job; returns what went wrong, "" if nothing."""
        if job.needs and job.needs.future.result():
            return f"{job.needs.name} did not finish"
        if self.signal:
            return "stopped"
        started = time.time()
        code, last = self._process(job)
        problem = "stopped" if self.signal and code else last.removeprefix("error: ") if code else ""
        failed = "FAILED: " if problem and not self.signal else ""
        print(f"{job.name}: {time.time() - started:.0f} s, {failed}{problem or last}", flush=True)
        return problem

    def _process(self, job: Job) -> tuple[int, str]:
        """Exit status of a job's process, and the last line that it said, an error if there is one."""
        print(job.command, flush=True)
        words, environment = [sys.executable, str(STAGES[job.stage][1]), *job.words], self.environment | self.worker.gpu
        with open(self.logs / f"{job.name}-{job.stage}.log", "a+", errors="replace") as log:
            start = log.tell()
            # a session of its own: Ctrl-C in a terminal reaches it through _stop alone
            child = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
            self.children.add(child)
            if self.signal:
                child.terminate()
            code = child.wait()
            self.children.discard(child)
            log.seek(start)
            lines = [line.strip() for line in log if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return code, (errors or lines or [f"ended with status {code}"])[-1]
