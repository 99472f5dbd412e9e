from fractions import Fraction

import pytest

from data_pipelines.tasks.clips_questions import baseline, labels, question, solution


@pytest.mark.parametrize(
    ("kind", "level", "number"),
    [
        ("counting", 1, 3 * 3),  # three shapes, one to three of them
        ("counting", 3, 3 * 5),
        ("order", 1, 2),
        ("order", 2, 6),  # 3!
        ("order", 3, 24),
        ("direction", 2, 4),
        ("direction", 3, 12),  # a way, and another
        ("speed", 3, 3),
        ("grounding", 1, 11 + 10 + 9),  # two to four of twelve frames
        ("grounding", 2, 10 + 9 + 8),  # the same, and one more frame to come to rest in
        ("first_frame", 1, 4),
        ("first_frame", 3, 12),
    ],
)
def test_labels_are_counted(kind, level, number):
    every = labels(kind, level, 12)
    assert len(every) == len(set(every)) == number


@pytest.mark.parametrize(
    ("kind", "level", "label", "fps", "expected"),
    [
        ("counting", 2, (1, 4), 2, "4"),
        ("order", 1, (1,), 2, "B"),
        ("order", 3, (2, 0, 3, 1), 2, "CADB"),
        ("direction", 1, (2,), 2, "left"),
        ("direction", 3, (2, 0), 2, "up"),
        ("speed", 3, (2,), 2, "C"),
        ("grounding", 1, (2, 5), 2, "1.0-2.5"),
        ("grounding", 1, (2, 5), 4, "0.50-1.25"),
        ("grounding", 1, (2, 5), 1, "2.0-5.0"),
        ("grounding", 1, (2, 5), 25, "0.08-0.20"),
        ("first_frame", 1, (3,), 2, "D"),
        ("first_frame", 2, (1, 2), 2, "top right"),
    ],
)
def test_solutions_are_short_texts(kind, level, label, fps, expected):
    assert solution(kind, level, label, fps) == expected


def test_questions_name_their_options():
    assert question("order", 1, ["red circle", "blue square"]) == (
        "Which shape appears first: (A) red circle, (B) blue square? Answer with one letter."
    )
    assert "circles" in question("counting", 1, ["circle"])
    assert question("direction", 3, ["red circle"]).startswith("Which way does the red circle move after it changes direction?")


@pytest.mark.parametrize(
    ("kind", "level", "expected"),
    [
        ("counting", 1, Fraction(1, 3)),
        ("counting", 2, Fraction(1, 4)),
        ("counting", 3, Fraction(1, 5)),
        ("order", 1, Fraction(1, 2)),
        ("order", 2, Fraction(1, 6)),
        ("order", 3, Fraction(1, 24)),
        ("direction", 1, Fraction(1, 4)),
        ("direction", 3, Fraction(1, 4)),
        ("speed", 1, Fraction(1, 2)),
        ("speed", 3, Fraction(1, 3)),
        ("first_frame", 1, Fraction(1, 4)),
        ("first_frame", 3, Fraction(1, 4)),
    ],
)
def test_no_constant_answer_beats_chance(kind, level, expected):
    found = baseline(kind, level, 12, 2)
    assert found.chance == pytest.approx(float(expected))
    assert found.constant == pytest.approx(float(expected))


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> Fraction:
    both = len(set(range(*a)) & set(range(*b)))
    return Fraction(both, len(set(range(*a)) | set(range(*b))))


def test_grounding_baselines_are_counted_over_all_spans():
    """Spans of 2 or 3 of 8 frames, 7 + 6 = 13 of them; frames are counted one by one here."""
    true = labels("grounding", 1, 8)
    assert len(true) == 13
    mean = {guess: sum(overlap(guess, span) for span in true) / 13 for guess in [(a, b) for b in range(9) for a in range(b)]}
    found = baseline("grounding", 1, 8, 2)
    assert found.constant == pytest.approx(float(max(mean.values())))
    start, end = (2 * float(second) for second in found.answer.split("-"))
    assert mean[int(start), int(end)] == max(mean.values())
    assert found.chance == pytest.approx(float(sum(mean[span] for span in true) / 13))
    assert baseline("grounding", 1, 12, 2).constant == pytest.approx(0.2811, abs=1e-4)
