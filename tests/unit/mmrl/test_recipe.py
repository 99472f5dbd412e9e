"""Recipes: what is read, what is refused, and what the refusal says."""

from pathlib import Path

import pytest

from mmrl.component import Spec
from mmrl.errors import RecipeError
from mmrl.recipe import Recipe, load_recipe, to_yaml

MINIMAL = """
model: {path: tiny}
tasks: {train: {use: maze, split: train}}
rewards: [{use: maze_walker}]
trainer: {max_steps: 3}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes a recipe beside an empty current folder and loads it."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str) -> Recipe:
        Path("r.yaml").write_text(text)
        return load_recipe(Path("r.yaml"), overrides)

    return load


def refusal(load, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


def test_a_minimal_recipe_gets_the_defaults(load):
    recipe = load(MINIMAL)
    assert recipe.trainer.name == "r"
    assert recipe.success == Spec("reward", "maze_walker", {"shortest_only": False})
    assert [entry.name for entry in recipe.losses] == ["clipped_surrogate"]
    assert (recipe.advantage.use, recipe.rollout.engine.use, recipe.rollout.strategy.use) == ("grpo", "hf", "plain")
    assert (recipe.rollout.num_generations, recipe.update.aggregation, recipe.optim.learning_rate) == (8, "token_mean", 1e-6)
    assert recipe.tasks.eval is None


def test_the_printed_recipe_reads_back_equal(load):
    tricky = [
        "tasks.train.question='1e-6'",
        'tasks.train.system="no\\ntrue"',
        "losses.0.weight={use: linear, start: 1, end: 0, num_steps: 9}",
    ]
    recipe = load(MINIMAL, *tricky)
    assert recipe.tasks.train.fields["question"] == "1e-6"
    assert load(to_yaml(recipe)) == recipe


def test_all_problems_come_at_once_each_with_file_path_value_and_way_out(load):
    text = """
modle: {path: tiny}
model: {path: tiny, dtype: bf16}
tasks: {train: {use: maze, split: train, rows: "5"}}
rollout: {num_generations: true, temperature: 0}
rewards: [{use: maze_walkr}]
losses: [{use: clipped_surrogate, epsilon_hi: 0.3}]
trainer: {max_step: 3}
"""
    assert refusal(load, text) == [
        "r.yaml: model.dtype: got 'bf16', should be 'float32', 'bfloat16' or 'float16'; did you mean 'bfloat16'?",
        "r.yaml: tasks.train.rows: got '5', should be a valid integer",
        "r.yaml: rollout.num_generations: got True, should be a valid integer",
        "r.yaml: rollout.temperature: got 0, should be greater than 0",
        "r.yaml: rewards.0.use: no reward is called 'maze_walkr'; did you mean 'maze_walker'? (your own: 'package.module:Class')",
        "r.yaml: losses.0.epsilon_hi: clipped_surrogate has no such field; did you mean 'epsilon_high'?",
        "r.yaml: trainer.max_steps: missing, and it has no default",
        "r.yaml: trainer.max_step: no such key; did you mean 'max_steps'?",
        "r.yaml: modle: no such key; did you mean 'model'?",
    ]


def test_least_pixels_above_most_pixels_are_refused(load):
    assert load(MINIMAL, "model.min_pixels=4", "model.max_pixels=4").model.max_pixels == 4
    assert load(MINIMAL, "model.min_pixels=9").model.max_pixels is None
    assert refusal(load, MINIMAL, "model.min_pixels=9", "model.max_pixels=4") == [
        "--set model.min_pixels=9: model.min_pixels: got 9; must not be above model.max_pixels, which is 4"
    ]


def test_an_integer_is_a_fine_float_but_not_the_other_way_round(load):
    assert load(MINIMAL, "rollout.temperature=1").rollout.temperature == 1.0
    assert refusal(load, MINIMAL, "trainer.max_steps=3.0") == [
        "--set trainer.max_steps=3.0: trainer.max_steps: got 3.0, should be a valid integer"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1.e3", 1000.0), ("3", 3.0), (".5", 0.5), ("-0", 0.0)],
)
def test_numbers_are_those_of_yaml_1_2(load, text, value):
    """PyYAML alone takes 1e-6 for a string."""
    assert load(MINIMAL, f"optim.weight_decay={text}").optim.weight_decay == value


@pytest.mark.parametrize("word", ["no", "on", "1:30", "2024-01-01", "0x1f"])
def test_words_that_yaml_1_1_would_turn_into_something_else_stay_words(load, word):
    assert load(MINIMAL, f"trainer.name={word}").trainer.name == word


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {path: a}\nmodel: {path: b}\n", "key 'model' stands twice"),
        ("model: &m {path: a}\ntasks: *m\n", "alias *m: write the value out"),
        ("model: {path: a", "while parsing a flow mapping"),
        ("- a\n", "a recipe is a mapping of sections"),
        ("", "a recipe is a mapping of sections"),
        ("model: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_what_is_not_a_recipe_is_refused_with_its_place(load, text, message):
    (line,) = refusal(load, text)
    assert line.startswith("r.yaml: ")
    assert message in line


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "grpo.yaml").write_text(MINIMAL)
    with pytest.raises(RecipeError, match=r"grop\.yaml: no such file; did you mean 'grpo\.yaml'\?"):
        load_recipe(tmp_path / "grop.yaml")


def test_a_recipe_lies_over_its_base_section_by_section(load, tmp_path):
    (tmp_path / "base.yaml").write_text(
        MINIMAL + "optim: {learning_rate: 1e-3, weight_decay: 0.1}\nadvantage: {use: grpo, epsilon: 1e-2}\n"
    )
    text = (
        "base: base.yaml\noptim: {learning_rate: 1e-4}\nrewards: [{use: maze_prefix, normalise: true}]\nadvantage: {scale_rewards: none}\n"
    )
    recipe = load(text)
    assert (recipe.optim.learning_rate, recipe.optim.weight_decay) == (1e-4, 0.1)
    assert [entry.name for entry in recipe.rewards] == ["maze_prefix"]  # a list is replaced
    assert recipe.advantage.fields == {"scale_rewards": "none", "epsilon": 1e-2}  # the same component: its fields merge
    assert load("base: base.yaml\nadvantage: {use: rloo}\n").advantage == Spec("advantage_estimator", "rloo")  # another: they go


def test_a_base_stands_alone(load, tmp_path):
    (tmp_path / "base.yaml").write_text("base: other.yaml\n" + MINIMAL)
    assert refusal(load, "base: base.yaml\n") == ["r.yaml: base: base.yaml has a base itself; a base must stand alone"]
    assert refusal(load, "base: bas.yaml\n") == ["r.yaml: base: bas.yaml: no such file; did you mean 'base.yaml'?"]


def test_a_problem_names_the_file_that_set_the_value(load, tmp_path):
    (tmp_path / "base.yaml").write_text(MINIMAL + "optim: {learning_rate: fast}\nupdate: {num_iterations: 0}\n")
    assert refusal(load, "base: base.yaml\nupdate: {num_iterations: -1}\n") == [
        "r.yaml: update.num_iterations: got -1, should be greater than or equal to 1",
        "base.yaml: optim.learning_rate: got 'fast', should be a valid number",
    ]


def test_overrides_reach_list_items_defaults_and_sections_that_were_null(load):
    recipe = load(MINIMAL, "rewards.0.weight=2", "losses.0.epsilon=0.1", "model.lora.r=4", "update.dynamic_sampling={}")
    assert recipe.rewards[0].weight == 2.0
    assert recipe.losses[0].component.fields["epsilon"] == 0.1
    assert recipe.model.lora is not None
    assert recipe.model.lora.r == 4
    assert recipe.update.dynamic_sampling is not None
    assert recipe.update.dynamic_sampling.max_tries == 20


def test_naming_another_component_drops_the_fields_of_the_old_one_and_keeps_its_weight(load):
    recipe = load(MINIMAL, "losses=[{use: clipped_surrogate, epsilon: 0.1, weight: 0.5}]", "losses.0.use=gspo")
    assert recipe.losses[0].component.fields["epsilon"] == 3e-4
    assert recipe.losses[0].weight == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards.1.weight=2", "rewards is a list of 1; use an index 0 to 0, or set rewards as a whole"),
        ("rewards.first.weight=2", "rewards is a list of 1"),
        ("model.path.x=2", "model.path is 'tiny', which has no keys"),
        ("trainer.seed", "expected key.path=value"),
        ("a..b=1", "expected key.path=value"),
        ("trainer.seed=[", "the value is not YAML"),
        ("rollout.temprature=1", "rollout.temprature: no such key; did you mean 'temperature'?"),
    ],
)
def test_a_wrong_override_names_itself(load, override, message):
    (line,) = refusal(load, MINIMAL, override)
    assert line.startswith(f"--set {override}: ")
    assert message in line


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("rollout.top_p=0.9", "rollout.top_p", "eval.top_p is free"),
        ("rollout.top_k=5", "rollout.top_k", "eval.top_k is free"),
        ("model.path=./nowhere", "model.path", "no such folder"),
        ("model.path=a/b/c", "model.path", "no such folder"),
        ("model.reference=.", "model.reference", "the folder has no config.json"),
        ("tasks.eval={use: jsonl, path: nowhere}", "tasks.eval.path", "no such file or folder"),
        ("rewards=[]", "rewards", "at least one {use: name, field: value} is needed"),
        ("losses=[]", "losses", "at least one {use: name, field: value} is needed"),
        ("rewards=[{use: maze_walker}, {use: maze_walker}]", "rewards.1.name", "'maze_walker' stands twice"),
        ("trainer.eval_tasks=10", "trainer.eval_tasks", "there are no tasks.eval"),
        ("trainer.eval_steps=10", "trainer.eval_steps", "nothing would be evaluated"),
        ("trainer.early_stop={metric: eval/success, patience: 2}", "trainer.early_stop.metric", "never measured"),
        ("eval.k=[1, 4]", "eval.k.1", "eval.num_generations must be 4 or more, it is 1"),
        ("eval.num_generations=4", "eval.num_generations", "all of them are the same"),
        ("update.num_mini_batches=129", "update.num_mini_batches", "a step has 128 completions"),
        ("update.dynamic_sampling={low: 0.5, high: 0.5}", "update.dynamic_sampling.low", "must be below high"),
        ("optim.warmup_steps=2", "optim.warmup_steps", '"constant_with_warmup" has'),
    ],
)
def test_settings_that_contradict_each_other_are_refused(load, override, path, message):
    (line,) = refusal(load, MINIMAL, override)
    assert f": {path}: " in line
    assert message in line


def test_eval_may_cut_the_distribution(load):
    assert load(MINIMAL, "eval.top_p=0.9", "eval.temperature=0.7").eval.top_p == 0.9


OWN = '''
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Optional

import a_module_that_does_not_exist

if TYPE_CHECKING:
    from mmrl.protocols import Correction, Reward, Schedule

Level = Literal["token", "sequence"]
DEFAULT_LEVEL = "token"


@dataclass(frozen=True)
class Base:
    size: int


@dataclass(frozen=True)
class Mine(Base):
    """My advantage."""

    level: Level = DEFAULT_LEVEL
    """Where."""
    names: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = (1, 2)
    ceiling: "float | None" = None
    table: Optional[Mapping[str, int]] = None
    pace: "Schedule | float" = 1.0
    parts: "tuple[Reward, ...]" = ()
    odd: complex = 1j
    hidden: int = field(default=0, init=False)
    min_generations: ClassVar[int] = 4


class Plain:
    pass
'''


@pytest.fixture
def own(load, tmp_path, monkeypatch, request):
    """Loads MINIMAL with an advantage of one's own, whose module cannot even be imported; `advantage` is its YAML without `use`."""
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda advantage, cls="Mine", *more: load(MINIMAL, f"advantage={{use: '{name}:{cls}', {advantage}}}", *more)


def test_a_component_outside_the_project_is_read_without_being_imported(own):
    spec = own("size: 2, pace: {use: constant, value: 3}, parts: [{use: maze_walker}], table: {a: 1}").advantage
    assert spec.fields == {
        "size": 2,
        "level": "token",
        "shape": (1, 2),
        "ceiling": None,
        "table": {"a": 1},
        "pace": Spec("schedule", "constant", {"value": 3.0}),
        "parts": (Spec("reward", "maze_walker", {"shortest_only": False}),),
    }


@pytest.mark.parametrize(
    ("advantage", "message"),
    [
        ("", ".size: missing; own"),
        ("size: 1, level: tokn", "level: got 'tokn', should be 'token' or 'sequence'; did you mean 'token'?"),
        ("size: 1, names: [1]", "names.0: got 1, should be a valid string"),
        ("size: 1, shape: [1, true]", "shape.1: got True, should be a valid integer"),
        ("size: 1, pace: fast", "pace: got 'fast', should be a valid number"),
        ("size: 1, pace: {use: sloow}", "pace.use: no schedule is called 'sloow'"),
        ("size: 1, parts: [maze_walker]", "parts.0: got 'maze_walker'; a component is written {use: name, field: value}"),
        ("size: 1, odd: 3", "declares it as complex, which a recipe cannot write"),
        ("size: 1, hidden: 3", "has no such field"),
        ("size: 1, min_generations: 3", "has no such field"),
    ],
)
def test_a_component_outside_the_project_is_checked_like_any_other(own, advantage, message):
    with pytest.raises(RecipeError) as caught:
        own(advantage)
    (line,) = str(caught.value).splitlines()
    assert message in line


def test_a_group_smaller_than_the_advantage_needs_is_refused(own):
    assert own("size: 1", "Mine", "rollout.num_generations=4")
    with pytest.raises(RecipeError, match=r"rollout\.num_generations: got 3; .* needs at least 4; raise it, or use reinforce_pp"):
        own("size: 1", "Mine", "rollout.num_generations=3")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("nowhere.at_all:X", "no Python package 'nowhere' is installed or in the current folder"),
        ("mmrl.advantages.grop:GRPO", "no Python module 'mmrl.advantages.grop'"),
        ("mmrl.advantages.grpo:GRP", "no class 'GRP' in"),
        ("mmrl.errors:MmrlError", "MmrlError in "),
    ],
)
def test_a_class_that_is_not_there_is_named(load, use, message):
    (line,) = refusal(load, MINIMAL, f"advantage.use='{use}'")
    assert f"advantage.use: {message}" in line


def test_build_makes_the_component_and_its_parts(load):
    recipe = load(MINIMAL, "losses.0.weight={use: linear, start: 1, end: 0, num_steps: 4}")
    weight = recipe.losses[0].weight
    assert isinstance(weight, Spec)
    assert weight.build()(2) == 0.5
    assert type(recipe.success.build()).__name__ == "MazeWalker"


def test_a_value_that_the_class_refuses_is_a_recipe_error_with_its_place(load):
    spec = load(MINIMAL, "advantage.epsilon=-1").advantage
    with pytest.raises(RecipeError, match=r"r\.yaml: advantage: .*epsilon"):
        spec.build()


WITH_JUDGE = """
model: {path: tiny}
tasks: {train: {use: maze, split: train, annotated: true}}
rewards:
  - {use: maze_walker, weight: 0.9}
  - {use: action_format, weight: 0.1}
  - {use: perception_r1, weight: 0.7, judge: {use: openai, base_url: "http://localhost:1/v1", model: qwen}}
  - {use: repetition, weight: 2.0}
trainer: {max_steps: 3}
"""


def test_a_judge_is_a_component_of_its_reward(load):
    recipe = load(WITH_JUDGE)
    judge = recipe.rewards[2].component.fields["judge"]
    assert (judge.axis, judge.use, judge.fields["model"], judge.fields["cache"]) == ("judge", "openai", "qwen", "")
    assert load(to_yaml(recipe)) == recipe
    assert load(WITH_JUDGE, "rewards.2.judge={use: rule}").rewards[2].component.build()
    (line,) = refusal(load, WITH_JUDGE, "rewards.2.judge.modle=x")
    assert "rewards.2.judge.modle: openai has no such field; did you mean 'model'?" in line
    with pytest.raises(RecipeError, match=r"rewards\.2\.judge: base_url must look like"):
        load(WITH_JUDGE, "rewards.2.judge.base_url=localhost").rewards[2].component.build()


@pytest.mark.parametrize(("weight", "said"), [(0.7, False), (0.79, False), (0.8, True), (2.0, True), (0.0, False)])
def test_a_perception_reward_that_can_outweigh_the_answer_is_told(load, caplog, weight, said):
    """0.9 for the answer less 0.1 for the form; the penalty earns nothing."""
    load(WITH_JUDGE, f"rewards.2.weight={weight}")
    assert ("rewards.2.weight" in caplog.text and "stay below 0.8" in caplog.text) == said


def test_it_is_not_told_where_success_is_another_reward(load, caplog):
    load(WITH_JUDGE, "rewards.2.weight=5", "success={use: maze_reaches}")
    assert not caplog.text
