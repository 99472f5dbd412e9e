"""The report as a reader has it: opened from its file in headless Chromium, at desktop and phone width."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mmrl.report import write_report
from tests.unit.mmrl.test_report import write_run
from tests.unit.mmrl.test_report_video import write_video_run

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
_MISSING = [program for program in (CHROMIUM, DRIVER) if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(
    bool(_MISSING) and os.environ.get("CI") != "true", reason=f"needs {' and '.join(_MISSING)} (Debian: chromium, chromium-driver)"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("page") / "run"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, report):
    """A freshly opened page, `page(script)` runs JavaScript in it."""
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(report.as_uri())
    return browser.execute_script


@pytest.fixture(scope="module")
def video_report(tmp_path_factory) -> Path:
    return write_report(write_video_run(tmp_path_factory.mktemp("video-page") / "run"))


@pytest.fixture
def video_page(browser, video_report):
    browser.get_log("browser")
    browser.get(video_report.as_uri())
    return browser.execute_script


def choose(page, element: str, value: str) -> None:
    """What a user's choice does: set the control and let it tell its listeners."""
    script = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event(arguments[2]));"
    page(script, element, value, "input" if element == "filter-text" else "change")


def cards(page) -> int:
    return page("return document.querySelectorAll('#groups > article').length")


def token_colours(page) -> list[str]:
    return page("return [...document.querySelectorAll('#groups .token')].slice(0, 9).map((t) => getComputedStyle(t).backgroundColor)")


def test_nothing_is_requested_and_the_console_stays_silent(browser, page, report):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    own = [request["request"]["url"] for request in requests if request["documentURL"] == report.as_uri()]  # not the browser's start page
    assert {url for url in own if not url.startswith("data:")} == {report.as_uri()}
    assert browser.get_log("browser") == []


def test_every_chart_and_card_is_there(page):
    assert page("return document.querySelectorAll('#charts > .chart').length") == 14
    assert page("return document.querySelectorAll('#more-charts > .chart').length") == 1
    assert cards(page) == 7
    assert page("return document.querySelectorAll('#groups .rollout').length") == 26
    assert page("return document.querySelectorAll('#example-cards .attempt').length") == 2
    assert page("return [...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_untrusted_text_is_shown_and_does_not_run(browser, page):
    assert page("return window.hacked") is None
    assert "<img src=x onerror='window.hacked=2'>&lt;b&gt;" in page("return document.getElementById('groups').textContent")
    assert page("return document.querySelectorAll('script').length") == 2
    # And were a piece of it ever to become markup, the page's policy would still not run it.
    browser.execute_async_script(
        'const done = arguments[0]; document.body.insertAdjacentHTML(\'beforeend\', `<img src="data:," onerror="window.hacked=3">`);'
        "setTimeout(done, 200);"
    )
    assert page("return window.hacked") is None


def test_paths_are_drawn_with_a_cross_at_the_first_illegal_step(page):
    """In the first card one of four rollouts walks into the wall between (0, 1) and (0, 2), at x = 56, y = 14 of the picture."""
    assert page("return document.querySelectorAll('#groups > article:first-child .side .path').length") == 4
    rows = "document.querySelectorAll('#groups > article:first-child .rollout')"
    assert page(f"return [...{rows}].map((row) => row.querySelectorAll('.path .cross').length)") == [0, 1, 0, 0]
    assert page(f"return {rows}[1].querySelector('.cross').getAttribute('d')").startswith("M52 10L60 18")
    assert page(f"return {rows}[0].querySelector('.legal').getAttribute('d')").startswith("M14.0 14.0L42.0 14.0L42.0 42.0L70.0 42.0")
    assert page(f"return {rows}[0].querySelector('.path').classList.contains('solved')")


@pytest.mark.parametrize(
    ("control", "value", "left"),
    [
        ("filter-step", "20", 2),
        ("filter-success", "all", 3),
        ("filter-success", "none", 1),
        ("filter-text", "SKY-7", 1),
        ("filter-text", "zebra", 0),
    ],
)
def test_filter(page, control, value, left):
    choose(page, control, value)
    assert cards(page) == left
    assert page("return document.getElementById('count').textContent") == f"{left} of 7 groups match"
    choose(page, control, "")
    assert cards(page) == 7


def test_signal_selector_changes_the_colours(page):
    by_logp = token_colours(page)
    assert len(set(by_logp)) > 3
    choose(page, "signal", "gap")
    by_gap = token_colours(page)
    assert by_gap != by_logp
    assert "≤ −" in page("return document.getElementById('legend').textContent")
    choose(page, "signal", "")
    assert set(token_colours(page)) == {"rgba(0, 0, 0, 0)"}


def test_hover_reads_a_chart_and_a_token(page):
    move = (
        "const e = document.querySelector(arguments[0]), b = e.getBoundingClientRect();"
        "e.dispatchEvent(new PointerEvent(arguments[1], {bubbles: true, clientX: b.right - b.width * arguments[2], clientY: b.top + 5}));"
        "return document.getElementById('tip').textContent"
    )
    assert "evaluation 80 % (77 % to 83 %)" in page(move, "#charts .chart svg", "pointermove", 0.03)
    assert page("return document.querySelectorAll('.cursor[visibility=visible]').length") == 15
    told = page(move, "#groups .token", "pointerover", 0.5)
    assert told.startswith('token 1 of 9 "<think>"')
    assert "entropy (nats)" in told


def test_smoothing_switch_redraws_the_curves(page):
    lines = "return document.querySelectorAll('#charts .line.raw').length"
    assert page(lines) > 0
    page("document.getElementById('smooth').click()")
    assert page(lines) == 0


CARD = "document.querySelectorAll('#groups > article')"


def test_frames_stand_above_their_seconds(video_page):
    """12 frames at 2 a second: frame n begins where the axis shows n / 2 of 6 seconds."""
    edges = (
        f"const axis = {CARD}[0].querySelector('.track').getBoundingClientRect();"
        f"return [...{CARD}[0].querySelectorAll('.frame')].map((f) => (f.getBoundingClientRect().left - axis.left) / axis.width)"
    )
    assert video_page(edges) == pytest.approx([n / 12 for n in range(12)], abs=2e-3)
    labels = video_page(f"return [...{CARD}[0].querySelectorAll('.frame span')].map((e) => e.textContent)")
    assert labels[:3] == ["0 s", "0.5 s", "1 s"]
    uneven = f"const f = {CARD}[3].querySelectorAll('.frame'); return f[3].offsetWidth / f[2].offsetWidth"
    assert video_page(uneven) == pytest.approx(4, abs=0.05)  # 4 to 8 s, after 3 to 4 s


def test_true_and_predicted_spans_are_drawn_and_invalid_answers_marked(video_page):
    bars = (
        f"return [...{CARD}[0].querySelectorAll('.predicted')].map((b) => [b.getAttribute('x'), b.getAttribute('width')].map(parseFloat))"
    )
    exact, early, outside = video_page(bars)
    assert exact == pytest.approx([100 * 2 / 6, 100 * 1.5 / 6], abs=1e-2)
    assert early == pytest.approx([100 * 1 / 6, 100 * 1.5 / 6], abs=1e-2)
    assert sum(outside) == pytest.approx(100)  # a sliver at the right edge
    assert video_page(f"return {CARD}[0].querySelector('.truth').getAttribute('x')") == "33.333%"
    told = video_page(f"return [...{CARD}[0].querySelectorAll('.says')].map((e) => e.textContent)")
    assert told == ["2–3.5 s", "tIoU 1.002–3.5 s", "tIoU 0.201–2.5 s", "no span", "tIoU 0.0020–30 s"]
    assert "invalid answer: no span" in video_page(f"return {CARD}[0].querySelectorAll('.rollout')[2].textContent")


def test_counts_and_orders_are_marked_one_by_one(video_page):
    rows = "[...document.querySelectorAll('#groups > article')[arguments[0]].querySelectorAll('.items')]"
    marks = (
        f"return {rows}.map((row) => [...row.children].map((i) => i.textContent + (i.classList.contains('wrong') ? '!' : '')).join(' '))"
    )
    assert video_page(marks, 1) == ["circle 4 square 3 triangle 5", "circle 4 square 3 triangle 5", "circle 4 square 2! triangle 5"]
    assert video_page(marks, 2) == ["3 4 1 5 6 2", "3 4 1 5 6 2", "4! 3! 1 5 6 2"]
    invalid = "return [...document.querySelectorAll('#groups .stage:not(.timed) .says.invalid')].slice(0, 3).map((e) => e.textContent)"
    assert video_page(invalid) == ["2 numbers, not 3", "cut off in its thought", "no order of 6 clips"]
    captions = video_page(f"return [...{CARD}[2].querySelectorAll('.caption')].map((e) => e.textContent)")
    assert captions[:2] == ["Clip 14 of 8 framestruly 3rd", "Clip 24 of 8 framestruly 6th"]
    assert "16 of 48 frames" in video_page(f"return {CARD}[1].querySelector('.caption').textContent")


def test_a_click_enlarges_a_frame_and_arrows_go_on(video_page):
    video_page(f"{CARD}[0].querySelectorAll('.frame')[10].click()")
    shown = "return document.querySelector('dialog[open]')?.textContent"
    assert "frame at 5 s" in video_page(shown)
    for _ in range(2):
        video_page("document.querySelector('dialog').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert "frame at 5.5 s" in video_page(shown)  # the last
    video_page("document.querySelector('dialog [aria-label=close]').click()")
    assert video_page(shown) is None


def test_pointing_at_a_frame_marks_its_moment_and_at_a_rollout_its_answer(video_page):
    point = f"const e = {CARD}[0].querySelectorAll(arguments[0])[arguments[1]];"
    video_page(point + "e.dispatchEvent(new PointerEvent('pointerenter', {pointerType: 'mouse'}))", ".frame", 6)
    lines = f"return [...{CARD}[0].querySelectorAll('.moment[visibility=visible]')].map((e) => e.getAttribute('x1'))"
    assert video_page(lines) == ["50.000%"] * 6  # truth, four answers, the seconds
    video_page(point + "e.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))", ".rollout", 1)
    bright = f"return [...{CARD}[0].querySelectorAll('.who[data-index]:not(.dim)')].map((e) => e.textContent)"
    assert video_page(bright) == ["#1"]


def test_video_page_is_silent(browser, video_page):
    assert video_page("return [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["page", "video_page"])
def test_page_fits_its_width(browser, request, which, width):
    page = request.getfixturevalue(which)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wider = (
        "const edge = document.documentElement.clientWidth + 1;"
        "return [...document.querySelectorAll('body *')]"
        ".filter((e) => !e.closest('nav') && e.getBoundingClientRect().right > edge).map((e) => e.className)"
    )
    assert page("return document.documentElement.scrollWidth") <= width
    assert page(wider) == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
