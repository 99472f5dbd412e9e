"""A run as data: a flat YAML file becomes one frozen `Recipe`, or one `RecipeError` that lists everything that is wrong with it.

Nothing here imports torch: a component is named (`{use: name, field: value}`), checked against the fields that its class declares, and
only built by `Spec.build()`. The sections are the whole of what a recipe may say; their docstrings are what docs/recipes.md shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mmrl.check import Checker
from mmrl.component import Axis, Spec
from mmrl.errors import RecipeError
from mmrl.recipe_file import Tree, dump, read_tree
from mmrl.recipe_rules import check_together

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Nucleus = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (peft); null trains all weights."""

    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveInt = 32
    """Scale; the adapter adds alpha / r times its product."""
    dropout: Decay = 0.0
    """Dropout before the adapter, 0 to below 1."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module names, or "all-linear" for every linear layer of the language model."""


@dataclass(frozen=True)
class ModelSection:
    """The policy."""

    path: Text
    """A folder with a config.json, a hub id `owner/name`, or an embedded model: "tiny", taught easy mazes, "tiny-facts", taught to
    say what it sees of them, "tiny-video" and "tiny-count", taught some answers about small clips."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory."""
    attn_implementation: Text = "auto"
    """"auto", or a name that transformers knows ("eager", "sdpa", "flash_attention_2")."""
    freeze_vision: bool = False
    """Train the language model only."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a hub model."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, more time, same gradient."""
    timestamps: Literal["own", "interleaved"] = "own"
    """How the times of a clip reach the model: "own", as its family does it (Qwen2.5-VL in positions, Qwen3-VL in words); "interleaved", as
    text such as "1.0s" before each pair of frames (TimeLens, arXiv:2512.14698), which Qwen3-VL does not take."""
    min_pixels: PositiveInt | None = None
    """Least pixels of a picture after resizing; null = as the processor was saved. Clips keep the processor's own."""
    max_pixels: PositiveInt | None = None
    """Most pixels of a picture after resizing; null = as the processor was saved."""
    lora: LoraSection | None = None
    """Low-rank adapters; null trains all weights."""
    reference: str | None = None
    """Model behind ref_logps; null = the policy's weights at the start (with LoRA: the adapter off)."""


@dataclass(frozen=True)
class TasksSection:
    """Where problems come from."""

    train: Annotated[Spec, Axis("task_source")]
    """Tasks to train on."""
    sampler: Annotated[Spec, Axis("task_sampler", "uniform")]
    """Which of them a step uses."""
    eval: Annotated[Spec, Axis("task_source")] | None = None
    """Tasks to evaluate on; null = no evaluation."""


@dataclass(frozen=True)
class RolloutSection:
    """How completions are sampled."""

    engine: Annotated[Spec, Axis("rollout_engine", "hf")]
    """What generates."""
    strategy: Annotated[Spec, Axis("rollout_strategy", "plain")]
    """What is asked of it for a task."""
    num_generations: PositiveInt = 8
    """Completions per task (the group's size, G)."""
    temperature: Positive = 1.0
    """Sampling temperature; the trainer's logps use the same one."""
    top_p: Nucleus = 1.0
    """Nucleus share. Must be 1 in training: a cut distribution is not the one that is trained. See eval.top_p."""
    top_k: Count = 0
    """Likeliest tokens kept, 0 = all. Must be 0 in training. See eval.top_k."""
    max_completion_length: PositiveInt = 256
    """Tokens, the end token included; a longer completion is cut and counts as truncated."""
    stop: tuple[Text, ...] = ()
    """Strings that end a completion, kept in it."""


@dataclass(frozen=True)
class RewardEntry:
    """One reward of the sum."""

    component: Annotated[Spec, Axis("reward")]
    """The reward: its `use` and fields stand in the entry itself."""
    weight: Finite = 1.0
    """Factor in the sum; 0 computes and logs the reward without training on it."""
    name: Text = ""
    """Name in metrics and reports; default: the component's name."""
    arms: tuple[Text, ...] = ()
    """Arms of the strategy that it scores, "plain" being the task's own prompt; empty = all. It adds nothing to the others."""


@dataclass(frozen=True)
class LossEntry:
    """One term of the loss."""

    component: Annotated[Spec, Axis("loss_term")]
    """The term: its `use` and fields stand in the entry itself."""
    weight: Finite | Annotated[Spec, Axis("schedule")] = 1.0
    """Factor in the sum: a number, or a schedule `{use: linear, …}` of the step."""
    name: Text = ""
    """Name in metrics; default: the component's name."""


@dataclass(frozen=True)
class DynamicSamplingSection:
    """DAPO's dynamic sampling (arXiv:2503.14476, eq. 11): a group stays if low < its success rate < high; others are replaced. The rate is
    that of the policy's own tries at the task: no label, no answer to another question, no rollout under shuffled frames."""

    low: Share | None = 0.0
    """A group whose success rate is this or less is too hard; null = none is."""
    high: Share = 1.0
    """A group whose success rate is this or more is too easy."""
    max_tries: PositiveInt = 20
    """Draws for one step before the run stops, because the tasks are all too easy or too hard."""
    also: tuple[Text, ...] = ()
    """Rewards by name: a group stays as well if the mean of one of them lies strictly between 0 and 1 (PEARL's soft filter,
    arXiv:2511.18437)."""


@dataclass(frozen=True)
class UpdateSection:
    """From advantages to optimizer steps."""

    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] = "token_mean"
    """How token losses become one number: mean over the update's tokens (DAPO), mean of sequence means (GRPO), mean of sequence sums,
    or sum / (rows * max_completion_length) (Dr. GRPO)."""
    num_iterations: PositiveInt = 1
    """Passes over the step's samples."""
    num_mini_batches: PositiveInt = 1
    """Optimizer steps per pass."""
    max_tokens_per_stream: PositiveInt = 8192
    """Tokens of a forward: prompts that are read at once, and completions that are back-propagated at once. Changes memory and speed, never
    the gradient."""
    per_device_train_batch_size: PositiveInt | None = None
    """Completions per backward, at most; null = as many as max_tokens_per_stream allows. Never changes the gradient either."""
    mask_truncated_completions: bool = False
    """Leave completions without an end out of loss and denominator (DAPO's overlong filtering)."""
    dynamic_sampling: DynamicSamplingSection | None = None
    """Replace groups that teach nothing; null = keep all."""
    arm_weights: dict[str, NonNegative] = field(default_factory=dict)
    """Arms whose rows are aggregated over their own tokens alone, and the factor of each one's loss: {perception: 0.1}. Arms that are not
    named are aggregated together, with factor 1; empty = all are."""
    kl_in_reward: NonNegative = 0.0
    """Subtract this times log(policy / reference) from each token's reward (REINFORCE++); 0 = no."""
    forward: Literal["auto", "shared", "naive"] = "auto"
    """"shared" forwards a group's prompt and picture once, "naive" once per completion; "auto" shares where the model can."""
    max_grad_norm: Positive = 1.0
    """Gradient norm above which the gradient is scaled down."""


@dataclass(frozen=True)
class OptimSection:
    """AdamW and its learning rate."""

    learning_rate: NonNegative = 1e-6
    """The highest rate, reached after the warm-up."""
    weight_decay: NonNegative = 0.0
    """Share of a weight, times the learning rate, taken off at each update (decoupled); matrices only."""
    adam_beta1: Decay = 0.9
    """Memory of the mean of the gradients."""
    adam_beta2: Decay = 0.999
    """Memory of the mean of their squares."""
    adam_epsilon: Positive = 1e-8
    """Added to the root of that mean."""
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Shape after the warm-up; "linear" and "cosine" fall to 0 at the last update."""
    warmup_steps: Count = 0
    """Steps over which the rate rises linearly from 0; "constant" has none."""


@dataclass(frozen=True)
class EarlyStopSection:
    """Stop when a metric has stopped improving, or has reached a threshold."""

    metric: Text
    """A name in metrics.jsonl, for example "eval/success"."""
    patience: PositiveInt
    """Evaluations or steps in a row without a new best before the run stops."""
    threshold: Finite | None = None
    """Stop at once when the metric reaches this value; null = patience alone."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less is better."""


@dataclass(frozen=True)
class PlateauSection:
    """Stop when training has gone flat: the mean reward and the mean spread inside groups, each taken over `window` steps, have both moved
    by less than `tolerance` in the last `span` steps. TimeLens (arXiv:2512.14698) stops so, without a formula; these numbers are ours."""

    window: PositiveInt = 10
    """Steps of a mean."""
    span: PositiveInt = 30
    """Steps between the two means that are compared."""
    tolerance: Positive = 0.01
    """Least movement, in the reward's unit, that goes on."""
    min_steps: PositiveInt = 60
    """Steps before which the run does not stop so."""


@dataclass(frozen=True)
class CollapseSection:
    """Take a loss term back when it makes training collapse. Means over `window` steps are compared with those of the first `window` steps:
    it is a collapse when the entropy has grown `max_growth` times, or when entropy and the term's metric have both grown `growth` times and
    the reward has fallen (PAPO, arXiv:2507.06448: both entropies rise, then the perception term and the reward crash; the numbers are
    ours). Looks again `window` steps later."""

    term: Text
    """Name of the loss term."""
    metric: Text = "perception/kl"
    """Metric of the term that rises in a collapse."""
    window: PositiveInt = 5
    """Steps of a mean."""
    max_growth: Positive = 2.0
    """Entropy, in multiples of its start, that is a collapse by itself."""
    growth: Positive = 1.2
    """Entropy and metric, in multiples of their start, that are a collapse where the reward falls too."""
    reward_drop: NonNegative = 0.05
    """Fall of the reward below its start, in its unit, that counts."""
    factor: Decay = 0.0
    """Factor on the term's weight at each collapse; 0 turns the term off."""


@dataclass(frozen=True)
class TrainerSection:
    """The run itself."""

    max_steps: PositiveInt
    """Steps of the whole run: one step draws tasks, samples, scores and updates."""
    name: Text = ""
    """Name of the run's folder in output_dir; default: the recipe's file name."""
    output_dir: Text = "runs"
    """Folder of runs, from the current folder."""
    seed: Count = 0
    """Seed of every random choice of the run."""
    tasks_per_step: PositiveInt = 16
    """Tasks (groups) per step, all ranks together."""
    eval_steps: Count = 0
    """Evaluate after every n-th step; 0 = only before and after training."""
    eval_tasks: Count = 0
    """Tasks of an evaluation during training; 0 = no evaluation during training."""
    eval_batch_size: PositiveInt = 64
    """Tasks sampled together in an evaluation; changes memory only."""
    save_steps: Count = 0
    """Save a checkpoint after every n-th step; 0 = only the last."""
    save_total_limit: PositiveInt = 2
    """Checkpoints kept; older ones are deleted."""
    log_completions_steps: Count = 0
    """Write all rollouts of every n-th step to rollouts/*.parquet; 0 = never."""
    arm_grad_norm_steps: Count = 0
    """At every n-th step, measure what each of a strategy's arms adds to the gradient (arm/NAME/grad_norm), by a forward and backward of
    its own that changes nothing else; 0 = never."""
    trackers: tuple[Text, ...] = ("tensorboard",)
    """Trackers by accelerate's names; metrics.jsonl is always written."""
    reward_failure_limit: Share = 0.05
    """Share of a step's rollouts whose reward may fail before the run stops."""
    early_stop: EarlyStopSection | None = None
    """Stop before max_steps when a metric says so; null = never."""
    plateau: PlateauSection | None = None
    """Stop before max_steps when reward and spread have gone flat; null = never."""
    collapse: CollapseSection | None = None
    """Take a loss term back when it makes training collapse; null = never."""
    max_minutes: Positive | None = None
    """Stop cleanly, with a checkpoint, after this many minutes of training; null = no limit."""


@dataclass(frozen=True)
class EvalSection:
    """How completions are sampled in an evaluation; length and stop strings are rollout's."""

    temperature: NonNegative = 0.0
    """0 = the likeliest token."""
    top_p: Nucleus = 1.0
    """Nucleus share; 1 = all."""
    top_k: Count = 0
    """Likeliest tokens kept; 0 = all."""
    num_generations: PositiveInt = 1
    """Completions per task."""
    k: tuple[PositiveInt, ...] = (1,)
    """Which pass@k and maj@k to report; none above num_generations."""
    tasks: PositiveInt = 200
    """Tasks of `mmrl eval`; during training trainer.eval_tasks counts."""


@dataclass(frozen=True)
class Recipe:
    """A whole run, checked. Read with `load_recipe`."""

    model: ModelSection
    tasks: TasksSection
    rollout: RolloutSection
    rewards: tuple[RewardEntry, ...]
    """Rewards whose weighted sum is trained on; at least one."""
    success: Annotated[Spec, Axis("reward")]
    """Reward whose value 1 counts as solved, for curriculum, dynamic sampling and evaluation; default: the first reward."""
    advantage: Annotated[Spec, Axis("advantage_estimator", "grpo")]
    """From rewards to advantages."""
    losses: tuple[LossEntry, ...]
    """Terms whose weighted sum is the loss; default: [{use: clipped_surrogate}]."""
    trainer: TrainerSection
    views: dict[Text, Annotated[Spec, Axis("perturbation")]] = field(default_factory=dict)
    """Name -> perturbation: twins of the prompts with perturbed pictures, for the loss terms and shapers that name them."""
    shaping: tuple[Annotated[Spec, Axis("advantage_shaper")], ...] = ()
    """What changes advantages token by token after the estimator, one after another; default: nothing."""
    update: UpdateSection = field(default_factory=UpdateSection)
    optim: OptimSection = field(default_factory=OptimSection)
    eval: EvalSection = field(default_factory=EvalSection)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, lay over its base and the overrides ("optim.learning_rate=1e-5"), and check. RecipeError lists every problem, a line each."""
    path = Path(path)
    tree = read_tree(path, overrides, defaults={"losses": [{"use": "clipped_surrogate"}]})
    success_given = "success" in tree.data
    _fill_defaults(tree)
    checker = Checker(tree.where)
    recipe = checker.section(Recipe, tree.data, "")
    if not success_given:  # what is wrong with it is wrong with the rewards it comes from, and said there
        checker.problems = [problem for problem in checker.problems if not problem[0].startswith("success")]
    if isinstance(recipe, Recipe):
        check_together(recipe, checker)
    if checker.problems:
        raise RecipeError("\n".join(checker.lines()))
    return recipe


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested dicts, lists and scalars, every default written out; `load_recipe` reads it back to an equal one."""
    return _plain(recipe)


def to_yaml(recipe: Recipe) -> str:
    """What `mmrl show` prints and a run saves."""
    return dump(to_plain(recipe))


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return {"use": value.use} | {name: _plain(item) for name, item in value.fields.items()}
    if isinstance(value, (RewardEntry, LossEntry)):
        return _plain(value.component) | {
            item.name: _plain(getattr(value, item.name)) for item in fields(value) if item.name != "component"
        }
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _fill_defaults(tree: Tree) -> None:
    """The two defaults that depend on the rest of the recipe."""
    rewards = tree.data.get("rewards")
    if "success" not in tree.data and isinstance(rewards, list) and rewards and isinstance(rewards[0], dict):
        tree.data["success"] = {key: value for key, value in rewards[0].items() if key not in ("weight", "name", "arms")}
        tree.origins["success"] = tree.origins["rewards"]
    trainer = tree.data.get("trainer")
    if isinstance(trainer, dict):
        trainer.setdefault("name", tree.path.stem)
