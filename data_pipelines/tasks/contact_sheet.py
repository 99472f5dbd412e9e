"""A data set at a glance: many tasks on one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from data_pipelines.tasks.maze_render import draw_path, geometry, moves_of, render
from mmrl.types import Media, Task

WIDTH = 300
"""Pixels of a card's inside."""
PAD = 14
PICTURE = 280
"""Tallest picture."""
PER_ROW = 4
"""Frames of a video in a row."""
ROWS = 3
"""Most rows for all videos of a task; each has at least one."""
PAPER, CARD, EDGE, INK, FAINT, ACCENT = (241, 244, 248), (255, 255, 255), (215, 221, 229), (23, 30, 42), (107, 116, 130), (29, 78, 216)
LINES = 6
"""Most lines of a text."""


def contact_sheet(tasks: Sequence[Task], columns: int = 4) -> Image.Image:
    """Cards of id, picture, question and solution, `columns` in a row. The solution of a maze is drawn into its picture.

    Raises ValueError if there is no task or no column.
    """
    if not tasks or columns < 1:
        raise ValueError(f"need at least one task and one column; got {len(tasks)} and {columns}")
    cards = [card(task) for task in tasks]
    rows = [cards[i : i + columns] for i in range(0, len(cards), columns)]
    heights = [max(one.height for one in row) for row in rows]
    step = WIDTH + 3 * PAD
    sheet = Image.new("RGB", (min(columns, len(cards)) * step + PAD, sum(heights) + PAD * (len(rows) + 1)), PAPER)
    pen, top = ImageDraw.Draw(sheet), PAD
    for row, height in zip(rows, heights, strict=True):
        for i, one in enumerate(row):
            left = PAD + i * step
            pen.rounded_rectangle([left, top, left + WIDTH + 2 * PAD - 1, top + height - 1], radius=8, fill=CARD, outline=EDGE)
            sheet.paste(one.crop((1, 8, one.width - 1, one.height - 8)), (left + 1, top + 8))
        top += height + PAD
    return sheet


def card(task: Task) -> Image.Image:
    picture = shown(task)
    texts = [(task.id, 11, FAINT), (question(task), 13, INK), (task.solution, 13, ACCENT)]
    wrapped = [(wrap(text, size), size, colour) for text, size, colour in texts]
    line_heights = [size + 5 for _, size, _ in wrapped]
    text_height = sum(len(lines) * high + 6 for (lines, _, _), high in zip(wrapped, line_heights, strict=True))
    image = Image.new("RGB", (WIDTH + 2 * PAD, 2 * PAD + text_height + (picture.height + 8 if picture else 0)), CARD)
    pen, top = ImageDraw.Draw(image), PAD
    for (lines, size, colour), high in zip(wrapped, line_heights, strict=True):
        for line in lines:
            pen.text((PAD, top), line, fill=colour, font=ImageFont.load_default(size))
            top += high
        top += 6
        if picture and colour == FAINT:
            image.paste(picture, (PAD + (WIDTH - picture.width) // 2, top))
            top += picture.height + 8
    return image


def shown(task: Task) -> Image.Image | None:
    """The task's pictures side by side and its videos below, or the maze with its solution; None for a task of text alone."""
    if {"rows", "cols", "openings", "start", "goal"} <= task.meta.keys():
        return maze_picture(task)
    stills = [Image.fromarray(media.frames[0]) for media in task.media if not media.is_video]
    videos = [media for media in task.media if media.is_video]
    rows = [in_a_row(stills, len(stills))] if stills else []
    for video in videos:
        rows += film(video, max(1, ROWS // len(videos)))
    if not rows:
        return None
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows) + 4 * (len(rows) - 1)), CARD)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 4
    return sheet


def film(video: Media, rows: int) -> list[Image.Image]:
    """Rows of evenly spread frames, the first and the last among them, with their seconds below."""
    assert video.timestamps_s is not None
    count, most = len(video.frames), PER_ROW * rows
    kept = list(range(count)) if count <= most else [i * (count - 1) // (most - 1) for i in range(most)]
    return [
        in_a_row([Image.fromarray(video.frames[i]) for i in some], PER_ROW, [f"{video.timestamps_s[i]:.4g} s" for i in some])
        for some in (kept[at : at + PER_ROW] for at in range(0, len(kept), PER_ROW))
    ]


def in_a_row(pictures: Sequence[Image.Image], places: int, below: Sequence[str] = ()) -> Image.Image:
    """Pictures side by side, each in one of `places` equal shares of a card's width, with words below."""
    width = max(1, (WIDTH - 4 * (places - 1)) // places)
    small = [scaled(picture, width) for picture in pictures]
    height = max(one.height for one in small)
    row = Image.new("RGB", (sum(one.width for one in small) + 4 * (len(small) - 1), height + (14 if below else 0)), CARD)
    pen, left = ImageDraw.Draw(row), 0
    for i, one in enumerate(small):
        row.paste(one, (left, 0))
        if below:
            pen.text((left + one.width // 2, height + 1), below[i], fill=FAINT, font=ImageFont.load_default(10), anchor="ma")
        left += one.width + 4
    return row


def maze_picture(task: Task) -> Image.Image:
    """The task's own picture if it is a rendered maze, else one drawn from its meta."""
    rows, cols = task.meta["rows"], task.meta["cols"]
    sizes = [(g.height, g.width) for g in (geometry("cells", rows, cols), geometry("ariadne", rows, cols))]
    own = task.media[0].frames[0] if task.media and task.media[0].frames.shape[1:3] in sizes else render(task.meta)
    scale = max(1, min(WIDTH // own.shape[1], PICTURE // own.shape[0]))
    return scaled(draw_path(Image.fromarray(own), task.meta, moves_of(task.solution), scale=scale), WIDTH)


def scaled(image: Image.Image, width: int) -> Image.Image:
    """At most `width` wide and PICTURE tall; never enlarged."""
    image = image.copy()
    image.thumbnail((width, PICTURE), Image.Resampling.LANCZOS)
    return image


def question(task: Task) -> str:
    """The text of the last user message."""
    for message in reversed(task.messages):
        if message["role"] == "user":
            content = message["content"]
            return content if isinstance(content, str) else " ".join(part["text"] for part in content if part["type"] == "text")
    return ""


def wrap(text: str, size: int) -> list[str]:
    """Lines that fit a card, broken at spaces or, in longer words, anywhere; at most LINES, then an ellipsis."""
    font = ImageFont.load_default(size)
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= WIDTH:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > WIDTH:
                lines.append("")
            lines[-1] += letter
        if len(lines) > LINES:
            break
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1][:-1] + "…"]
