import numpy as np

from mmrl.tiny_lessons import VideoLessons
from rewards.videossr import KINDS


def test_video_lessons_show_some_true_answers_and_the_form_in_all():
    lessons = VideoLessons(steps=10, batch_size=30)
    seen: dict[str, list[bool]] = {}
    for number in range(10):
        for task, (answer,) in lessons.step(number):
            credit = KINDS[task.meta["kind"]](task, answer, False)
            assert 0 <= credit <= 1
            assert len(answer) >= len(task.solution) - 2
            seen.setdefault(task.meta["variant"], []).append(answer == task.solution)
    assert {kind: len(true) for kind, true in seen.items()} == {"grounding-invert": 50, "counting-single": 100, "jigsaw-3": 150}
    for kind, _, share in lessons.kinds:  # another clip's answer is right now and then too
        assert share - 0.15 < np.mean(seen[kind]) < share + (1 - share) / 6 + 0.15


def test_lessons_are_the_same_every_time_and_none_comes_twice():
    first, again = ([(task.id, *shown) for number in range(4) for task, shown in VideoLessons(batch_size=6).step(number)] for _ in range(2))
    assert first == again
    assert len({task for task, _ in first}) == 24
