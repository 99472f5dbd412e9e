"""A judge without a model, for the project's own mazes and clips: it reads what a text claims about the picture, by fixed patterns.

A fact and a text are read by the same patterns into claims, a subject and its value: "O is in row 1, column 2" claims ("o", "row") = 1 and
("o", "column") = 2. The text states the fact if it makes all of the fact's claims and contradicts none of them: a text that names every row
states nothing about the row.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mmrl.protocols import Verdict

Claim = tuple[tuple[str, str], str]
"""(subject, property), value."""

_COLOURS = "red|orange|yellow|green|blue|purple|pink|white"
_SHAPES = "circle|square|triangle"
_NAME = rf"(?P<colour>{_COLOURS}) (?P<shape>{_SHAPES})"
_GLUED = "is|lies|stands|sits|starts|located|placed|found|at|in|on|and|the|a|cell|green|red|origin|target|start|goal"
_GLUE = rf"(?:[\s,:=()\-*_`\"']|\b(?:{_GLUED})\b)*?"
"""What may stand between the words of one claim."""
_POSITION = re.compile(
    rf"\b(?P<who>[ot])\b{_GLUE}\b(?:row\W{{0,3}}(?P<row>\d+)(?:{_GLUE}\bcol(?:umn)?\W{{0,3}}(?P<column>\d+))?"
    rf"|col(?:umn)?\W{{0,3}}(?P<column_first>\d+)(?:{_GLUE}\brow\W{{0,3}}(?P<row_second>\d+))?)"
)
_WHERE = r"(?:[\s,]|\b(?:directly|straight|just|somewhere|to|the|of|and|at|in|same|row|column|as|above|below|over|under|left|right)\b)"
_RELATION = re.compile(rf"\b(?P<who>[ot])\b (?:is|lies|stands|sits) (?P<where>{_WHERE}*?)\b(?P<other>[ot])\b(?P<rest>{_WHERE}*)")
_SIDES = r"(?:[\s,]|\b(?:to|on|the|its|and|side|sides|of|it|up|down|above|below|top|bottom|left|right)\b)"
_WALLS = re.compile(rf"\b(?P<who>[ot])\b has (?:(?P<none>no walls)|(?:a )?walls?(?P<sides>{_SIDES}+))")
_EXITS = re.compile(
    rf"\bfrom (?P<who>[ot]) (?:one|you|we|i) can (?:go|move|step)(?P<sides>{_SIDES}+)|\b(?P<whose>[ot]) is open(?P<open>{_SIDES}+)"
)
_SHOWN = re.compile(rf"\b{_NAME}\b")
_PLACE = re.compile(
    rf"\b{_NAME} (?:is|starts|appears|begins)(?: first)?(?: seen)?(?: in| at| on)? ?(?:the )?"
    r"(?P<place>(?:top|upper|bottom|lower|middle|centre|center)(?:[ -](?:left|right|middle|centre|center))?)\b"
)
_SINCE = re.compile(rf"\b{_NAME} (?:(?P<first>is there in the first frame)|(?P<later>appears after the first frame))")
_DENIED = re.compile(r"\b(?:not|never|neither|nor|wrong|false|if|whether|maybe|perhaps|either|or)\b|n't\b|\?")
"""A sentence with one of these claims nothing."""
_WAYS = {"up": "up", "above": "up", "top": "up", "down": "down", "below": "down", "bottom": "down", "left": "left", "right": "right"}
_SAME_WORD = {"upper": "top", "lower": "bottom", "centre": "middle", "center": "middle"}


@dataclass(frozen=True)
class RuleJudge:
    """Reads the facts of mazes and clips by fixed patterns; needs no model and no network, and gives the same verdict everywhere.

    A fact that the patterns cannot read counts as stated where its own words stand in the text.
    """

    def __call__(self, facts: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        if not facts:
            raise ValueError("a judge needs at least one fact")
        wanted = [(claims(fact), _words(fact)) for fact in facts]
        return [self._verdict(wanted, text) for text in texts]

    def _verdict(self, wanted: Sequence[tuple[frozenset[Claim], str]], text: str) -> Verdict:
        made = claims(text)
        values: dict[tuple[str, str], set[str]] = {}
        for about, value in made:
            values.setdefault(about, set()).add(value)
        words = f" {_words(text)} "
        return Verdict(
            tuple(
                float(all(values.get(about) == {value} for about, value in fact) if fact else f" {own} " in words) for fact, own in wanted
            )
        )


def claims(text: str) -> frozenset[Claim]:
    """What a text says about a maze or a clip, sentence by sentence; a sentence that doubts, asks or denies says nothing."""
    plain = re.sub(r"<[^<>]*>", ". ", text.casefold())
    sentences = re.split(r"(?<=[.!?;])\s+|\n+", plain)
    return frozenset(claim for one in sentences if not _DENIED.search(one) for read in _READERS for claim in read(" ".join(one.split())))


def _positions(sentence: str) -> Iterator[Claim]:
    for found in _POSITION.finditer(sentence):
        row, column = found["row"] or found["row_second"], found["column"] or found["column_first"]
        if row:
            yield (found["who"], "row"), str(int(row))
        if column:
            yield (found["who"], "column"), str(int(column))


def _relations(sentence: str) -> Iterator[Claim]:
    for found in _RELATION.finditer(sentence):
        if found["who"] == found["other"]:
            continue
        where = " ".join((found["where"] + " " + found["rest"]).replace(",", " ").split())
        flipped = found["who"] == "o"
        for axis, same, near, far in (
            ("vertical", "same row", "above|over", "below|under"),
            ("horizontal", "same column", "left", "right"),
        ):
            if same in where:
                yield ("t from o", axis), "same"
            elif re.search(rf"\b(?:{near})\b", where):
                yield ("t from o", axis), "far" if flipped else "near"
            elif re.search(rf"\b(?:{far})\b", where):
                yield ("t from o", axis), "near" if flipped else "far"


def _walls(sentence: str) -> Iterator[Claim]:
    for found in _WALLS.finditer(sentence):
        yield (found["who"], "walls"), "" if found["none"] else _ways(found["sides"])
    for found in _EXITS.finditer(sentence):
        opened = _ways(found["sides"] or found["open"])
        yield (
            (found["who"] or found["whose"], "walls"),
            " ".join(way for way in ("down", "left", "right", "up") if way not in opened.split()),
        )


def _ways(words: str) -> str:
    return " ".join(sorted({_WAYS[word] for word in re.findall(r"[a-z]+", words) if word in _WAYS}))


def _clips(sentence: str) -> Iterator[Claim]:
    for found in _SHOWN.finditer(sentence):
        yield (found["colour"], "shape"), found["shape"]
    for found in _PLACE.finditer(sentence):
        words = [_SAME_WORD.get(word, word) for word in re.split(r"[ -]", found["place"])]
        place = "middle" if set(words) == {"middle"} else " ".join(words)
        yield (f"{found['colour']} {found['shape']}", "place"), place
    for found in _SINCE.finditer(sentence):
        yield (f"{found['colour']} {found['shape']}", "since"), "first" if found["first"] else "later"


_READERS: tuple[Callable[[str], Iterator[Claim]], ...] = (_positions, _relations, _walls, _clips)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
