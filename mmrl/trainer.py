"""The run: a for-loop over steps. Everything random is keyed by the step, so a resumed run is the run that was not stopped."""

from __future__ import annotations

import json
import logging
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from mmrl import checkpoint as ckpt
from mmrl.component import Spec, suggest
from mmrl.errors import CheckpointError, MmrlError, RecipeError
from mmrl.evaluate import evaluate, table_metrics, write_evaluation
from mmrl.loop.collect import Collected, Collector
from mmrl.loop.credit import credit, gather_from_ranks, kl_in_reward, together
from mmrl.loop.passes import Asked, Known, policy_signals, reference_logps
from mmrl.loop.score import WeightedReward
from mmrl.loop.shape import shape
from mmrl.loop.update import TokenMeans, WeightedTerm, accumulate, arm_grad_norms, reduce_means
from mmrl.loop.views import ViewMaker, check_views
from mmrl.metrics import GroupNumbers, MetricsFile, manifest, rollout_metrics, write_json, write_rollouts, write_whole
from mmrl.models.forward import GroupForward
from mmrl.models.load import load_policy, load_reference
from mmrl.models.processor import PromptMaker
from mmrl.optim import Optimizer, learning_rate
from mmrl.progress import Progress, Progressed
from mmrl.protocols import RolloutStrategy, Sampling, TaskSource
from mmrl.recipe import Recipe, to_yaml
from mmrl.samplers import first_keys
from mmrl.seeding import digest
from mmrl.types import Sample

MAX_SKIPPED = 10
"""Updates in a row with a gradient that is not finite before the run stops."""

_log = logging.getLogger(__name__)


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Trains as the recipe says and returns the run folder. Runs alone or as one of several processes (`torchrun`, `accelerate launch`).

    With `resume` it goes on from the run's last checkpoint, or from the start if there is none; a run that was finished, by max_steps,
    max_minutes or early_stop, stays as it is. Raises RecipeError if the folder holds a run and `resume` is off, CheckpointError if the
    checkpoint is damaged or of another recipe, MmrlError after MAX_SKIPPED updates in a row whose gradient was not finite, and what the
    parts raise (TaskError, RewardError, EngineError). What can be wrong with a recipe is found before the model is loaded.
    """
    return Trainer(recipe, resume).run()


class Trainer:
    """One run, put together from a recipe."""

    def __init__(self, recipe: Recipe, resume: bool) -> None:
        self.recipe = recipe
        section, rollout = recipe.trainer, recipe.rollout
        self.folder = Path(section.output_dir) / section.name
        if (self.folder / "manifest.json").exists() and not resume:
            raise RecipeError(f"{self.folder}: a run is there already; go on with --resume, or give another trainer.name or --output-dir")
        strategy = rollout.strategy.build()
        source = _first_task_read(recipe, strategy)
        self.eval_source = recipe.tasks.eval.build() if recipe.tasks.eval else None
        rewards = [WeightedReward(r.component.build(), r.weight, r.name, r.arms) for r in recipe.rewards]
        same = [reward for reward, entry in zip(rewards, recipe.rewards, strict=True) if entry.component == recipe.success]
        success = same[0] if same else WeightedReward(recipe.success.build(), 1.0, "success")
        self.estimator = recipe.advantage.build()
        self.terms = [
            WeightedTerm(t.component.build(), t.weight.build() if isinstance(t.weight, Spec) else t.weight, t.name) for t in recipe.losses
        ]
        self.shapers = [spec.build() for spec in recipe.shaping]
        self.engine, sampler = rollout.engine.build(), recipe.tasks.sampler.build()
        perturbations = {name: spec.build() for name, spec in recipe.views.items()}
        self.view_names = (*perturbations, *getattr(strategy, "views", ()))
        wanted = {f"losses.{n}": term.term.needs for n, term in enumerate(self.terms)}
        check_views(wanted | {f"shaping.{n}": shaper.needs for n, shaper in enumerate(self.shapers)}, self.view_names)
        self.accelerator = _accelerator(section.trackers, self.folder)
        self.rank, self.num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = self.num_ranks * recipe.update.num_mini_batches
        if section.tasks_per_step % share:
            raise RecipeError(
                f"trainer.tasks_per_step: {section.tasks_per_step} tasks cannot be dealt evenly to {self.num_ranks} processes and "
                f"{recipe.update.num_mini_batches} updates; make it a multiple of {share}"
            )
        last = together(self._last_checkpoint, resume)
        set_seed(section.seed)  # adapters draw their first weights from torch's own stream
        self.policy, self.processor = load_policy(recipe.model, self.accelerator.device)
        self.policy.train()
        self.optimizer = Optimizer(self.policy, recipe.optim)
        needs = {need for term in self.terms for need in term.term.needs}
        needs_ref = "ref_logps" in needs or recipe.update.kl_in_reward > 0
        self.reference = load_reference(recipe.model, self.policy) if needs_ref else None
        self.make_prompts = PromptMaker(self.processor, self.policy.layout, timestamps=recipe.model.timestamps)
        self.engine.attach(self.processor)
        for perturbation in perturbations.values():
            if hasattr(perturbation, "attach"):
                perturbation.attach(self.policy, self.processor)
        self.views = ViewMaker(perturbations, self.make_prompts, section.seed)
        self.collector = Collector(
            source, sampler, self.engine, strategy, self.make_prompts, rewards, success, rollout.num_generations,
            section.reward_failure_limit, recipe.update.dynamic_sampling, self.rank, self.num_ranks,
        )  # fmt: skip
        self.forward = self._forward()
        self.state = Progressed()
        self.saved: tuple[int, int] | None = None
        if last is not None:
            self._restore(*last)
        together(self._open)

    # --- the loop -----------------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        section, state = self.recipe.trainer, self.state
        self.engine.load_policy(self.policy, state.updates)
        started = time.perf_counter() - state.seconds
        if state.step == 0:
            self._evaluate()
        with Progress(section.max_steps, state.step, enabled=self.accelerator.is_main_process) as progress:
            while not state.done(section):
                metrics = self._step()
                state.step += 1
                state.seconds = max(seconds for (seconds,) in gather_from_ranks([time.perf_counter() - started]))
                self._log({"step": state.step, "time_s": state.seconds, **metrics})
                progress.update(state.step, metrics)
                if section.eval_steps and state.step % section.eval_steps == 0:
                    metrics = {**metrics, **self._evaluate()}
                self._watch(metrics)
                due = section.save_steps and state.step % section.save_steps == 0
                if (due or state.best.get("step") == state.step) and not state.done(section):
                    self._save()
        self._evaluate()
        if self.saved != (state.step, state.evaluated):
            self._save()
        self._close()
        return self.folder

    def _watch(self, metrics: Mapping[str, float]) -> None:
        """Shows early_stop its metric. The first rank's value counts: times differ between ranks. And plateau and collapse theirs, which do
        not."""
        rule, plateau, collapse = self.recipe.trainer.early_stop, self.recipe.trainer.plateau, self.recipe.trainer.collapse
        found = None if collapse is None else self.state.look(collapse, metrics)
        if found is not None:
            _log.warning("step %d: %s", self.state.step, found)
        if plateau is not None:
            self.state.note(plateau, metrics)
        if rule is not None and rule.metric in metrics:
            self.state.watch(rule, gather_from_ranks([metrics[rule.metric]])[0][0])

    # --- a step -------------------------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, float]:
        recipe, step = self.recipe, self.state.step
        seconds: dict[str, float] = {}
        torch.manual_seed(digest(recipe.trainer.seed, "torch", step, self.rank) % 2**63)
        with _timed(seconds, "step"):
            collected = self.collector(self.state.draws, recipe.trainer.tasks_per_step, self._sampling())
            self.state.draws += collected.draws
            seconds |= collected.seconds
            asked, means = self._asked(), TokenMeans()
            collected.scored = together(self.views, collected.scored, asked.views, step)
            known = self._known(asked, collected, seconds)
            token_rewards, kl = kl_in_reward(collected.scored, known, recipe.update.kl_in_reward)
            credited, told = self._credit(collected, token_rewards)
            updates = shape(
                credited, self.shapers, known.signals, step=step, max_steps=recipe.trainer.max_steps, seed=recipe.trainer.seed, means=means
            )
            if self._writes_rollouts():
                together(self._write_rollouts, collected, updates, known.signals, token_rewards)
            with _timed(seconds, "update"):
                metrics = self._update(updates, known, means)
        metrics = {**self._rollout_metrics(collected), **kl, **told, **metrics}
        metrics |= {f"perf/{name}_s": value for name, value in seconds.items()}
        if recipe.trainer.collapse is not None:
            metrics["collapse/factor"] = self.state.factor
        self._check_watched(metrics)
        return metrics

    def _sampling(self) -> Sampling:
        rollout = self.recipe.rollout
        return Sampling(
            rollout.temperature, rollout.top_p, rollout.top_k, rollout.max_completion_length, rollout.stop, self.recipe.trainer.seed,
            schedule_step=self.state.step,
        )  # fmt: skip

    def _asked(self) -> Asked:
        update = self.recipe.update
        return Asked(
            self._terms(), self.shapers, self.view_names,
            several=update.num_iterations * update.num_mini_batches > 1,
            kl_in_reward=update.kl_in_reward > 0,
            logs=self._writes_rollouts() and self.accelerator.is_main_process,
        )  # fmt: skip

    def _terms(self) -> list[WeightedTerm]:
        """The loss terms that count at this step, with their weights; what a collapse has taken back is off."""
        rule = self.recipe.trainer.collapse
        factors = {} if rule is None else {rule.term: self.state.factor}
        terms = [replace(term, weight=term.at(self.state.step) * factors.get(term.name, 1.0)) for term in self.terms]
        return [term for term in terms if term.weight != 0]

    def _known(self, asked: Asked, collected: Collected, seconds: dict[str, float]) -> Known:
        with _timed(seconds, "old"):
            signals = policy_signals(asked, collected.scored, self.policy, self.forward)
        with _timed(seconds, "ref"):
            ref_logps = reference_logps(asked, collected.scored, self.policy, self.reference, self.forward)
        return Known(asked, signals, ref_logps)

    def _credit(
        self, collected: Collected, token_rewards: Sequence[tuple[np.ndarray, ...]] | None
    ) -> tuple[list[list[Sample]], dict[str, float]]:
        """Samples of each update, and what the estimator tells."""
        section = self.recipe.update
        return credit(
            collected.scored, collected.places, self.estimator, aggregation=section.aggregation,
            max_completion_length=self.recipe.rollout.max_completion_length, mask_truncated=section.mask_truncated_completions,
            num_mini_batches=section.num_mini_batches, rank=self.rank, token_rewards=token_rewards, arm_weights=section.arm_weights,
        )  # fmt: skip

    def _update(self, updates: Sequence[Sequence[Sample]], known: Known, means: TokenMeans) -> dict[str, float]:
        rate = learning_rate(self.recipe.optim, self.state.step, self.recipe.trainer.max_steps)
        losses, norms = [], []
        arms, arm_norms = self._measured_arms(updates), []
        step, terms = self.state.step, known.asked.terms
        for _ in range(self.recipe.update.num_iterations):
            for samples in updates:
                if arms:
                    arm_norms.append(arm_grad_norms(self.policy, self.forward, samples, known.of, terms, step, self.optimizer, arms))
                self.optimizer.zero_grad()
                losses.append(accumulate(self.policy, self.forward, samples, known.of(samples), terms, step, means))
                norms.append(self.optimizer.step(rate, self.recipe.update.max_grad_norm))
                self._count_update(norms[-1])
        self.engine.load_policy(self.policy, self.state.updates)
        ranks = [items[0] for items in gather_from_ranks([(means, float(np.mean(losses)))])]
        finite = [norm for norm in norms if math.isfinite(norm)]
        return {
            "loss": sum(loss for _, loss in ranks),
            "grad_norm": float(np.mean(finite)) if finite else float("nan"),
            "skipped_updates": float(len(norms) - len(finite)),
            "learning_rate": rate,
            **{f"arm/{arm}/grad_norm": float(np.mean([found[arm] for found in arm_norms])) for arm in arms},
            **reduce_means([theirs for theirs, _ in ranks]),
        }

    def _measured_arms(self, updates: Sequence[Sequence[Sample]]) -> list[str]:
        """The arms of all ranks' samples, if there are several and their gradients are to be told apart at this step."""
        every = self.recipe.trainer.arm_grad_norm_steps
        if not every or (self.state.step + 1) % every:
            return []
        ranks = gather_from_ranks([{sample.rollout.arm for samples in updates for sample in samples}])
        arms = sorted(set().union(*(mine for (mine,) in ranks)))
        return arms if len(arms) > 1 else []

    def _count_update(self, norm: float) -> None:
        if math.isfinite(norm):
            self.state.updates, self.state.skipped = self.state.updates + 1, 0
            return
        self.state.skipped += 1
        if self.state.skipped >= MAX_SKIPPED:
            raise MmrlError(
                f"step {self.state.step + 1}: the gradient was not finite in {MAX_SKIPPED} updates in a row, the last with norm {norm}; "
                f"the policy has diverged. Start again with a lower optim.learning_rate or update.max_grad_norm, or a wider model.dtype; "
                f"the weights of before are in {self.folder}/checkpoint-*, if trainer.save_steps was set"
            )

    # --- numbers ------------------------------------------------------------------------------------------------------------------

    def _rollout_metrics(self, collected: Collected) -> dict[str, float]:
        """Over all ranks' rollouts; under dynamic sampling, over those that were kept."""
        step = zip(collected.places, collected.scored, collected.success, strict=True)
        mine = [(place, GroupNumbers.of(group, success)) for place, group, success in step]
        groups = [group for _, group in sorted((item for items in gather_from_ranks(mine) for item in items), key=lambda item: item[0])]
        self.state.num_tokens += sum(g.prompt_length + int(g.lengths.sum()) for g in groups)
        out = {**rollout_metrics(groups), "num_tokens": float(self.state.num_tokens)}
        if self.recipe.update.dynamic_sampling is not None:
            out["dynamic_sampling/drawn"] = float(collected.drawn)
        if any(len(set(group.arms)) > 1 for group in groups) or collected.gated:
            out["gated"] = collected.gated / collected.drawn
        source = self.collector.source
        tried = {f"{key.bucket}/{key.index}": had for key, had in collected.tried.items() if source.size(key.bucket) is not None}
        if tried and getattr(self.collector.strategy, "gates", False):
            out["never_passed"] = self.state.never_passed(tried)
        opened = getattr(self.collector.sampler, "opened", None)
        return out if opened is None else {**out, "curriculum/opened": float(opened)}

    def _evaluate(self) -> dict[str, float]:
        """Success on the fixed evaluation tasks, sampled on the first rank; {} where the recipe has none or it is done already."""
        state = self.state
        if self.eval_source is None or not self.recipe.trainer.eval_tasks or state.evaluated == state.step:
            return {}
        metrics = gather_from_ranks([together(self._measured)])[0][0]
        state.evaluated = state.step
        self._check_watched(metrics)
        if not state.best or metrics["eval/success"] > state.best["value"]:
            state.best = {"step": state.step, "value": metrics["eval/success"]}
        return metrics

    def _measured(self) -> dict[str, float]:
        section, e, r = self.recipe.trainer, self.recipe.eval, self.recipe.rollout
        if not self.accelerator.is_main_process or self.eval_source is None:
            return {}
        seconds: dict[str, float] = {}
        with _timed(seconds, "eval"):
            sampling = Sampling(e.temperature, e.top_p, e.top_k, r.max_completion_length, r.stop, section.seed)
            result = evaluate(
                self.eval_source, first_keys(self.eval_source, section.eval_tasks), self.engine, self.make_prompts,
                self.collector.success.reward, sampling,
                num_generations=e.num_generations, ks=e.k, batch_size=section.eval_batch_size,
                rewards=self.collector.rewards, run=self.folder,
            )  # fmt: skip
        metrics = {**table_metrics(result), "perf/eval_s": seconds["eval"]}
        self._log({"step": self.state.step, "time_s": self.state.seconds, **metrics})
        write_evaluation(self.folder, self.state.step, result)
        return metrics

    def _check_watched(self, metrics: Mapping[str, float]) -> None:
        """A misspelt metric of early_stop would never stop a run. `metrics`: all of an evaluation, or of a step that forwarded rows."""
        rule = self.recipe.trainer.early_stop
        if rule is None or rule.metric in metrics or ("eval/success" if rule.metric.startswith("eval/") else "entropy") not in metrics:
            return
        raise RecipeError(f"trainer.early_stop.metric: this run has no {rule.metric!r}{suggest(rule.metric, metrics)}")

    def _log(self, line: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.metrics.write(line)
            self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def _writes_rollouts(self) -> bool:
        every = self.recipe.trainer.log_completions_steps
        return bool(every) and (self.state.step + 1) % every == 0

    def _write_rollouts(
        self,
        collected: Collected,
        updates: Sequence[Sequence[Sample]],
        signals: Mapping[int, Mapping[str, np.ndarray]],
        token_rewards: Sequence[tuple[np.ndarray, ...]] | None,
    ) -> None:
        """The first rank's rollouts, with signals under the policy that they were sampled from, and the first view beside the prompt."""
        if self.accelerator.is_main_process:
            advantages = {id(s.rollout): float(s.advantages.mean()) for samples in updates for s in samples}
            view = next(iter(self.view_names), None)
            write_rollouts(
                self.folder, self.state.step + 1, collected.scored, collected.success, advantages, signals, self.processor.tokenizer,
                view, token_rewards,
            )  # fmt: skip

    # --- the folder ---------------------------------------------------------------------------------------------------------------

    def _last_checkpoint(self, resume: bool) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to go on from with its state, checked; None to start from the beginning."""
        if not resume:
            return None
        if self.accelerator.is_main_process:
            ckpt.tidy(self.folder)
        last = ckpt.latest_checkpoint(self.folder)
        if last is None:
            return None
        ckpt.verify(last)
        saved = ckpt.read_state(last)
        ckpt.refuse_other_recipe(last, saved["recipe"], self.recipe)
        if saved["step"] > self.recipe.trainer.max_steps:
            raise CheckpointError(
                f"{last}: is past trainer.max_steps, which is {self.recipe.trainer.max_steps}; raise it to {saved['step']} or more"
            )
        return last, saved

    def _restore(self, folder: Path, saved: Mapping[str, Any]) -> None:
        ckpt.load_weights(folder, self.policy)
        ckpt.load_optimizer(folder, self.optimizer)
        self.collector.sampler.load_state_dict(saved["sampler"])
        self.state = Progressed(**{key: saved[key] for key in vars(self.state)})
        self.saved = (self.state.step, self.state.evaluated)

    def _open(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, last in ((p, self.state.evaluated) for p in self.folder.glob("eval/step-*.json")):
            if int(path.stem.removeprefix("step-")) > last:
                path.unlink()
        for path in self.folder.glob("rollouts/step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > self.state.step:
                path.unlink()
        try:
            self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.state.metrics_size)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        write_whole(self.folder / "recipe.yaml", to_yaml(self.recipe).encode())
        parameters = sum(p.numel() for p in self.policy.parameters())
        self.manifest = manifest(self.recipe.trainer.name, self.recipe.trainer.seed, parameters)
        if (self.folder / "manifest.json").exists():
            self.manifest["created"] = json.loads((self.folder / "manifest.json").read_text())["created"]
        write_json(self.folder / "manifest.json", self.manifest)
        if self.saved is not None:
            self._follow_checkpoint()
        self.accelerator.init_trackers("trackers")

    def _save(self) -> None:
        together(self._save_here)
        self.saved = (self.state.step, self.state.evaluated)

    def _save_here(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.state.metrics_size = self.metrics.sync()
        state = {**vars(self.state), "sampler": self.collector.sampler.state_dict(), "recipe": to_yaml(self.recipe)}
        ckpt.save_checkpoint(self.folder, self.state.step, self.policy, self.processor, self.optimizer, state)
        self._follow_checkpoint()

    def _follow_checkpoint(self) -> None:
        """What the newest checkpoint entails; a run that was killed before it got here does it when it goes on."""
        if self.state.best:
            write_json(self.folder / "best.json", self.state.best)
        ckpt.prune(self.folder, self.recipe.trainer.save_total_limit, [int(self.state.best.get("step", -1))])

    def _close(self) -> None:
        if self.accelerator.is_main_process:
            self.metrics.close()
            self.manifest |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "status": "finished", "seconds": self.state.seconds}
            self.manifest["max_rss_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
            write_json(self.folder / "manifest.json", self.manifest)
        self.accelerator.end_training()

    def _forward(self) -> GroupForward:
        """How rows are forwarded: sharing prompts wherever it is asked for or, under "auto", the model's attention allows it."""
        update = self.recipe.update
        if update.forward == "shared" and not self.policy.can_share:
            raise RecipeError("update.forward: this model's attention takes no streams; use sdpa, or set update.forward: naive")
        if update.forward == "auto" and not self.policy.can_share:
            _log.warning("update.forward: rows are forwarded one by one, because this attention takes no streams; sdpa would share prompts")
        return GroupForward(
            self.recipe.rollout.temperature,
            self.processor.tokenizer.pad_token_id,
            "lines" if update.forward == "naive" or not self.policy.can_share else "two_streams",
            update.max_tokens_per_stream,
            update.per_device_train_batch_size,
        )


def _first_task_read(recipe: Recipe, strategy: RolloutStrategy) -> TaskSource:
    """The source of training tasks, its first task drawn, made and shown to the strategy, so that an empty or unreadable one, or one that
    the strategy cannot use, is found out at once."""
    source = recipe.tasks.train.build()
    for key in recipe.tasks.sampler.build().draw(source, 0, 1):
        task = source.task(key)
        if hasattr(strategy, "check"):
            strategy.check(task, recipe.rollout.num_generations)  # pyright: ignore[reportAttributeAccessIssue] (not every strategy has it)
    return source


def _accelerator(trackers: Sequence[str], folder: Path) -> Accelerator:
    on_cpu = not torch.accelerator.is_available()  # said outright: accelerate takes torchrun's processes for one each on such a machine
    try:
        return Accelerator(cpu=on_cpu, log_with=list(trackers) or None, project_dir=str(folder))
    except ValueError as error:
        raise RecipeError(f"trainer.trackers: got {list(trackers)}; {error}") from error


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
