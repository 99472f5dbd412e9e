"""`mmrl ablate`: a grid of recipe changes x seeds, each run a child process and an ordinary run folder; then one table and its curves."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from mmrl.component import suggest
from mmrl.errors import MmrlError, RecipeError
from mmrl.lab.compare_runs import compare_runs, read_finished, tables_of
from mmrl.lab.curves import draw_curves
from mmrl.lab.spec import read_value, split_values
from mmrl.metrics import provenance, write_json, write_whole
from mmrl.recipe import Recipe, load_recipe, to_yaml
from mmrl.recipe_file import flat

BASE = "base"
LAST_LINES = 12
"""Of a failed run's log, shown at the end."""
ELSEWHERE = frozenset({"trainer.name", "trainer.output_dir", "trainer.trackers"})
"""Keys that a finished run may have otherwise: they say where it is written, not what it is."""


@dataclass(frozen=True)
class Variant:
    """A recipe with changes, under a name."""

    name: str
    recipe: Path
    overrides: tuple[str, ...]
    """As --set takes them."""

    @property
    def slug(self) -> str:
        """The name as a file's name."""
        return re.sub(r"[^\w.=+-]+", "_", self.name).strip("_.") or "_"


@dataclass(frozen=True)
class Planned:
    """One run to be."""

    variant: Variant
    seed: int
    out: Path
    checked: Recipe

    @property
    def name(self) -> str:
        return f"{self.variant.slug}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out / "runs" / self.name

    @property
    def log(self) -> Path:
        return self.out / "logs" / f"{self.name}.log"

    @property
    def command(self) -> list[str]:
        """Goes on from a checkpoint where there is one, else begins."""
        options = [word for override in _placed(self.variant, self.seed, self.out) for word in ("--set", override)]
        return [sys.executable, "-m", "mmrl.cli", "train", str(self.variant.recipe), *options, "--resume"]

    def is_finished(self) -> bool:
        """Whether the folder holds this very run, done; RecipeError if a run of another recipe is done there. (Of a run that is not done
        the trainer finds out by itself whether it can go on.)"""
        manifest = self.folder / "manifest.json"
        if not manifest.is_file() or json.loads(manifest.read_text())["status"] != "finished":
            return False
        there, wanted = (flat(yaml.safe_load(text)) for text in ((self.folder / "recipe.yaml").read_text(), to_yaml(self.checked)))
        other = [key for key in {**there, **wanted} if there.get(key) != wanted.get(key) and not _is_elsewhere(key)]
        if other:
            changes = "; ".join(f"{key} was {there.get(key)}, now {wanted.get(key)}" for key in other)
            raise RecipeError(f"{self.folder}: holds a run of another recipe: {changes}. Give another --out, or delete that folder")
        return True


def grid(recipe: Path, varied: Sequence[str]) -> list[Variant]:
    """The product of "key.path=v1,v2" options, the first of all values first: that is the base. Without any, the recipe alone."""
    axes = []
    for text in varied:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise RecipeError(f"--vary {text}: expected key.path=value,value, for example optim.learning_rate=1e-5,1e-4")
        axes.append([(key, value, read_value(value, f"--vary {key}")) for value in split_values(values)])
    leaves = [key.rpartition(".")[2] for key, _, _ in (axis[0] for axis in axes)]
    variants = []
    for point in itertools.product(*axes):
        labels = [key if leaves.count(leaf) > 1 else leaf for (key, _, _), leaf in zip(point, leaves, strict=True)]
        name = ", ".join(f"{label}={text}" for label, (_, text, _) in zip(labels, point, strict=True)) or BASE
        variants.append(Variant(name, recipe, tuple(f"{key}={json.dumps(value)}" for key, _, value in point)))
    return variants


def read_variants(file: Path, recipe: Path) -> list[Variant]:
    """Named variants from a YAML file: name -> list of overrides as --set takes them. A first item that ends in .yaml is a recipe to take
    in RECIPE's place. `base`, first and without overrides unless the file says otherwise, is what the others are compared with."""
    try:
        given = read_value(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise RecipeError(f"{file}: expected name: [override, …], one a variant; got {type(given).__name__}")
    variants = []
    for name, items in ({BASE: given.get(BASE)} | given).items():
        overrides = [] if items is None else items
        if not isinstance(overrides, list) or not all(isinstance(item, str) for item in overrides):
            raise RecipeError(f"{file}: {name}: got {items!r}; expected a list of overrides such as [optim.learning_rate=1e-5]")
        other = overrides[:1] if overrides and overrides[0].endswith((".yaml", ".yml")) and "=" not in overrides[0] else []
        variants.append(Variant(name, Path(other[0]) if other else recipe, tuple(overrides[len(other) :])))
    return variants


def plan(variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> list[Planned]:
    """All runs, every recipe checked, seeds outermost, so that a grid that is stopped early has whole seeds. RecipeError lists what is
    wrong with any of them."""
    problems, slugs = [], [variant.slug for variant in variants]
    checked: dict[tuple[str, int], Recipe] = {}
    for number, variant in enumerate(variants):
        if variant.slug in slugs[:number]:
            problems.append(f"variant {variant.name!r} stands twice (as a folder's name: {variant.slug}); give it another name")
        for seed in seeds:
            try:
                checked[variant.slug, seed] = load_recipe(variant.recipe, _placed(variant, seed, out))
            except RecipeError as error:
                problems += [f"variant {variant.name!r}: {line}" for line in str(error).splitlines()]
                break
    if problems:
        raise RecipeError("\n".join(problems))
    return [Planned(variant, seed, out, checked[variant.slug, seed]) for seed in seeds for variant in variants]


def run_all(runs: Sequence[Planned], processes: int, lock: int, say: Callable[[str], None]) -> dict[str, str]:
    """Runs what is not finished, `processes` at a time; name of a failed run -> what to tell of it. On an interrupt the children are ended
    too; the next call goes on where they were. `lock`: descriptor that the children keep open."""
    waiting = deque(run for run in runs if not run.is_finished())
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    going: dict[subprocess.Popen[bytes], Planned] = {}
    failed: dict[str, str] = {}
    done = len(runs) - len(waiting)
    try:
        while waiting or going:
            while waiting and len(going) < processes:
                run = waiting.popleft()
                going[_start(run, processes, lock)] = run
                say(f"started {run.name}")
            for process in [process for process in going if process.poll() is not None]:
                run = going.pop(process)
                done += 1
                if process.returncode == 0 and run.is_finished():
                    say(f"finished {run.name} ({done}/{len(runs)})")
                else:
                    failed[run.name] = _failure(run, process.returncode)
                    say(f"FAILED {run.name} ({done}/{len(runs)}): {run.log}")
            time.sleep(0.05)
    finally:
        for process in going:
            process.terminate()
        for process in going:
            process.wait()
    return failed


def ablate_command(
    recipe: Path,
    *,
    varied: Sequence[str],
    variants_file: Path | None,
    overrides: Sequence[str],
    seeds: str,
    processes: int,
    out: Path,
    metrics: Sequence[str],
    say: Callable[[str], None],
) -> tuple[str, list[str]]:
    """`mmrl ablate`: trains, and writes table.md, table.json and plots/*.svg into `out`. Returns the table, and what to tell of each run
    that failed; the table is of the others then."""
    if varied and variants_file is not None:
        raise RecipeError("give --vary or --variants, not both; a variant may have several overrides")
    variants = read_variants(variants_file, recipe) if variants_file is not None else grid(recipe, varied)
    variants = [Variant(variant.name, variant.recipe, (*overrides, *variant.overrides)) for variant in variants]
    planned = plan(variants, _seeds(seeds), out)
    wanted = tuple(dict.fromkeys([*_success_metric(planned), *metrics]))
    with _alone(out) as lock:
        failed = run_all(planned, processes, lock, say)
    finished = {run.name: read_finished(run.folder) for run in planned if run.name not in failed}
    by_variant = {
        variant.name: {run.seed: finished[run.name] for run in planned if run.variant == variant and run.name in finished}
        for variant in variants
    }
    unknown = [metric for metric in wanted if finished and not any(metric in run.series for run in finished.values())]
    if unknown:
        known = {metric for run in finished.values() for metric in run.series}
        raise MmrlError(
            f"--metric {unknown[0]}: no run has it{suggest(unknown[0], known)}. The runs are kept: call again with a right name"
        )
    result = compare_runs(by_variant, wanted)
    overridden = {variant.name: [str(variant.recipe), *variant.overrides] for variant in variants}
    commits = sorted({str(run.commit) for run in finished.values()})
    write_json(out / "table.json", provenance() | {"run_commits": commits, "overrides": overridden, "failed": sorted(failed), **result})
    text = tables_of(result)
    write_whole(out / "table.md", f"{text}\n".encode())
    for metric in wanted:
        curves = {name: [run.series[metric] for run in seeded.values() if metric in run.series] for name, seeded in by_variant.items()}
        write_whole(out / "plots" / f"{metric.replace('/', '_')}.svg", draw_curves(metric, curves).encode())
    return text, list(failed.values())


def _placed(variant: Variant, seed: int, out: Path) -> list[str]:
    folder = {"output_dir": str(out / "runs"), "name": f"{variant.slug}-seed{seed}", "seed": seed}
    return [*variant.overrides, *(f"trainer.{key}={json.dumps(value)}" for key, value in folder.items())]


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """The descriptor of a lock on the folder. Children inherit it, so it is held as long as one of them lives, even if this process is
    killed: no two processes ever write one run."""
    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MmrlError(
                f"{out}: another mmrl ablate is at work here, or runs that it started before it was killed; wait for them"
            ) from error
        yield lock
    finally:
        os.close(lock)


def _start(run: Planned, processes: int, lock: int) -> subprocess.Popen[bytes]:
    """Unless the caller has set OMP_NUM_THREADS, the children share the cores: threads that contend are slower than one."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with run.log.open("ab") as log:
        return subprocess.Popen(
            run.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,),
            env={"OMP_NUM_THREADS": threads, **os.environ},
        )  # fmt: skip


def _failure(run: Planned, code: int) -> str:
    lines = run.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"{run.name}: exit code {code}, log {run.log}", *(f"    {line}" for line in lines)])


def _success_metric(planned: Sequence[Planned]) -> tuple[str, ...]:
    """Of the final evaluation, or where no recipe evaluates, of the training tasks."""
    return ("eval/success",) if any(run.checked.trainer.eval_tasks for run in planned) else ("success",)


def _is_elsewhere(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in ELSEWHERE)


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise RecipeError(f"--seeds {text}: give different whole numbers >= 0 with commas between, such as 0,1,2")
    return [int(word) for word in words]
