import pytest

from data_pipelines.tasks.maze import MazeTasks
from data_pipelines.tasks.maze_words import checklist, perception, text_view

META = {
    "rows": 2,
    "cols": 3,
    "openings": [[[0, 0], [0, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 2], [1, 2]], [[1, 1], [1, 2]]],
    "start": [0, 0],
    "goal": [0, 2],
}


def test_text_view_by_hand():
    assert text_view(META) == "\n".join(
        [
            "+---+---+---+",
            "| O     | T |",
            "+   +   +   +",
            "|   |       |",
            "+---+---+---+",
        ]
    )


def test_perception_by_hand():
    assert perception((2, 3), (0, 0), (0, 2), ("right", "down", "right", "up"), (("down", "right"), ("down",))) == {
        "size": "The maze has 2 rows and 3 columns.",
        "start": "O is in row 1, column 1.",
        "goal": "T is in row 1, column 3.",
        "goal_direction": "T is to the right of O, in the same row.",
        "start_walls": "O has walls above and to the left.",
        "goal_walls": "T has walls above, to the left and to the right.",
        "start_exits": "From O one can go down and right.",
        "first_move": "The way from O to T starts right.",
        "distance": "T is 4 moves away from O.",
    }


@pytest.mark.parametrize(
    ("start", "goal", "sentence", "vertical", "horizontal"),
    [
        ((0, 0), (2, 0), "T is below O, in the same column.", "below", "same"),
        ((2, 0), (0, 0), "T is above O, in the same column.", "above", "same"),
        ((0, 2), (0, 1), "T is to the left of O, in the same row.", "same", "left"),
        ((0, 2), (1, 1), "T is below and to the left of O.", "below", "left"),
        ((2, 0), (1, 1), "T is above and to the right of O.", "above", "right"),
    ],
)
def test_directions(start, goal, sentence, vertical, horizontal):
    exits = (("up", "down", "left", "right"), ("up",))
    facts = perception((3, 3), start, goal, ("up",), exits)
    assert facts["goal_direction"] == sentence
    assert facts["distance"] == "T is 1 move away from O."
    assert facts["start_walls"] == "O has no walls around it."
    answers = [entry["answer"] for entry in checklist(start, goal, exits)]
    assert answers == [
        *(str(number + 1) for number in (*start, *goal)),
        vertical,
        horizontal,
        "0",
        "up, down, left, right",
    ]


def test_a_tasks_answers_agree_with_its_openings():
    for i in range(20):
        meta = MazeTasks("train", render=False).task(MazeTasks("train").key(i)).meta
        row, col = meta["start"]
        sides = {
            "up": [[row - 1, col], [row, col]],
            "down": [[row, col], [row + 1, col]],
            "left": [[row, col - 1], [row, col]],
            "right": [[row, col], [row, col + 1]],
        }
        opened = [side for side, pair in sides.items() if pair in meta["openings"]]
        assert [entry["answer"] for entry in meta["checklist"]][-2:] == [str(4 - len(opened)), ", ".join(opened)]
