"""The page: well-formed, self-contained, complete, and not to be broken by what stands in rows and prompts."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from eval.report.measures import Interval
from eval.report.report import as_printed, plots, write_page
from eval.tracks.track import Run
from spdinv.reproduction import claims

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags, attributes and text; fails on tags that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.tables = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "table" in self.open:
            self.tables[-1] += data


@pytest.fixture
def page(tmp_path):
    def page(*tracks):
        path = write_page(tmp_path / "out" / "index.html", tracks)
        assert [file.name for file in path.parent.iterdir()] == ["index.html"]
        checker = Checker()
        checker.feed(html := path.read_text(encoding="utf-8"))
        checker.close()
        assert checker.open == []
        return html, checker

    return page


def changed(track, **metrics):
    rows = [{**row, "metrics": {**row["metrics"], **metrics}} for row in track.runs[0].rows]
    return replace(track, runs=[Run("this run", rows, track.runs[0].config)])


def test_the_page_is_complete_and_needs_nothing_else(page, track):
    html, seen = page(track)
    text = " ".join(seen.text)
    for word in (*track.methods.values(), *track.commands.values(), "this run: 10 items", "2026-01-02", "0123456789"):
        assert word in text
    for item in track.items:
        assert f'id="item-text_editing-{item.id}"' in html
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data", "action") and re.match(r"(\w+:)?//", value or ""):
                assert (tag, value) == ("a", "https://arxiv.org/abs/2403.11105")
        assert tag not in ("script", "link", "iframe", "object")
    assert "url(" not in html and "@import" not in html
    pictures = [attributes for tag, attributes in seen.tags if tag == "img"]
    assert len(pictures) == 30 and all(p["src"].startswith("data:image/png;base64,") and p["alt"] for p in pictures)
    assert html.count('class="tick"') == html.count('class="cross"') == 10
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_published_and_measured_numbers_never_share_a_table(page, track):
    _, seen = page(track)
    claims, measured, *_ = (table for table in seen.tables if "Claim" in table or "picturebook encoder" in table)
    published = [table for table in seen.tables if "137.54" in table]
    assert len(published) == 1 and "28.60" in published[0]
    assert "28.60" not in measured and "this run" in measured
    assert "17.87 → 28.60" in claims and "other pictures and encoders" in claims


def test_best_values_and_verdicts(page, track):
    html, seen = page(track)
    assert html.count('class="best"') == 3  # both PSNRs and LPIPS; edit success and seconds are equal
    assert "4 hold" not in html and re.search(r'class="holds"><b>4</b> hold', html)  # with edit success no worse
    assert re.search(r'class="unsure"><b>4</b> cannot be said', html)
    assert "not measured" in "".join(seen.text)


@pytest.mark.parametrize("value", [math.nan, None, math.inf])
def test_odd_values(page, track, value):
    html, _ = page(changed(track, **{"psnr/pie_official": value}))
    assert not re.search(r"[>\" ](nan|inf)\b", html, re.IGNORECASE)
    assert html.count("–</span>") + html.count("∞") >= 2


def test_missing_parts(page, track):
    rows = [row for row in track.runs[0].rows if row["method"] == "ddim+p2p"]
    del rows[0]["metrics"]["psnr/pie_official"]
    track.items[0].pictures[0].path.unlink()
    html, _ = page(replace(track, runs=[Run("this run", rows, {})], published=None, papers={}))
    assert "no picture" in html and "Published:" not in html
    page(replace(track, runs=[Run("this run", [], {})], items=[]))
    page()


def test_hostile_text_stays_text(page, track):
    evil = "\"><script>alert(1)</script><img src=x onerror=y> {{ 7 * 7 }} & 'it'"
    item = replace(track.items[0], source_prompt=evil, target_prompt=evil + " b", kind=evil)
    rows = [row | {"item": evil} for row in track.runs[0].rows]
    html, seen = page(replace(track, items=[item], title=evil, about=evil, commands={"ddim+p2p": evil},
                              runs=[Run(evil, rows, {"limit": evil})]))  # fmt: skip
    assert "<script" not in html and "{{ 7 * 7 }}" in html and "onerror" not in [a for _, x in seen.tags for a in x]
    assert all(x.get("src", "data:").startswith("data:") for _, x in seen.tags)


def test_an_earlier_run_is_shown_beside_and_labelled(page, track):
    before = Run("earlier run", track.runs[0].rows * 1, track.runs[0].config | {"date": "2025-05-05"})
    _, seen = page(replace(track, runs=[*track.runs, before]))
    text = "".join(seen.text)
    assert "earlier run: 10 items, 2025-05-05, revision 0123456789" in text and "Measured, earlier run" in text


def test_large_pictures_are_reduced(page, track):
    from PIL import Image

    path = track.items[0].pictures[0].path
    Image.effect_noise((900, 900), 90).save(path)
    html, _ = page(track)
    assert max(map(len, re.findall(r'src="([^"]*)"', html))) < 256 * 256 * 3 * 4 / 3


def test_published_values_keep_their_zeros():
    assert as_printed([28.6, 17.87]) == ["28.60", "17.87"] and as_printed([5.0, 25.0]) == ["5.0", "25.0"]


def test_plots():
    worse = plots.interval_strip(Interval(2, 1, 3, 9), sign=-1, title="<b>")
    assert 'class="strip bad"' in worse and "&lt;b&gt;" in worse and 'cx="-60.0"' in worse
    assert 'class="strip unsure"' in plots.interval_strip(Interval(0, 0, 0, 9), 1, "equal")
    bar = plots.stacked_bar((1, 3), 8, "t")
    assert 'width="25.0"' in bar and 'x="25.0"' in bar and 'width="75.0"' in bar
    drawn = plots.scatter([(20, 25, "a"), (30, 22, "b")], "t")
    assert drawn.count("<circle") == 2 and drawn.count('class="above"') == 1
    assert plots.scatter([(20, 20, "a")], "t").count("<circle") == 1


def test_every_competitor_is_judged_against_the_papers_own(page, track):
    """The third method loses its 2 dB to the own one, the first its 5 dB; a lone pair is left to the claims."""
    rows = track.runs[0].rows
    weaker = [
        {**row, "method": "aidi+p2p", "metrics": {"psnr/pie_official": row["metrics"]["psnr/pie_official"] - 2}}
        for row in rows
        if row["method"] == "spd+p2p"
    ]
    methods = {"ddim+p2p": "DDIM + P2P", "aidi+p2p": "AIDI + P2P", "spd+p2p": "SPDInv + P2P"}
    three = replace(track, methods=methods, runs=[Run("this run", rows + weaker, track.runs[0].config)])
    _, checker = page(replace(three, judge=claims.judge))
    (table,) = [table for table in checker.tables if "Own − competitor" in table]
    line = table[table.index("SPDInv + P2P − AIDI + P2P") :]
    assert "+2.0" in line and "holds" in line
    assert table.index("SPDInv + P2P − DDIM + P2P") < table.index("SPDInv + P2P − AIDI + P2P")
    for shown in (three, replace(track, judge=claims.judge)):
        assert not any("Own − competitor" in table for table in page(shown)[1].tables)
