"""Views: which are asked for, one draw a prompt, and what goes wrong."""

from dataclasses import dataclass

import numpy as np
import pytest

from data_pipelines.perturb.masks import PatchMask
from data_pipelines.perturb.noise import GaussianNoise
from mmrl.errors import RecipeError, TaskError
from mmrl.loop.views import TRIES, ViewMaker, changes_nothing, check_views, names_of
from mmrl.types import Completion, Group, Media, Rollout, ScoredGroup

MASK = PatchMask(0.6)


@pytest.fixture
def scored():
    """`scored(prompt, ...)`: a scored group of two rollouts a prompt; None = not trained."""

    def build(prompt, *more):
        completion = Completion(np.array([5]), "", np.zeros(1, np.float32), "stop", 0)
        rollouts = tuple(Rollout(prompt, completion, p) for p in (prompt, *more) for _ in range(2))
        return ScoredGroup(Group(prompt.task, rollouts), np.zeros(len(rollouts), np.float32), {})

    return build


def maker(make_prompts, seed=0, **perturbations):
    return ViewMaker(perturbations, make_prompts, seed)


def views(item, name="masked"):
    return [r.views[name] for r in item.group.rollouts]


def test_names_of_needs():
    needs = {"old_logps", "view:a", "view_now:b", "view_grad:c", "view_kl:d", "view_entropy:a"}
    assert names_of(needs) == ["a", "b", "c", "d"]
    assert names_of(needs, "view:", "view_kl:") == ["a", "d"]


def test_a_view_that_no_one_defines():
    with pytest.raises(RecipeError, match=r"losses.1: needs the view 'maskd', which the recipe does not define; did you mean 'masked'\?"):
        check_views({"losses.0": {"view:masked"}, "losses.1": {"view_now:maskd"}}, {"masked", "noisy"})


def test_one_view_in_two_ways():
    check_views({"losses.0": {"view:m"}, "losses.1": {"view:m"}, "shaping.0": {"view:m", "view_kl:m"}}, {"m"})
    with pytest.raises(RecipeError, match=r"losses.1: needs view_grad:m, and losses.0 needs view:m; choose one, or define the view twice"):
        check_views({"losses.0": {"view:m"}, "losses.1": {"view_grad:m"}}, {"m"})


def test_rollouts_of_one_prompt_share_one_view(make_prompts, maze_tasks, scored):
    """So that the group forward reads it once; its words and sizes are the prompt's, its picture is not."""
    (prompt,) = make_prompts([maze_tasks.task(maze_tasks.key(0))])
    (item,) = maker(make_prompts, masked=MASK)([scored(prompt)], ["masked"], 3)
    one, other = views(item)
    assert one is other
    assert np.array_equal(one.ids, prompt.ids)
    assert one.mm_inputs["pixel_values"].shape == prompt.mm_inputs["pixel_values"].shape
    assert not np.array_equal(one.mm_inputs["pixel_values"], prompt.mm_inputs["pixel_values"])
    assert np.array_equal(one.mm_inputs["image_grid_thw"], prompt.mm_inputs["image_grid_thw"])
    assert one.task.id == prompt.task.id


def test_the_draw_goes_by_seed_name_task_and_step(make_prompts, maze_tasks, scored):
    prompts = make_prompts([maze_tasks.task(maze_tasks.key(n)) for n in (0, 0, 1)])

    def pixels(seed=0, name="masked", step=0, prompt=0):
        make = maker(make_prompts, seed, **{name: MASK})
        return views(make([scored(prompts[prompt])], [name], step)[0], name)[0].task.media[0].frames

    first = pixels()
    assert np.array_equal(first, pixels())
    assert np.array_equal(first, pixels(prompt=1))  # the same task under another prompt object
    hidden = {bytes((pixels(**key) == 0).all(-1)[:, ::14, ::14]) for key in ({}, {"seed": 1}, {"name": "m"}, {"step": 1})}
    assert len(hidden) == 4


def test_every_picture_is_perturbed(make_prompts, picture_task, scored):
    """Also the second picture, and all frames of a clip by the same cells."""
    (prompt,) = make_prompts([picture_task("three", (56, 84), (84, 56), 4)])
    (item,) = maker(make_prompts, masked=MASK)([scored(prompt)], ["masked"], 0)
    seen = views(item)[0].task.media
    assert len(seen) == 3
    for before, after in zip(prompt.task.media, seen, strict=True):
        assert not np.array_equal(before.frames, after.frames)
    black = (seen[2].frames == 0).all(-1)
    assert (black == black[0]).all()


def test_a_task_without_pictures_is_its_own_view(make_prompts, picture_task, scored):
    (prompt,) = make_prompts([picture_task("words")])
    (item,) = maker(make_prompts, masked=MASK)([scored(prompt)], ["masked"], 0)
    assert all(view is prompt for view in views(item))


def test_the_view_is_of_the_prompt_that_is_trained(make_prompts, maze_tasks, scored):
    """Of an arm under another picture it is that picture's; a rollout that is only compared with has none."""
    prompt, arm = make_prompts([maze_tasks.task(maze_tasks.key(n)) for n in (0, 1)])
    (item,) = maker(make_prompts, masked=MASK)([scored(prompt, arm, None)], ["masked"], 0)
    first, _, second, _, third, _ = (r.views.get("masked") for r in item.group.rollouts)
    assert third is None
    for view, of in ((first, prompt), (second, arm)):
        before, after = of.task.media[0].frames, view.task.media[0].frames
        shown = (after != 0).any(-1)
        assert (before[shown] == after[shown]).all()


def test_views_of_a_strategy_stay_and_others_are_not_made(make_prompts, maze_tasks, scored):
    (prompt,) = make_prompts([maze_tasks.task(maze_tasks.key(0))])
    group = scored(prompt)
    make = maker(make_prompts, masked=MASK, noisy=GaussianNoise())
    assert make([group], [], 0)[0] is group
    assert make([group], ["raw"], 0)[0] is group
    (item,) = make([group], ["noisy", "raw"], 0)
    assert item.group.rollouts[0].views.keys() == {"noisy"}


@dataclass(frozen=True)
class Half:
    """Every second frame: fewer tokens."""

    def __call__(self, media, rng):
        return Media(media.frames[::2], media.timestamps_s[::2])


@dataclass
class Sleeps:
    """Wakes at the last call that is allowed, or never."""

    wakes: bool
    calls: int = 0

    def __call__(self, media, rng):
        self.calls += 1
        return MASK(media, rng) if self.wakes and self.calls == TRIES else media


def test_a_perturbation_that_changes_sizes_is_named(make_prompts, picture_task, scored):
    (prompt,) = make_prompts([picture_task("clip", 8)])
    with pytest.raises(TaskError, match=r"task clip: views.half: Half\(\) changed the prompt from \d+ to \d+ tokens"):
        maker(make_prompts, half=Half())([scored(prompt)], ["half"], 0)


def test_a_view_that_is_the_picture_itself_is_named(make_prompts, picture_task, scored):
    """VOGUE's silent fallback. A draw may leave a picture as it is; TRIES of them may not."""
    (prompt,) = make_prompts([picture_task("p", (56, 56))])
    maker(make_prompts, v=Sleeps(wakes=True))([scored(prompt)], ["v"], 0)
    with pytest.raises(TaskError, match=r"task p: views.v: Sleeps.* left a picture of 56 x 56 pixels as it is"):
        maker(make_prompts, v=Sleeps(wakes=False))([scored(prompt)], ["v"], 0)


def test_a_perturbation_that_is_turned_off_leaves_the_picture(make_prompts, picture_task, scored):
    (prompt,) = make_prompts([picture_task("p", (56, 56))])
    for off in (PatchMask(0.0), PatchMask(strength=0.0), GaussianNoise(0.0)):
        assert changes_nothing(off)
        (item,) = maker(make_prompts, v=off)([scored(prompt)], ["v"], 0)
        assert np.array_equal(views(item, "v")[0].task.media[0].frames, prompt.task.media[0].frames)
    assert not changes_nothing(GaussianNoise(0.0, 0.2))
    assert not changes_nothing(MASK)
