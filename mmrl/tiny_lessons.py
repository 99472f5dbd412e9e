"""What the embedded models are taught by supervision before any reward: enough to see and to answer in form, and no more."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from data_pipelines.tasks.maze import MazeTasks
from data_pipelines.tasks.videossr import VideoSSRTasks
from mmrl.seeding import stream
from mmrl.strategies.pearl import PEARL
from mmrl.types import Task, TaskKey
from rewards.checklist import Checklist

SYSTEM = "Maze."
QUESTION = "Go from O to T."
"""The mazes' whole prompt; recipes that start from the tiny model ask the same."""
WALK = "Walk about."
MOVES = {(-1, 0): "<|up|>", (1, 0): "<|down|>", (0, -1): "<|left|>", (0, 1): "<|right|>"}
TOLD = ("start", "goal", "goal_direction")
"""Facts of a maze that are told before it is walked, by their names in meta["perception"]."""
SEED = 63
"""Task seed of all lessons; runs with another seed modulo 64 share no maze and no clip with them."""

Lesson = tuple[Task, Sequence[str]]
"""A task, and the completions shown for it, without the end token."""


class Lessons(Protocol):
    """A course of supervised steps."""

    @property
    def steps(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...

    def step(self, number: int) -> Iterator[Lesson]: ...

    def made_of(self) -> str:
        """What the lessons depend on beside the class and its fields."""
        ...


@dataclass(frozen=True)
class MazeLessons:
    """Easy mazes. The pupil learns to see, to solve mazes of one and two moves, and, asked otherwise, to walk about
    by the rules in any maze. It is never shown the way in a maze of three moves or more: that is left to rewards."""

    steps: int = 800
    batch_size: int = 48
    """Mazes a step."""
    moves: str = "1-2"
    """Moves to T in the mazes whose solution is shown."""
    turns: str = "0-1"
    doubt: float = 0.12
    """Share of those in which a random walk is shown instead, so that the pupil is not too sure to ever try something else."""
    walk_share: float = 1 / 3
    """Share of the mazes that are shown with WALK in place of QUESTION, whatever their moves."""
    walks: int = 3
    """Random walks shown in each of these."""
    longest_walk: int = 5
    """A random walk has one to this many moves."""
    learning_rate: float = 3e-3
    warmup_steps: int = 40
    side: int = 5

    def step(self, number: int) -> Iterator[Lesson]:
        """`batch_size` mazes; those to walk about in come last."""
        walked = int(self.batch_size * self.walk_share)
        for source, count, walks in ((self._to_solve, self.batch_size - walked, False), (self._to_walk, walked, True)):
            for task in (source.task(source.key(number * count + i)) for i in range(count)):
                yield task, [f"<think></think>{moves}" for moves in self._shown(task, walks)]

    def made_of(self) -> str:
        return repr((self._to_solve, self._to_walk, MazeTasks.version)) + inspect.getsource(random_walk)

    @cached_property
    def _to_solve(self) -> MazeTasks:
        return MazeTasks("train", SEED, self.side, self.side, self.moves, self.turns, system=SYSTEM, question=QUESTION)

    @cached_property
    def _to_walk(self) -> MazeTasks:
        return MazeTasks("train", SEED, self.side, self.side, "1-6", "0-4", system=SYSTEM, question=WALK)

    def _shown(self, task: Task, walks: bool) -> list[str]:
        """Moves of each demonstration of a maze: random walks, or its solution, in some mazes one walk instead."""
        if walks:
            return [random_walk(task, self.longest_walk, n) for n in range(self.walks)]
        is_doubted = stream(task.id, "doubt").random() < self.doubt
        return [random_walk(task, self.longest_walk, 0) if is_doubted else task.solution]


@dataclass(frozen=True)
class VideoLessons:
    """Questions that synthetic clips answer themselves (VideoSSR): when are the colours inverted, in which order do three clips belong, how
    many of each shape were pasted in. Some answers shown are true, the others those of other clips, right in form alone. So the pupil
    begins to see what counts, and is sure of little."""

    steps: int = 700
    batch_size: int = 32
    """Clips a step."""
    kinds: tuple[tuple[str, float, float], ...] = (("grounding-invert", 1, 0.3), ("counting-single", 2, 0.8), ("jigsaw-3", 3, 0.8))
    """Kind of task, its weight among the lessons, and the share of its lessons with a true answer: more where it is harder to see."""
    learning_rate: float = 3e-3
    warmup_steps: int = 40
    frames: int = 12
    side: int = 56
    """Pixels."""

    def step(self, number: int) -> Iterator[Lesson]:
        """`batch_size` clips."""
        shares = {kind: share for kind, _, share in self.kinds}
        for key in (self._tasks.key(number * self.batch_size + i) for i in range(self.batch_size)):
            task = self._tasks.task(key)
            is_true = stream(task.id, "truth").random() < shares[key.bucket]
            yield task, [task.solution if is_true else self._of_another(key)]

    def made_of(self) -> str:
        return repr((self._tasks, VideoSSRTasks.version))

    @cached_property
    def _tasks(self) -> VideoSSRTasks:
        kinds, weights, _ = zip(*self.kinds, strict=True)
        pixels = self.side**2
        return VideoSSRTasks(
            "train",
            seed=SEED,
            kinds=kinds,
            weights=weights,
            frames=self.frames,
            min_pixels=pixels,
            max_pixels=pixels,
            system="",
            brief=True,
        )

    def _of_another(self, key: TaskKey) -> str:
        """The answer to a clip that is not among the lessons."""
        return self._tasks.task(TaskKey(key.bucket, key.index + self.steps * self.batch_size)).solution


@dataclass(frozen=True)
class FactLessons:
    """Easy mazes in words. Asked for the way, the pupil first says where O and T are and then walks; asked a checklist (as the strategy
    `pearl` asks it), it answers in form. Part of the facts and answers shown are those of other mazes: the pupil learns to speak and begins
    to see, and whether what it says is true is left to rewards."""

    steps: int = 240
    batch_size: int = 24
    """Mazes a step; every other one is asked a checklist."""
    moves: str = "1-2"
    turns: str = "0-1"
    truth: float = 0.6
    """Share of the facts and answers that are of the maze shown."""
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    side: int = 5

    def step(self, number: int) -> Iterator[Lesson]:
        """`batch_size` mazes, in turn asked for the way and a checklist."""
        for index in range(number * self.batch_size, (number + 1) * self.batch_size):
            task = self._tasks.task(self._tasks.key(index))
            other = self._tasks.task(self._tasks.key(index + self.steps * self.batch_size))
            yield (self._asks.perception_task(task), [self._answers(task, other)]) if index % 2 else (task, [self._walks(task, other)])

    def made_of(self) -> str:
        asked = self._asks.perception_task(self._tasks.task(self._tasks.key(0)))
        return repr((self._tasks, MazeTasks.version, asked.messages, TOLD))

    @cached_property
    def _tasks(self) -> MazeTasks:
        return MazeTasks("train", SEED, self.side, self.side, self.moves, self.turns, system=SYSTEM, question=QUESTION)

    @cached_property
    def _asks(self) -> PEARL:
        return PEARL(Checklist())

    def _walks(self, task: Task, other: Task) -> str:
        facts, others = ([one.meta["perception"][name] for name in TOLD] for one in (task, other))
        return f"<think>{' '.join(self._mixed(task, facts, others))}</think>{task.solution}"

    def _answers(self, task: Task, other: Task) -> str:
        answers, others = ([item["answer"] for item in one.meta["checklist"]] for one in (task, other))
        return "\n".join(f"{number}. {answer}" for number, answer in enumerate(self._mixed(task, answers, others), 1))

    def _mixed(self, task: Task, own: Sequence[str], others: Sequence[str]) -> list[str]:
        is_true = stream(task.id, "truth").random(len(own)) < self.truth
        return [mine if true else theirs for mine, theirs, true in zip(own, others, is_true, strict=True)]


@dataclass(frozen=True)
class CountLessons:
    """Shapes in clips, counted aloud (VideoSSR's counting-single): the pupil names what is in each frame, then counts what it named. Some
    clips are shown with what is in another one, so that it is sure of little."""

    steps: int = 500
    batch_size: int = 32
    """Clips a step."""
    truth: float = 0.7
    """Share of the clips shown with what is in them."""
    learning_rate: float = 3e-3
    warmup_steps: int = 40
    frames: int = 12
    side: int = 56
    """Pixels."""

    def step(self, number: int) -> Iterator[Lesson]:
        """`batch_size` clips."""
        for index in range(number * self.batch_size, (number + 1) * self.batch_size):
            task = self._tasks.task(self._tasks.key(index))
            is_true = stream(task.id, "truth").random() < self.truth
            shown = task if is_true else self._tasks.task(self._tasks.key(index + self.steps * self.batch_size))
            yield task, [f"<think>{self._named(shown)}</think>{shown.solution}"]

    def made_of(self) -> str:
        return repr((self._tasks, VideoSSRTasks.version))

    @cached_property
    def _tasks(self) -> VideoSSRTasks:
        pixels = self.side**2
        kinds = ("counting-single",)
        return VideoSSRTasks(
            "train", seed=SEED, kinds=kinds, frames=self.frames, min_pixels=pixels, max_pixels=pixels, system="", brief=True
        )

    def _named(self, task: Task) -> str:
        """no circle no no square ...: what is in each frame."""
        shapes = {frame: name for name, frames in task.meta["shown"].items() for frame in frames}
        return "".join(f" {shapes.get(frame, 'no')}" for frame in range(self.frames))


def random_walk(task: Task, longest: int, number: int) -> str:
    """A legal walk from the start as move tokens, of 1 to `longest` moves, never straight back; it ends early in a dead end."""
    neighbours: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for a, b in task.meta["openings"]:
        neighbours.setdefault(tuple(a), []).append(tuple(b))
        neighbours.setdefault(tuple(b), []).append(tuple(a))
    rng = stream(task.id, "walk", number)
    here, before, moves = tuple(task.meta["start"]), None, ""
    for _ in range(rng.integers(1, longest + 1)):
        onward = [cell for cell in sorted(neighbours[here]) if cell != before]
        if not onward:
            break
        there = onward[rng.integers(len(onward))]
        moves += MOVES[there[0] - here[0], there[1] - here[1]]
        before, here = here, there
    return moves
