from typing import get_args, get_type_hints

import numpy as np
from safetensors.torch import load_file

from mmrl import cli, tiny
from mmrl.recipe_rules import EMBEDDED_MODELS
from mmrl.tiny import Made
from mmrl.tiny_lessons import TOLD, CountLessons, FactLessons, MazeLessons, VideoLessons
from rewards.checklist import Checklist
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


def test_fact_lessons_ask_in_turn_and_say_what_is_true_in_part():
    lessons = FactLessons(steps=10, batch_size=30)
    shown = [(task, text) for number in range(10) for task, (text,) in lessons.step(number)]
    checklist = [Checklist().value(task, text) for task, text in shown if task.id.endswith("#perception")]
    assert len(checklist) == 150
    told = []
    for task, text in shown:
        if not task.id.endswith("#perception"):
            thought, moves = text.removeprefix("<think>").split("</think>")
            assert moves == task.solution
            facts = [task.meta["perception"][name] for name in TOLD]
            assert thought.count(".") == len(facts)
            told.append(np.mean([fact in thought for fact in facts]))
    for values in (checklist, told):  # another maze's answer is right now and then too
        assert 0.5 < np.mean(values) < 0.8
        assert {0 <= value <= 1 for value in values} == {True}


def test_count_lessons_name_each_frame_and_count_what_they_named():
    lessons = CountLessons(steps=4, batch_size=20)
    true = []
    for task, (text,) in (lesson for number in range(4) for lesson in lessons.step(number)):
        thought, answer = text.removeprefix("<think>").split("</think>")
        named = thought.split()
        assert len(named) == 12
        assert answer == ",".join(str(named.count(shape)) for shape in ("circle", "square", "triangle"))
        frames = {frame: shape for shape, own in task.meta["shown"].items() for frame in own}
        true.append(all(word == frames.get(n, "no") for n, word in enumerate(named)))
        assert KINDS["counting"](task, text, True) == 1 or not true[-1]
    assert 0.5 < np.mean(true) < 0.9


def test_a_model_goes_on_from_another(tmp_path, monkeypatch):
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    first = Made(lessons=MazeLessons(steps=1, batch_size=3))
    monkeypatch.setitem(tiny.MODELS, "tiny", first)
    weights = load_file(tiny.tiny_folder("tiny", print) / "model.safetensors")
    untaught = Made(lessons=FactLessons(steps=0), after="tiny")
    assert {name: bool((value == weights[name]).all()) for name, value in built(untaught, tmp_path / "0").items()} == dict.fromkeys(
        weights, True
    )
    taught = built(Made(lessons=FactLessons(steps=1, batch_size=2), after="tiny"), tmp_path / "1")
    assert any((value != weights[name]).any() for name, value in taught.items())
    before = untaught.digest()
    monkeypatch.setitem(tiny.MODELS, "tiny", Made(lessons=MazeLessons(steps=2, batch_size=3)))
    assert untaught.digest() != before  # what it goes on from is part of what it is


def test_recipes_and_the_command_know_every_model():
    told = get_type_hints(cli.tiny, include_extras=False)["name"]
    assert tuple(tiny.MODELS) == EMBEDDED_MODELS == get_args(told)


def built(made: Made, folder):
    return load_file(tiny.build_tiny(folder, made, print) / "model.safetensors")
