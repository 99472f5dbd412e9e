"""The command line. Every command imports what it needs when it runs, so `mmrl --help` and `mmrl show` never wait for torch."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmrl.errors import MmrlError

app = typer.Typer(
    help="RL fine-tuning of vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
tasks_app = typer.Typer(help="Make tasks, and look at them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(tasks_app, name="tasks")
bench_app = typer.Typer(help="Time mmrl against other ways of doing the same work.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")
reward_app = typer.Typer(help="Rewards by themselves, without a model.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(reward_app, name="reward")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace one value; may be repeated.")]


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    max_steps: Annotated[int | None, typer.Option(help="Short for --set trainer.max_steps=N.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Short for --set trainer.output_dir=DIR.")] = None,
) -> None:
    """Train as RECIPE says; prints success before and after, and the run's folder."""
    from mmrl.recipe import load_recipe

    overrides = list(overrides or ())
    if max_steps is not None:
        overrides.append(f"trainer.max_steps={max_steps}")
    if output_dir is not None:
        overrides.append(f"trainer.output_dir={json.dumps(output_dir)}")  # JSON's quotes, so that no folder's name reads as a number
    checked = load_recipe(recipe, overrides)
    from mmrl.summary import print_summary
    from mmrl.trainer import train as run_training

    run = run_training(checked, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # as torchrun and accelerate launch number their processes
        print_summary(run)
        typer.echo(run)


@app.command("eval")
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe (its model) or a run's folder (its last checkpoint).")],
    overrides: Overrides = None,
) -> None:
    """Measure the success rate on tasks.eval."""
    from mmrl.evaluate import evaluate_command

    evaluate_command(target, list(overrides or ()))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="File of an evaluation, or a run's folder (its last evaluation).")],
    after: Annotated[
        Path | None,
        typer.Argument(metavar="AFTER", help="The same; left out, BEFORE is a run whose first and last evaluation are compared."),
    ] = None,
    outcome: Annotated[str, typer.Option(help='"success", or the name of a reward.')] = "success",
    at_least: Annotated[float, typer.Option(help="A task counts as a yes from this value on.")] = 1.0,
) -> None:
    """Test two evaluations of the same tasks against each other (McNemar)."""
    from mmrl.compare import compare_command

    typer.echo(json.dumps(compare_command(before, after, outcome, at_least), indent=1))


@app.command()
def judge(
    recipe: RecipePath,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Training tasks whose facts are made into texts.")] = 200,
    pairs: Annotated[Path | None, typer.Option(help="Labelled texts of your own instead, a JSON object a line.")] = None,
) -> None:
    """Ask the judge of RECIPE's reward what is known already, and say how often it is right."""
    from mmrl.judge_check import judge_command

    typer.echo(json.dumps(judge_command(recipe, list(overrides or ()), n, pairs), indent=1))


@app.command()
def show(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check RECIPE and print it with its base, the overrides and every default written out."""
    from mmrl.recipe import load_recipe, to_yaml

    typer.echo(to_yaml(load_recipe(recipe, overrides or ())), nl=False)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]) -> None:
    """Write the run's report.html; prints success before and after, and the page's path."""
    from mmrl.report import write_report
    from mmrl.summary import print_summary

    page = write_report(run)
    print_summary(run)
    typer.echo(page)


@app.command()
def tiny(
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    name: Annotated[
        Literal["tiny", "tiny-facts", "tiny-video", "tiny-count"],
        typer.Option(help="Which: taught easy mazes, to say what it sees of them, or some of VideoSSR's answers."),
    ] = "tiny",
    steps: Annotated[int | None, typer.Option(min=0, help="Steps of supervised warm-up; 0 = random weights.")] = None,
) -> None:
    """Build an embedded model in a folder of its own; prints the folder. (`path: tiny` in a recipe does this by itself, once.)"""
    from mmrl.tiny import MODELS, build_tiny

    made = MODELS[name]
    if steps is not None:
        made = replace(made, lessons=replace(made.lessons, steps=steps))  # pyright: ignore[reportArgumentType] (all courses are dataclasses)
    typer.echo(build_tiny(out, made))


@app.command()
def ablate(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Folder for runs/, logs/, plots/, table.md and table.json; goes on where it stopped.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY.PATH=V1,V2", help="Values to try; may be repeated: all combinations, the first is the base."),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML instead of --vary, name: [override, ...] a variant; 'base' is RECIPE as it is."),
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Of trainer.seed, with commas between; each variant runs with each.")] = "0,1,2",
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    metric: Annotated[
        list[str] | None, typer.Option(help="A name in metrics.jsonl, besides the final evaluation's success; may be repeated.")
    ] = None,
) -> None:
    """Train variants of RECIPE with several seeds each, and compare them in one table."""
    from mmrl.lab.ablate import ablate_command

    table, failures = ablate_command(
        recipe, varied=vary or (), variants_file=variants, overrides=overrides or (), seeds=seeds, processes=processes, out=out,
        metrics=metric or (), say=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    typer.echo(table)
    if failures:
        raise MmrlError("\n".join([f"{len(failures)} of the runs failed; {out}/table.md is of the others", *failures]))


@reward_app.command("replay")
def reward_replay(
    run: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run's folder, or TRL's completions: their folder, or one file.")],
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE|use=NAME,FIELD=VALUE|MODULE:FUNCTION|same",
            help="A recipe (its rewards), one reward, a list [{use: a}, {use: b}], a function written for TRL, or the run's own (default); "
            "may be repeated.",
        ),
    ] = None,
    probes: Annotated[bool, typer.Option("--probes", help="Also score completions that should earn nothing.")] = False,
    advantage: Annotated[
        str | None, typer.Option(metavar="use=NAME,FIELD=VALUE", help="Default: the run's own; for TRL's completions grpo.")
    ] = None,
    steps: Annotated[str | None, typer.Option(metavar="FIRST-LAST", help="Only these of the logged steps.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table.md and table.json.")] = None,
    num_generations: Annotated[int | None, typer.Option(min=2, help="Of TRL's run; needed for its completions.")] = None,
    logged: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=WEIGHT", help="Reward columns in TRL's completions; default: all, weight 1.")
    ] = None,
) -> None:
    """Score a run's logged rollouts again, without a model, and say what other rewards would have changed."""
    from mmrl.lab.replay import replay_command

    text = replay_command(
        run,
        rewards or (),
        advantage=advantage,
        steps=steps,
        with_probes=probes,
        out=out,
        num_generations=num_generations,
        logged=logged or (),
    )
    typer.echo(text)


@tasks_app.command()
def maze(
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")],
    out: Annotated[Path, typer.Option(help="New folder for tasks.jsonl and media/.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[str, typer.Option(help="train or test; they share no layout.")] = "train",
    moves: Annotated[str, typer.Option(help='Length of the solution: "a-b" or "n".')] = "1-5",
    turns: Annotated[str, typer.Option(help='Changes of direction: "a-b" or "n".')] = "0-2",
    rows: int = 5,
    cols: int = 5,
    loops: Annotated[float, typer.Option(help="Share of the inner walls of a tree maze that is opened.")] = 0.0,
) -> None:
    """Write N maze tasks; the same call writes the same bytes on every machine."""
    from data_pipelines.tasks import make_mazes

    written = make_mazes(out, n, seed=seed, split=split, moves=moves, turns=turns, rows=rows, cols=cols, loops=loops)
    typer.echo(f"{out}: {written} tasks")


@tasks_app.command()
def clips(
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")],
    out: Annotated[Path, typer.Option(help="New folder for tasks.jsonl and media/.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[str, typer.Option(help="train or test; they share no layout.")] = "train",
    kinds: Annotated[
        str, typer.Option(help="Kinds of question, with commas between.")
    ] = "counting,order,direction,speed,grounding,first_frame",
    levels: Annotated[str, typer.Option(help="Of 1, 2 and 3, the hardest.")] = "1,2,3",
    num_frames: Annotated[int, typer.Option(help="8 to 64.")] = 12,
    height: Annotated[int, typer.Option(help="A multiple of 28.")] = 56,
    width: Annotated[int, typer.Option(help="A multiple of 28.")] = 56,
    fps: Annotated[int, typer.Option(help="1, 2, 4, 5, 10, 20 or 25.")] = 2,
    background: Annotated[str, typer.Option(help="plain or textured.")] = "plain",
    videos: Annotated[bool, typer.Option("--videos", help="Also encode each clip as an .mp4 in videos/; needs PyAV.")] = False,
) -> None:
    """Write N short videos of moving shapes with a question each; the same call writes the same pixels on every machine."""
    from data_pipelines.tasks import write_clips
    from data_pipelines.tasks.clips import ClipTasks, listed

    asked, hard = listed("kinds", kinds, str), listed("levels", levels, int)
    source = ClipTasks(split, seed, asked, hard, num_frames, height, width, fps, background)  # type: ignore[arg-type]  # checks them itself
    typer.echo(f"{out}: {write_clips(source, n, out, videos)} tasks")


@tasks_app.command()
def footage(
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")],
    out: Annotated[Path, typer.Option(help="New folder for the .mp4 files.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[str, typer.Option(help="train or test; they share no layout.")] = "train",
    num_frames: Annotated[int, typer.Option(help="8 to 1024.")] = 64,
    height: Annotated[int, typer.Option(help="A multiple of 28.")] = 112,
    width: Annotated[int, typer.Option(help="A multiple of 28.")] = 112,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second.")] = 4,
) -> None:
    """Write N videos of moving shapes without a question, to try video commands with; needs PyAV."""
    from data_pipelines.tasks import write_footage

    written = write_footage(out, n, split, seed, num_frames, height, width, fps)  # type: ignore[arg-type]  # split is checked there
    typer.echo(f"{out}: {written} videos")


@tasks_app.command()
def video(
    videos: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders, searched through, or single videos.")],
    out: Annotated[Path, typer.Option(help="New folder for tasks.jsonl.")],
    kinds: Annotated[
        str | None, typer.Option(help="With commas between; default: those of VideoSSR's training set, in its shares.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="How many; default: one of each kind for every video.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[str, typer.Option(help="train, test or all; which of the two owns a video follows from its content.")] = "all",
    frames: Annotated[int, typer.Option(help="Frames of each video that are shown.")] = 48,
    min_pixels: Annotated[int, typer.Option(help="Least pixels of a frame.")] = 128 * 128,
    max_pixels: Annotated[int | None, typer.Option(help="Most pixels of a frame; default: 65536, with --viubench 262144.")] = None,
    factor: Annotated[int, typer.Option(help="Sides of frames are multiples: 28 for Qwen2.5-VL, 32 for Qwen3-VL.")] = 28,
    viubench: Annotated[bool, typer.Option("--viubench", help="The kinds and pixels of the paper's evaluation set.")] = False,
    materialize: Annotated[bool, typer.Option("--materialize", help="Write frames as pictures, not as numbers and edits.")] = False,
    on_media_error: Annotated[str, typer.Option(help="raise stops at a video that cannot be read; skip leaves it out.")] = "raise",
) -> None:
    """Turn videos without labels into tasks that know their answers (VideoSSR); the same call writes the same tasks."""
    from data_pipelines.tasks import write_videossr
    from data_pipelines.tasks.clips import listed
    from data_pipelines.tasks.videossr import TRAINING, TRAINING_WEIGHTS, VIUBENCH, VideoSSRTasks

    chosen = listed("kinds", kinds, str) if kinds else VIUBENCH if viubench else TRAINING
    source = VideoSSRTasks(
        split, tuple(str(path) for path in videos), seed, chosen, frames, min_pixels,  # type: ignore[arg-type]  # checks them itself
        max_pixels or (512 * 512 if viubench else 256 * 256), factor, weights=TRAINING_WEIGHTS if chosen == TRAINING else (),
        on_media_error=on_media_error,  # type: ignore[arg-type]
    )  # fmt: skip
    for path, reason in source.library.unusable:
        typer.echo(f"not used: {path}: {reason}", err=True)
    written = write_videossr(source, out, n, materialize)
    typer.echo(f"{out}: {written} tasks of {len(source.own_videos)} videos; {len(source.library.unusable)} not used")


@tasks_app.command()
def look(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with a tasks.jsonl.")],
    out: Annotated[Path | None, typer.Option(help="PNG to write; default: contact_sheet.png in DIR.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Tasks shown.")] = 24,
) -> None:
    """Draw tasks, evenly spread over a data set, on one PNG."""
    from data_pipelines.tasks import look as draw

    png = out if out is not None else folder / "contact_sheet.png"
    typer.echo(f"{png}: {draw(folder, png, count)} tasks")


@tasks_app.command()
def perturb(
    source: Annotated[Path, typer.Argument(metavar="IMAGE|VIDEO", help="A picture, a video, an animation, or a folder of frames.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw every perturbation of a picture or video on one PNG; the same call draws the same pixels."""
    from data_pipelines.perturb.sheet import draw_sheet

    typer.echo(f"{out}: {draw_sheet(source, out, seed)} perturbations")


@tasks_app.command()
def difficulty(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Folder for the answers and the drawn tasks; goes on where it stopped.")],
    overrides: Overrides = None,
    target_size: Annotated[int, typer.Option(min=9, help="Tasks to draw, an equal share from each of nine buckets of duration.")] = 2500,
    tasks: Annotated[int | None, typer.Option(min=1, help="Answer only the first so many tasks.")] = None,
) -> None:
    """Let RECIPE's model answer its training tasks once, and draw the hard ones (TimeLens)."""
    from mmrl.difficulty import difficulty_command

    typer.echo(json.dumps(difficulty_command(recipe, list(overrides or ()), out, target_size, tasks)))


@bench_app.command("group-forward")
def bench_group_forward(
    prompt: Annotated[list[int], typer.Option(min=64, help="Prompt tokens, most of them of one picture; may be repeated.")] = [2048],  # noqa: B006
    completion: Annotated[list[int], typer.Option(min=1, help="Tokens of each completion; may be repeated.")] = [256],  # noqa: B006
    num_generations: Annotated[list[int], typer.Option(min=2, help="Completions of the prompt; may be repeated.")] = [8],  # noqa: B006
    model_size: Annotated[str, typer.Option(help="small, proportions-7b, 3b or 7b: sizes of a Qwen2.5-VL with random weights.")] = "small",
    arms: Annotated[str, typer.Option(help="Which ways, of naive, vision_once, concatenated, shared.")] = "naive,vision_once,shared",
    rounds: Annotated[int, typer.Option(min=0, help="The ways take turns this often; 0 = a first step each is all.")] = 3,
    max_tokens_per_stream: Annotated[int, typer.Option(min=1)] = 512,
    view: Annotated[bool, typer.Option("--view", help="Also a step with a second view of the prompt, without gradient.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the numbers to.")] = None,
) -> None:
    """Log-probabilities and gradient of one group: prompt repeated, picture encoded once, prompt shared."""
    from mmrl.bench.group_forward import command

    command(prompt, completion, num_generations, model_size, arms, rounds, max_tokens_per_stream, view, json_file)


@bench_app.command("rollout")
def bench_rollout(
    prompt: Annotated[int, typer.Option(min=64, help="Prompt tokens, most of them of one picture.")] = 2048,
    num_generations: Annotated[int, typer.Option(min=2, help="Completions of the prompt.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each completion.")] = 64,
    model_size: Annotated[str, typer.Option(help="small, proportions-7b, 3b or 7b: sizes of a Qwen2.5-VL with random weights.")] = "small",
    rounds: Annotated[int, typer.Option(min=1, help="The ways take turns this often.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the numbers to.")] = None,
) -> None:
    """Completions of one prompt: transformers' generation on copies of it, and the HF engine."""
    from mmrl.bench.rollout import command

    command(prompt, num_generations, tokens, model_size, rounds, json_file)


@bench_app.command("media")
def bench_media(
    files: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files.")],
    family: Annotated[list[str], typer.Option(help="qwen2_5_vl or qwen3_vl; may be repeated.")] = ["qwen2_5_vl"],  # noqa: B006
    fps: Annotated[list[float], typer.Option(help="Frames kept per second; may be repeated.")] = [2.0],  # noqa: B006
    max_frames: Annotated[list[int], typer.Option(min=4, help="Most frames kept; may be repeated.")] = [16, 128],  # noqa: B006
    max_pixels: Annotated[list[int], typer.Option(min=0, help="Most pixels of a frame, 0 = qwen-vl-utils' own; may be repeated.")] = [0],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="The ways take turns this often.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the numbers to.")] = None,
) -> None:
    """From video file to pixel_values on one CPU thread: qwen-vl-utils and the model's processor, mmrl, and mmrl's frame cache."""
    from mmrl.bench.media import command

    command(files, family, fps, max_frames, max_pixels, rounds, json_file)


@bench_app.command("step")
def bench_step(
    against: Annotated[str, typer.Option(help="What to compare with: trl.")] = "trl",
    visual_tokens: Annotated[int, typer.Option(min=4, help="Visual tokens of the prompt's one picture.")] = 2048,
    num_generations: Annotated[int, typer.Option(min=2, help="Completions of the prompt.")] = 8,
    max_completion_length: Annotated[int, typer.Option(min=1, help="Tokens of every completion; none ends early.")] = 32,
    steps: Annotated[int, typer.Option(min=2, help="Steps a round; the first is not counted.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="The two sides take turns this often.")] = 2,
    trl_python: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment that has TRL; default: $MMRL_TRL_PYTHON, else this one.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the numbers to.")] = None,
) -> None:
    """A whole GRPO step on one CPU thread, generation to optimizer: mmrl's trainer against TRL's."""
    from mmrl.bench.step import command

    command(against, visual_tokens, num_generations, max_completion_length, steps, rounds, trl_python, json_file)


def main() -> None:
    """Entry point: what a user can mend is one paragraph and exit code 2; anything else is a bug and keeps its traceback."""
    sys.path.append(os.getcwd())  # so that `use: my_module:MyTerm` finds a file next to the recipe; last, so that it shadows nothing
    try:
        app()
    except MmrlError as error:
        print(f"mmrl: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
