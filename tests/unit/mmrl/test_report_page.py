"""The report as a reader has it: opened from its file in headless Chromium, at desktop and phone width."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mmrl.report import write_report
from tests.unit.mmrl.test_report import write_run

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


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_width(browser, page, width):
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
