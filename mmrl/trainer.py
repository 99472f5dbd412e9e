"""The run: a for-loop over steps. Everything random is keyed by the step, so a resumed run is the run that was not stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from mmrl import checkpoint as ckpt
from mmrl.errors import CheckpointError, RecipeError
from mmrl.evaluate import evaluate, table_metrics, write_evaluation
from mmrl.loop.collect import Collected, Collector
from mmrl.loop.credit import credit, gather_from_ranks
from mmrl.loop.score import WeightedReward
from mmrl.loop.update import Forward, Passes, TokenMeans, WeightedTerm, accumulate, reduce_means
from mmrl.metrics import GroupNumbers, MetricsFile, manifest, rollout_metrics, write_json, write_rollouts
from mmrl.models.load import load_policy, load_reference, reference_mode
from mmrl.models.processor import PromptMaker
from mmrl.ops import kl_k1
from mmrl.optim import Optimizer, learning_rate, sum_gradients_over_ranks
from mmrl.progress import Progress
from mmrl.protocols import Sampling
from mmrl.recipe import Recipe, to_yaml
from mmrl.samplers import first_keys
from mmrl.seeding import digest
from mmrl.types import Sample


@dataclass
class Progressed:
    """What a run remembers besides weights and optimizer: small JSON in every checkpoint."""

    step: int = 0
    """Steps finished."""
    updates: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    metrics_size: int = 0
    evaluated: int = -1
    """Step of the last evaluation; -1 = none."""
    best: dict[str, float] = field(default_factory=dict)
    """{"step", "value"} of the best evaluation so far; empty before the first."""
    stale: int = 0
    """Values of early_stop's metric in a row without a new best."""
    watched: float | None = None


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Trains as the recipe says and returns the run folder. Runs alone or as one of several processes (`torchrun`, `accelerate launch`).

    With `resume` it goes on from the run's last checkpoint, or from the start if there is none. Raises RecipeError if the folder holds
    a run and `resume` is off.
    """
    return Trainer(recipe, resume).run()


class Trainer:
    """One run, put together from a recipe. Every part that can fail on a recipe is built before the model is loaded."""

    def __init__(self, recipe: Recipe, resume: bool) -> None:
        self.recipe = recipe
        section = recipe.trainer
        self.folder = Path(section.output_dir) / section.name
        has_run = (self.folder / "manifest.json").exists()
        if has_run and not resume:
            raise RecipeError(f"{self.folder}: a run is there already; go on with --resume, or give another trainer.name or --output-dir")
        source, sampler = recipe.tasks.train.build(), recipe.tasks.sampler.build()
        self.eval_source = recipe.tasks.eval.build() if recipe.tasks.eval else None
        rewards = [WeightedReward(r.component.build(), r.weight, r.name) for r in recipe.rewards]
        success = recipe.success.build()
        self.estimator = recipe.advantage.build()
        self.terms = [
            WeightedTerm(t.component.build(), t.weight if isinstance(t.weight, float) else t.weight.build(), t.name) for t in recipe.losses
        ]
        engine, strategy = recipe.rollout.engine.build(), recipe.rollout.strategy.build()
        self.accelerator = Accelerator(log_with=list(section.trackers) or None, project_dir=str(self.folder))
        self.rank, self.num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = self.num_ranks * recipe.update.num_mini_batches
        if section.tasks_per_step % share:
            raise RecipeError(
                f"trainer.tasks_per_step: {section.tasks_per_step} tasks cannot be dealt evenly to {self.num_ranks} processes and "
                f"{recipe.update.num_mini_batches} updates; make it a multiple of {share}"
            )
        last = ckpt.latest_checkpoint(self.folder) if resume else None
        if last is not None:
            ckpt.verify(last)
        set_seed(section.seed)  # adapters draw their first weights from torch's own stream
        self.policy, self.processor = load_policy(recipe.model, self.accelerator.device)
        self.policy.train()
        self.optimizer = Optimizer(self.policy, recipe.optim)
        needs = {need for term in self.terms for need in term.term.needs}
        self.needs_ref = "ref_logps" in needs or recipe.update.kl_in_reward > 0
        self.reference = load_reference(recipe.model, self.policy) if self.needs_ref else None
        self.make_prompts = PromptMaker(self.processor, self.policy.layout)
        engine.attach(self.processor)
        self.engine = engine
        self.collector = Collector(
            source, sampler, engine, strategy, self.make_prompts, rewards, success, recipe.rollout.num_generations,
            section.reward_failure_limit, recipe.update.dynamic_sampling, self.rank, self.num_ranks,
        )  # fmt: skip
        form = "naive" if recipe.update.forward == "naive" else "packed"
        self.forward = Forward(
            recipe.rollout.temperature, recipe.update.per_device_train_batch_size, form, self.processor.tokenizer.pad_token_id
        )
        self.state = Progressed()
        if last is not None:
            self._restore(last)
        self._open()

    # --- the loop -----------------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        section = self.recipe.trainer
        self.engine.load_policy(self.policy, self.state.updates)
        if self.state.step == 0:
            self._evaluate(0)
        started, before = time.perf_counter(), self.state.seconds
        with Progress(section.max_steps, self.state.step, enabled=self.accelerator.is_main_process) as progress:
            while self.state.step < section.max_steps:
                step = self.state.step
                metrics = self._step(step)
                self.state.step = step + 1
                self.state.seconds = before + time.perf_counter() - started
                self._log({"step": step + 1, "time_s": self.state.seconds, **metrics})
                progress.update(step + 1, metrics)
                due = section.eval_steps and (step + 1) % section.eval_steps == 0 and step + 1 < section.max_steps
                evaluated = self._evaluate(step + 1) if due else {}
                if self._early({**metrics, **evaluated}) or self._out_of_time():
                    break
                if self.state.best.get("step") == step + 1 or (section.save_steps and (step + 1) % section.save_steps == 0):
                    self._save()
        self._evaluate(self.state.step)
        self._save()
        self._close()
        return self.folder

    def _step(self, step: int) -> dict[str, float]:
        begin = time.perf_counter()
        torch.manual_seed(digest(self.recipe.trainer.seed, "torch", step, self.rank) % 2**63)
        rollout = self.recipe.rollout
        sampling = Sampling(
            rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_completion_length, rollout.stop, self.recipe.trainer.seed, step
        )
        collected = self.collector(step, self.recipe.trainer.tasks_per_step, sampling)
        seconds = dict(collected.seconds)
        updates, passes, kl = self._credit(collected, seconds, step)
        start = time.perf_counter()
        metrics = self._update(updates, passes, step)
        seconds["update"] = time.perf_counter() - start
        every = self.recipe.trainer.log_completions_steps
        if every and (step + 1) % every == 0:
            self._write_rollouts(step + 1, collected, updates)
        seconds["step"] = time.perf_counter() - begin
        return {**self._rollout_metrics(collected), **kl, **metrics, **{f"perf/{k}_s": v for k, v in seconds.items()}}

    def _credit(
        self, collected: Collected, seconds: dict[str, float], step: int
    ) -> tuple[list[list[Sample]], list[Passes], dict[str, float]]:
        """Samples of each update with what the updates need from before the first of them. Passes that nothing needs are not made."""
        section = self.recipe.update
        beta = section.kl_in_reward
        several = section.num_iterations * section.num_mini_batches > 1
        want_ref = any(t.at(step) != 0 and "ref_logps" in t.term.needs for t in self.terms)
        old: dict[int, np.ndarray] = {}
        ref: dict[int, np.ndarray] = {}
        rows = [
            Sample(r, np.zeros(len(r.completion.ids), np.float32), np.zeros(len(r.completion.ids), np.float32))
            for group in collected.scored for r in group.group.rollouts if r.train_prompt is not None
        ]  # fmt: skip
        start = time.perf_counter()
        if several or beta > 0:
            old = {id(s.rollout): v for s, v in zip(rows, self.forward.logps(self.policy, rows), strict=True)}
        seconds["old"] = time.perf_counter() - start
        start = time.perf_counter()
        if want_ref or beta > 0:
            with reference_mode(self.policy, self.reference) as reference:
                ref = {id(s.rollout): v for s, v in zip(rows, self.forward.logps(reference, rows), strict=True)}
        seconds["ref"] = time.perf_counter() - start
        token_rewards, metrics = None, {}
        if beta > 0:
            k1 = {key: kl_k1(torch.from_numpy(old[key]), torch.from_numpy(ref[key])).numpy() for key in old}
            token_rewards = [tuple(-beta * k1[id(r)] for r in group.group.rollouts) for group in collected.scored]
            metrics["kl_in_reward"] = float(np.concatenate(list(k1.values())).mean())
        updates = credit(
            collected.scored, self.estimator, aggregation=section.aggregation,
            max_completion_length=self.recipe.rollout.max_completion_length, mask_truncated=section.mask_truncated_completions,
            num_mini_batches=section.num_mini_batches, rank=self.rank, token_rewards=token_rewards,
        )  # fmt: skip
        passes = [
            Passes([old[id(s.rollout)] for s in u] if several else None, [ref[id(s.rollout)] for s in u] if want_ref else None)
            for u in updates
        ]
        return updates, passes, metrics

    def _update(self, updates: Sequence[Sequence[Sample]], passes: Sequence[Passes], step: int) -> dict[str, float]:
        rate = learning_rate(self.recipe.optim, step, self.recipe.trainer.max_steps)
        means, losses, norms = TokenMeans(), [], []
        for _ in range(self.recipe.update.num_iterations):
            for samples, given in zip(updates, passes, strict=True):
                self.optimizer.zero_grad()
                losses.append(accumulate(self.policy, self.forward, samples, given, self.terms, step, means))
                sum_gradients_over_ranks(self.optimizer.params)
                norms.append(self.optimizer.step(rate, self.recipe.update.max_grad_norm))
                self.state.updates += 1
        self.engine.load_policy(self.policy, self.state.updates)
        everyone = gather_from_ranks([{"sums": means.sums, "counts": means.counts, "maxima": means.maxima, "loss": float(np.mean(losses))}])
        ranks = [items[0] for items in everyone]
        loss = float(sum(r["loss"] for r in ranks))
        return {"loss": loss, "grad_norm": float(np.mean(norms)), "learning_rate": rate, **reduce_means(means, ranks)}

    # --- numbers ------------------------------------------------------------------------------------------------------------------

    def _rollout_metrics(self, collected: Collected) -> dict[str, float]:
        """Over all ranks' rollouts."""
        mine = [GroupNumbers.of(g, s) for g, s in zip(collected.scored, collected.success, strict=True)]
        groups = [item for items in gather_from_ranks(mine) for item in items]
        self.state.num_tokens += sum(g.prompt_length + int(g.lengths.sum()) for g in groups)
        out = {**rollout_metrics(groups), "num_tokens": float(self.state.num_tokens)}
        if self.recipe.update.dynamic_sampling is not None:
            out["dynamic_sampling/drawn"] = float(collected.drawn)
        opened = getattr(self.collector.sampler, "opened", None)
        return out if opened is None else {**out, "curriculum/opened": float(opened)}

    def _evaluate(self, step: int) -> dict[str, float]:
        """Success on the fixed evaluation tasks, sampled on the first rank; {} where the recipe has none or it is done already."""
        section, e, r = self.recipe.trainer, self.recipe.eval, self.recipe.rollout
        if self.eval_source is None or not section.eval_tasks or self.state.evaluated == step:
            return {}
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process:
            start = time.perf_counter()
            sampling = Sampling(e.temperature, e.top_p, e.top_k, r.max_completion_length, r.stop, section.seed)
            keys = first_keys(self.eval_source, section.eval_tasks)
            result = evaluate(
                self.eval_source, keys, self.engine, self.make_prompts, self.collector.success, sampling,
                num_generations=e.num_generations, ks=e.k, batch_size=section.eval_batch_size, run=self.folder,
            )  # fmt: skip
            metrics = {**table_metrics(result), "perf/eval_s": time.perf_counter() - start}
            self._log({"step": step, "time_s": self.state.seconds, **metrics})
            write_evaluation(self.folder, step, result)
        metrics = gather_from_ranks([metrics])[0][0]
        self.state.evaluated = step
        if not self.state.best or metrics["eval/success"] > self.state.best["value"]:
            self.state.best = {"step": step, "value": metrics["eval/success"]}
        return metrics

    def _early(self, metrics: Mapping[str, float]) -> bool:
        """Whether early_stop ends the run, given new metrics."""
        rule = self.recipe.trainer.early_stop
        if rule is None or rule.metric not in metrics:
            return False
        value = metrics[rule.metric] if rule.mode == "max" else -metrics[rule.metric]
        if self.state.watched is None or value > self.state.watched:
            self.state.watched, self.state.stale = value, 0
        else:
            self.state.stale += 1
        threshold = None if rule.threshold is None else rule.threshold if rule.mode == "max" else -rule.threshold
        return self.state.stale >= rule.patience or (threshold is not None and value >= threshold)

    def _out_of_time(self) -> bool:
        """Whether any rank has trained for max_minutes: all stop at the same step."""
        limit = self.recipe.trainer.max_minutes
        return limit is not None and any(items[0] for items in gather_from_ranks([self.state.seconds / 60 >= limit]))

    def _log(self, line: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.metrics.write(line)
            self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def _write_rollouts(self, step: int, collected: Collected, updates: Sequence[Sequence[Sample]]) -> None:
        if not self.accelerator.is_main_process:
            return
        samples = [s for u in updates for s in u]
        logps = dict(zip([id(s.rollout) for s in samples], self.forward.logps(self.policy, samples), strict=True))
        advantages = {id(s.rollout): float(s.advantages.mean()) for s in samples}
        write_rollouts(self.folder, step, collected.scored, collected.success, advantages, logps, self.processor.tokenizer)

    # --- the folder ---------------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in [*self.folder.glob(".checkpoint-*"), *self.folder.glob("**/.*.part")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for step in (int(p.stem.split("-")[1]) for p in self.folder.glob("eval/step-*.json")):
            if step > self.state.evaluated:
                (self.folder / "eval" / f"step-{step:06d}.json").unlink()
        try:
            self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.state.metrics_size)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        (self.folder / "recipe.yaml").write_text(to_yaml(self.recipe))
        parameters = sum(p.numel() for p in self.policy.parameters())
        self.manifest = manifest(self.recipe.trainer.name, self.recipe.trainer.seed, parameters)
        if (self.folder / "manifest.json").exists():
            self.manifest["created"] = json.loads((self.folder / "manifest.json").read_text())["created"]
        write_json(self.folder / "manifest.json", self.manifest)
        self.accelerator.init_trackers("trackers")

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.state.metrics_size = self.metrics.sync()
            state = {**vars(self.state), "sampler": self.collector.sampler.state_dict(), "recipe": to_yaml(self.recipe)}
            ckpt.save_checkpoint(self.folder, self.state.step, self.policy, self.processor, self.optimizer, state)
            ckpt.prune(self.folder, self.recipe.trainer.save_total_limit, [int(self.state.best.get("step", -1))])
            if self.state.best:
                write_json(self.folder / "best.json", self.state.best)
        self.accelerator.wait_for_everyone()

    def _restore(self, folder: Path) -> None:
        saved = ckpt.read_state(folder)
        ckpt.load_weights(folder, self.policy)
        ckpt.load_optimizer(folder, self.optimizer)
        self.collector.sampler.load_state_dict(saved["sampler"])
        self.state = Progressed(**{key: saved[key] for key in vars(self.state)})

    def _close(self) -> None:
        if self.accelerator.is_main_process:
            self.metrics.close()
            self.manifest |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "status": "finished", "seconds": self.state.seconds}
            write_json(self.folder / "manifest.json", self.manifest)
        self.accelerator.end_training()


def run_summary(folder: Path) -> dict[str, Any]:
    """First and last evaluation of a run, for the command line."""
    files = sorted((folder / "eval").glob("step-*.json"))
    if not files:
        return {}
    first, last = json.loads(files[0].read_text()), json.loads(files[-1].read_text())
    return {"before": first, "after": last}
