import numpy as np
import pytest

from data_pipelines.datasets.stored_video import BadEntry, check_entry, edited, media_of, moved, paste_edit, perturb_edit, swap_edit
from data_pipelines.perturb.ops import VIDEOSSR_KINDS, ZoomOut
from data_pipelines.perturb.shapes import PastedShape, pasted
from mmrl.seeding import stream
from mmrl.types import Media

ENTRY = {"file": "a.mp4", "indices": [3, 1, 2], "size": [8, 8], "fps": 4.0}
CIRCLE = PastedShape(1, "circle", 4.0, 4.0, 4.0, 0, (9, 8, 7))


def noise(*key, frames=3):
    return stream(*key).integers(0, 256, (frames, 8, 8, 3), np.uint8)


def read(file, indices, size):
    """Frame i of a file is what its name and number draw."""
    assert size == (8, 8)
    return Media(np.stack([noise(file, index, frames=1)[0] for index in indices]), np.array(indices) / 25)


def test_frames_numbers_and_clock():
    media = media_of(ENTRY, read)
    np.testing.assert_array_equal(media.frames, read("a.mp4", [3, 1, 2], (8, 8)).frames)
    assert media.timestamps_s.tolist() == [0, 0.25, 0.5]
    assert media_of({**ENTRY, "fps": None}, read).timestamps_s.tolist() == [3 / 25, 1 / 25, 2 / 25]


@pytest.mark.parametrize("name", sorted(VIDEOSSR_KINDS))
def test_every_change_is_made_again_from_json(name):
    op = VIDEOSSR_KINDS[name]
    media = Media(noise("long", frames=12), np.arange(12.0))
    edit = perturb_edit(op, 4, 6, "key")
    check_entry({"file": "a", "indices": list(range(12)), "edits": [edit]}, "videos[0]")
    after = edited(media, [edit], read)
    inner = op(Media(media.frames[4:10], media.timestamps_s[4:10]), stream("edit", "key"))
    np.testing.assert_array_equal(after.frames[4:10], inner.frames)
    np.testing.assert_array_equal(after.frames[[0, 1, 2, 3, 10, 11]], media.frames[[0, 1, 2, 3, 10, 11]])


def test_edits_are_done_in_order():
    flip = perturb_edit(VIDEOSSR_KINDS["mirror"], 0, 3, "")
    media = Media(noise("order"))
    shape = PastedShape(1, "square", 2.0, 4.0, 2.0, 0, (9, 8, 7))
    np.testing.assert_array_equal(edited(media, [flip, paste_edit([shape])], read).frames, pasted(media.frames[:, :, ::-1], [shape]))
    np.testing.assert_array_equal(edited(media, [paste_edit([shape]), flip], read).frames, pasted(media.frames, [shape])[:, :, ::-1])


def test_a_swap_reads_its_other_clip_at_the_same_size():
    entry = {**ENTRY, "edits": [swap_edit("b.mp4", [7, 9], 1, 2, "key")]}
    assert check_entry(entry, "videos[0]") == [("videos[0].file", "a.mp4"), ("videos[0].edits[0].fields.other.file", "b.mp4")]
    np.testing.assert_array_equal(media_of(entry, read).frames[1:], read("b.mp4", [7, 9], (8, 8)).frames)
    away = moved(entry, lambda file: f"../{file}")
    assert [path for _, path in check_entry(away, "v")] == ["../a.mp4", "../b.mp4"]
    assert away["edits"][0]["start"] == 1
    assert moved(ENTRY, str.upper) == {**ENTRY, "file": "A.MP4"}


GOOD = perturb_edit(ZoomOut(), 0, 3, "key")


@pytest.mark.parametrize(
    ("change", "key", "remedy"),
    [
        ({"file": 5}, "v.file", "give a path"),
        ({"rate": 5}, "v.rate", "a video file has file, indices and size, fps, edits"),
        ({"indices": [True]}, "v.indices", "give the numbers of its frames"),
        ({"size": [8, 0]}, "v.size", "height, width"),
        ({"fps": 0}, "v.fps", "above 0"),
        ({"edits": {}}, "v.edits", "give a list"),
        ({"edits": [{}]}, "v.edits[0]", 'give {"perturb": name'),
        ({"edits": [{**GOOD, "perturb": "Explode"}]}, "v.edits[0].perturb", "there are Blur, "),
        ({"edits": [{**GOOD, "perturb": "__all__"}]}, "v.edits[0].perturb", "there are Blur, "),
        ({"edits": [{**GOOD, "length": 4}]}, "v.edits[0]", "inside the 3 frames"),
        ({"edits": [{**GOOD, "length": 0}]}, "v.edits[0]", "inside the 3 frames"),
        ({"edits": [{**GOOD, "key": 5}]}, "v.edits[0]", 'give {"perturb": name'),
        ({"edits": [{**GOOD, "fields": {"high": 0.5}}]}, "v.edits[0].fields", "ZoomOut refuses them: "),
        ({"edits": [{**GOOD, "fields": {"depth": 1}}]}, "v.edits[0].fields", "ZoomOut refuses them: "),
        ({"edits": [{**GOOD, "seed": 1}]}, "v.edits[0].seed", 'give {"perturb": name'),
        ({"edits": [{**GOOD, "perturb": "Swap"}]}, "v.edits[0].fields.high", 'give {"other"'),
        ({"edits": [{**GOOD, "perturb": "Swap", "fields": {}}]}, "v.edits[0].fields.other", 'give {"file"'),
        ({"edits": [{"paste": 5}]}, "v.edits[0].paste[0]", 'give {"frame"'),
        ({"edits": [{"paste": [{"shape": "circle"}]}]}, "v.edits[0].paste[0]", 'give {"frame"'),
        ({"edits": [{"paste": [paste_edit([CIRCLE])["paste"][0] | {"frame": 3}]}]}, "v.edits[0].paste[0].frame", "give 0 to 2"),
        ({"edits": [{"paste": [paste_edit([CIRCLE])["paste"][0] | {"colour": [1, 2, 256]}]}]}, "v.edits[0].paste[0]", 'give {"frame"'),
        ({"edits": [{"paste": [paste_edit([CIRCLE])["paste"][0] | {"shape": "star"}]}]}, "v.edits[0].paste[0]", "one of circle"),
    ],
)
def test_a_bad_entry_is_named_by_key_value_and_remedy(change, key, remedy):
    check_entry({**ENTRY, "edits": [GOOD, paste_edit([CIRCLE])]}, "v")
    with pytest.raises(BadEntry) as caught:
        check_entry({**ENTRY, **change}, "v")
    assert caught.value.args[0] == key
    assert remedy in caught.value.args[2]
