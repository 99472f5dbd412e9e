"""Puts the page together. Completions are text of a model, so nothing of the run is ever markup: the template escapes, the script
sets text only, and the page's own policy lets no other script run and nothing be loaded."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mmrl.report.charts import POINTS_PER_CURVE, build_charts
from mmrl.report.pictures import Album
from mmrl.report.rollouts import Logged, embed_examples, embed_groups
from mmrl.report.run_folder import Evaluation, Run, read_run
from mmrl.report.signals import SIGNALS
from mmrl.report.summary import heat_tables, percent, tiles

GROUP_BYTES = 6_000_000
EXAMPLE_BYTES = 1_000_000
EXAMPLES = 24
"""Budgets for the parts that grow with a run; with curves, script and recipe the file stays under 8 MB."""

_SCRIPTS = ("base.js", "curves.js", "picture.js", "film.js", "groups.js")


def write_report(run: Path) -> Path:
    """Writes `report.html` into the run folder and returns its path; an earlier report is replaced in one move. The page needs no
    network and no other file. Works on a run that is still going or was killed, and says so on the page.

    Raises MmrlError, naming file and line, for a folder that is no run and for a broken file; MediaError for a missing picture.
    """
    read = read_run(Path(run))
    album = Album(read.folder)
    logged = embed_groups(read.rollout_files, album, GROUP_BYTES)
    examples, examples_total = embed_examples(read.evaluations, album, EXAMPLE_BYTES, EXAMPLES)
    charts, more_charts = build_charts(read)
    notes = [*read.notes, *_cut_notes(read, logged, len(examples), examples_total)]
    page = {
        "charts": charts,
        "more_charts": more_charts,
        "groups": logged.groups,
        "examples": examples,
        "pictures": album.uris,
        "signals": [{"key": signal.key, "label": signal.label, "scale": signal.scale} for signal in SIGNALS if _has(logged, signal.key)],
    }
    script = "\n".join(_source(name) for name in _SCRIPTS)
    style = _source("page.css")
    html = _template().render(
        manifest=read.manifest,
        manifest_text=json.dumps(read.manifest, indent=2, ensure_ascii=False),
        recipe_text=read.recipe_text,
        run_name=str(read.manifest.get("name") or read.folder.resolve().name),
        status=_status(read),
        headline=_headline(read.evaluations),
        tiles=tiles(read),
        tables=heat_tables(read.evaluations),
        notes=notes,
        logged=logged,
        examples=examples,
        charts=charts,
        more_charts=more_charts,
        page_json=Markup(_script_safe(page)),
        script=Markup(script),
        style=Markup(style),
        policy=_policy(script, style),
    )
    target = read.folder / "report.html"
    unfinished = target.with_name(f".report.{os.getpid()}.html")
    unfinished.write_text(html, encoding="utf-8", errors="replace")  # JSON may hold half of a surrogate pair
    unfinished.replace(target)
    return target


def _headline(evaluations: tuple[Evaluation, ...]) -> dict[str, Any] | None:
    """Success before and after, as text and as percent for the bars; None without an evaluation."""
    measured = [evaluation for evaluation in evaluations if evaluation.success is not None]
    if not measured:
        return None
    ends = [measured[0], measured[-1]] if len(measured) > 1 else [measured[0]]
    words = ("before", "after") if len(ends) > 1 else ("measured",)
    rows = []
    for word, end in zip(words, ends, strict=True):
        assert end.success is not None
        low, high = end.interval or (end.success, end.success)
        span = f"{100 * low:.1f}–{100 * high:.1f} %" if end.interval else "no interval"
        bar = {"at": 100 * end.success, "low": 100 * low, "high": 100 * high}
        rows.append({"word": word, "value": percent(end.success), "span": span, "step": end.step, "tasks": end.tasks, **bar})
    change = 100 * ((ends[-1].success or 0) - (ends[0].success or 0))
    return {"rows": rows, "change": f"{change:+.1f} points".replace("-", "−") if len(ends) > 1 else ""}


def _cut_notes(run: Run, logged: Logged, examples: int, examples_total: int) -> list[str]:
    notes = []
    if _status(run) != "finished":
        notes.append(f"The run's status is “{_status(run)}”: the numbers are those it had logged when this page was written.")
    if not run.train_steps:
        notes.append("No training step is logged yet.")
    if not run.evaluations:
        notes.append("The run has no evaluation, so there is no success before and after.")
    if len(logged.groups) < logged.total:
        notes.append(
            f"{len(logged.groups)} of {logged.total} logged groups are in this page, spread over the run, to keep the file small; "
            "all of them are in rollouts/*.parquet."
        )
    if examples < examples_total:
        notes.append(f"{examples} of {examples_total} evaluation examples are in this page; all of them are in eval/*.json.")
    longest = max((len(series) for series in run.metrics.values()), default=0)
    if longest > POINTS_PER_CURVE:
        notes.append(f"The longest curve has {longest} points; curves are drawn as means over neighbouring steps.")
    return notes


def _status(run: Run) -> str:
    return str(run.manifest.get("status") or "not recorded")


def _has(logged: Logged, signal: str) -> bool:
    return any(signal in rollout["signals"] for group in logged.groups for rollout in group["rollouts"])


def _script_safe(value: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element: no <, > or & is left in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (
        text.replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _policy(script: str, style: str) -> str:
    """Content security policy: this one script and style, pictures from the page itself, nothing else."""

    def allowed(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"

    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"script-src {allowed(script)}",
            f"style-src {allowed(style)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_source("page.html.jinja"))
