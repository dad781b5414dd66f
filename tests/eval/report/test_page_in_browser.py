"""The page in headless Chromium: sizes, themes, print, sorting, the picker, enlarging by mouse and by keyboard."""

import base64

import pytest

from eval.report.report import write_page
from tests.browser import Browser, needs_browser

pytestmark = needs_browser
TAB, ESCAPE, RIGHT, ENTER = "\ue004", "\ue00c", "\ue014", "\ue007"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    window = Browser(tmp_path_factory.mktemp("downloads"))
    yield window
    window.close()


@pytest.fixture
def shown(browser, track, tmp_path):
    """The page of a small track, opened at 1440 pixels."""
    browser.resize(1440, 900)
    browser.open(write_page(tmp_path / "index.html", [track]))
    return browser


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_overflows_and_the_first_picture_is_on_the_first_screen(shown, width, theme):
    shown.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    shown.resize(width, 900)
    assert shown.js("return document.documentElement.scrollWidth") <= width
    top = shown.js("return document.querySelector('main img').getBoundingClientRect().top")
    assert 0 < top < 900
    red, green, blue = shown.js(
        "return getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)")  # fmt: skip
    assert (red + green + blue > 384) == (theme == "light")
    assert shown.messages() == []


def test_a_click_on_a_head_sorts_and_a_second_turns_round(shown):
    table = "document.querySelector('table.scores')"
    place = 1 + shown.js(f"return [...{table}.tHead.rows[0].cells].findIndex(t => t.dataset.sign)")  # PSNR
    values = f"return [...{table}.tBodies[0].rows].map(r => parseFloat(r.cells[{place}].dataset.v))"
    head = f"{table}.tHead.rows[0].cells[{place}].querySelector('button').click()"
    shown.js(head)
    first = shown.js(values)
    shown.js(head)
    assert len(set(first)) > 1 and first == sorted(first, reverse=first[0] > first[-1])
    assert shown.js(values) == first[::-1]


def test_the_picker_shows_one_item_at_a_time(shown):
    seen = "return [...document.querySelectorAll('.item')].map(e => e.getClientRects().length > 0)"
    before = shown.js(seen)
    shown.js("document.querySelectorAll('.picker input')[1].click()")
    assert before.count(True) == 1 and before[0] and shown.js(seen)[1] and shown.js(seen).count(True) == 1


def test_a_click_enlarges_arrows_go_on_and_escape_closes(shown):
    name, is_open = ("return document.getElementById('viewer-name').textContent",
                     "return document.getElementById('viewer').open")  # fmt: skip
    shown.click(".item .made .zoom")
    first = shown.js(name)
    assert shown.js(is_open)
    assert shown.js("return document.getElementById('viewer-picture').getBoundingClientRect().width") >= 256
    shown.keys("#viewer-close", RIGHT)
    assert shown.js(name) != first
    shown.keys("#viewer-close", ESCAPE)
    assert not shown.js(is_open)
    shown.js("document.querySelector('.item .made .zoom').focus()")  # by the keyboard alone
    shown.keys(".item .made .zoom", ENTER)
    assert shown.js(is_open)


def test_the_first_stop_of_the_keyboard_leads_to_the_results(shown):
    shown.keys("body", TAB)
    assert shown.js("return document.activeElement.getAttribute('href')") == "#main"


def test_print_has_every_part_open(shown):
    pages = base64.b64decode(shown.cdp("Page.printToPDF", printBackground=True)["data"])
    assert pages.startswith(b"%PDF") and len(pages) > 10_000
    shown.cdp("Emulation.setEmulatedMedia", media="print")
    parts = "document.querySelectorAll('.folded details > *:not(summary)')"
    seen = shown.js(f"return [...{parts}].map(e => e.getClientRects().length)")
    assert seen and all(seen)
    shown.cdp("Emulation.setEmulatedMedia", media="")
