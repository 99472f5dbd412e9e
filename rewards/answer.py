"""The answer in a completion's text. Nothing is guessed: every function gives None when what it looks for is not there."""

import re

MOVES = ("up", "down", "left", "right")
"""The four moves of a maze, written as the action tokens <|up|> <|down|> <|left|> <|right|>; up = row - 1."""

_TOKEN = re.compile(r"<\|(up|down|left|right)\|>")
_LEADING_TOKENS = re.compile(r"(?:\s*<\|(?:up|down|left|right)\|>)*")
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_BRACE = re.compile(r"(\\{1,2}boxed\s*\{)|\\.|[{}]", re.DOTALL)


def after_think(text: str) -> str | None:
    """What follows the last `</think>`, stripped of outer white space; may be empty.

    A text without think tags is all answer. A `<think>` that is not closed means that the completion ended inside its thought: None.
    """
    tail = text.rpartition("</think>")[2]
    return None if "<think>" in tail else tail.strip()


def answer_tag(text: str) -> str | None:
    """Content of the last complete `<answer>…</answer>` after the thought, stripped; an inner pair wins over an outer one."""
    tail = after_think(text)
    found = _ANSWER.findall(tail) if tail is not None else []
    return found[-1].strip() if found else None


def boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{…}` after the thought, stripped; inner braces must balance, `\{` and `\}` do not count."""
    tail = after_think(text)
    if tail is None:
        return None
    opened: list[re.Match[str]] = []
    box = content = None
    for brace in _BRACE.finditer(tail):
        if brace[0].endswith("{") and brace[0] != "\\{":
            opened.append(brace)
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if start[1] and (box is None or start.start() > box.start()):
                box, content = start, tail[start.end() : brace.start()].strip()
    return content


def leading_moves(text: str) -> list[str]:
    """The action tokens that `text` starts with, white space between them allowed, up to the first other character."""
    return _TOKEN.findall(_LEADING_TOKENS.match(text)[0])  # type: ignore[index]  # the pattern matches the empty string


def parse_moves(text: str) -> list[str] | None:
    """The moves when `text` is action tokens and white space only, at least one token; else None.

    >>> parse_moves("<|up|> <|left|>")
    ['up', 'left']
    """
    moves = leading_moves(text)
    return moves if moves and not _TOKEN.sub("", text).strip() else None
