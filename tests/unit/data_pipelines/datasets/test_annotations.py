import json

import pytest

from data_pipelines.datasets.annotations import read_events
from mmrl.errors import TaskError

CHARADES = "3MSZA 24.3 30.4##person turn a light on.\n\nAO8RW 0.0 6.9##a person is  putting a book\ton a shelf.\n"
ACTIVITYNET = {
    "v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60.81]], "sentences": ["A woman stands. ", " She dances."]},
    "v_ehGHCYKzyZ8": {"duration": 61.72, "timestamps": [[2, 10]], "sentences": ["A man runs"]},
}
BENCH = {"3MSZA": {"duration": 30.96, "spans": [[24.0, 29.5]], "queries": ["person turns on a light."]}}
QV = {
    "qid": 8737, "query": "A family plays basketball.", "duration": 126, "vid": "bP5K_660.0_810.0", "relevant_windows": [[0, 16], [40, 60]],
    "relevant_clip_ids": [0, 1], "saliency_scores": [[4, 1, 1], [4, 1, 1]],
}  # fmt: skip
TIMELENS = {
    "source": "cosmo", "video_path": "cosmo/a.mp4", "duration": 95.5,
    "events": [{"query": "A dog barks.", "span": [[3.5, 7.0]]}, {"query": "It runs", "span": [8, 12.5]}],
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "a"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def told(events):
    return [(event.video, event.number, event.query, event.spans_s, event.duration_s) for event in events]


@pytest.mark.parametrize("format", ["charades_sta", None])
def test_charades_sta(write, format):
    path = write(CHARADES)
    events = read_events(path, format)
    assert told(events) == [
        ("3MSZA", 1, "person turn a light on", ((24.3, 30.4),), None),
        ("AO8RW", 3, "a person is putting a book on a shelf", ((0.0, 6.9),), None),
    ]
    assert events[1].where == f"{path}:3"


@pytest.mark.parametrize("format", ["activitynet", None])
@pytest.mark.parametrize("indent", [None, 2])
def test_activitynet(write, format, indent):
    path = write(json.dumps(ACTIVITYNET, indent=indent))
    events = read_events(path, format)
    assert told(events) == [
        ("v_QOlSCBRmfWY", 1, "A woman stands", ((0.83, 19.86),), 82.73),
        ("v_QOlSCBRmfWY", 2, "She dances", ((17.37, 60.81),), 82.73),
        ("v_ehGHCYKzyZ8", 1, "A man runs", ((2.0, 10.0),), 61.72),
    ]
    assert events[1].where == f"{path}: 'v_QOlSCBRmfWY'[1]"


def test_a_sentence_may_hold_a_line_separator_that_json_leaves_alone(write):
    path = write(json.dumps(QV | {"query": "a\u2028b\x85"}, ensure_ascii=False) + "\r\n" + json.dumps(QV | {"qid": 1}) + "\r\n")
    assert [event.query for event in read_events(path)] == ["a b", "A family plays basketball"]


def test_timelens_bench_has_activitynets_form_with_other_names(write):
    assert told(read_events(write(BENCH))) == [("3MSZA", 1, "person turns on a light", ((24.0, 29.5),), 30.96)]


@pytest.mark.parametrize("format", ["qvhighlights", None])
def test_qvhighlights_keeps_every_window(write, format):
    path = write(json.dumps(QV) + "\n" + json.dumps(QV | {"qid": 1}) + "\n")
    events = read_events(path, format)
    assert told(events)[0] == ("bP5K_660.0_810.0", 1, "A family plays basketball", ((0.0, 16.0), (40.0, 60.0)), 126.0)
    assert events[1].where == f"{path}:2"


@pytest.mark.parametrize("format", ["timelens", None])
def test_timelens(write, format):
    path = write("\n" + json.dumps(TIMELENS) + "\n" + json.dumps(TIMELENS) + "\n")
    events = read_events(path, format)
    assert told(events)[:2] == [
        ("cosmo/a.mp4", 2000, "A dog barks", ((3.5, 7.0),), 95.5),
        ("cosmo/a.mp4", 2001, "It runs", ((8.0, 12.5),), 95.5),
    ]
    assert events[1].where == f"{path}:2: events[1]"
    assert len({(event.video, event.number) for event in events}) == 4  # a video on two lines: its events are told apart


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": is empty"),
        ("a b c\n", r":1: 'a b c' is the start of no known format"),
        ('{"a": 1}\n', r":1: an object with the keys \['a'\] is of no known format"),
        ("3MSZA 24.3 30.4##on\n3MSZA 24.3##off\n", r":2: got '3MSZA 24.3##off'; a line is VIDEO START END##SENTENCE"),
        ("3MSZA 24.3 30.4 off##on\n", ":1: got .*; a line is VIDEO START END##SENTENCE"),
        ("3MSZA 24.3 x##on\n", r":1: start and end: got \['24.3', 'x'\]; give seconds"),
        ("3MSZA 24.3 nan##on\n", r":1: the span: got \[24.3, nan\]; give \[start, end\] in seconds"),
        ("3MSZA 24.3 30.4## .\n", ":1: the sentence: got ' .'"),
        ('{"v": {"duration": 3, "timestamps": [[0, 1]], "sentences": ["a", "b"]}}', ": 'v': 1 timestamps but 2 sentences"),
        ('{"v": {"duration": 3, "timestamps": [[0, 1, 2]], "sentences": ["a"]}}', r": 'v'\[0\]: the span: got \[0, 1, 2\]"),
        ('{"v": {"duration": 0, "timestamps": [[0, 1]], "sentences": ["a"]}}', ": 'v': duration: got 0"),
        ('{"v": {"timestamps": [[0, 1]], "sentences": ["a"]}}', ": 'v': duration: got None"),
        ('{"v": {"duration": 3, "sentences": ["a"]}}', ": 'v': timestamps is missing; there are duration, sentences"),
        ('{"v": {"duration": 3, "timestamps": [], "sentences": []}}', r": 'v': timestamps: got \[\]"),
        ('{"v":\n 1', ": not JSON"),
        (json.dumps({k: v for k, v in QV.items() if k != "relevant_windows"}), ":1: relevant_windows is missing .the test split has none"),
        (json.dumps(QV) + "\n" + json.dumps(QV | {"vid": 5}), ":2: vid: got 5; give a str"),
        (json.dumps(QV) + "\n{\n", ":2: not JSON"),
        (json.dumps(QV) + "\n[]\n", r":2: got \[\]; give a JSON object"),
        (json.dumps(QV | {"query": None}), ":1: the sentence: got None"),
        (json.dumps(QV | {"relevant_windows": [[0, "1"]]}), r":1: the span: got \[0, '1'\]"),
        (json.dumps(QV | {"relevant_windows": [0, 1]}), ":1: the span: got 0"),
        (json.dumps(TIMELENS | {"events": ["x"]}), r":1: events\[0\]: got 'x'; give a JSON object"),
        (json.dumps(TIMELENS | {"events": [{"query": "q"}]}), r":1: events\[0\]: span is missing; there are query"),
        (json.dumps(TIMELENS | {"duration": True}), ":1: duration: got True"),
    ],
)
def test_a_bad_file_names_line_and_value(write, content, message):
    path = write(content)
    with pytest.raises(TaskError, match=str(path) + message):
        read_events(path)


def test_a_format_named_wrongly(write):
    with pytest.raises(TaskError, match=r":1: got .*; a line is VIDEO START END##SENTENCE"):
        read_events(write(ACTIVITYNET), "charades_sta")


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read as text"):
        read_events(tmp_path / "a")
    with pytest.raises(TaskError, match="cannot be read as text"):
        read_events(tmp_path / "none")
