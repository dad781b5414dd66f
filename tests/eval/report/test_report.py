"""The page: well-formed, self-contained, complete, not to be broken by what stands in rows; numbers as printed."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from eval.report import boards, pictures, plots
from eval.report.measures import Interval, best_method, find, keys, measure
from eval.report.report import write_page
from eval.tracks.track import Run
from tests.eval.conftest import METHODS, make_row, pairs

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
        if not self.open or self.open[-1] not in ("style", "script"):
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


def test_the_page_is_complete_and_needs_nothing_else(page, track):
    html, seen = page(replace(track, notices=["A notice."]))
    text = " ".join(seen.text)
    for word in (*track.methods.values(), *track.commands.values(), "this run: 10 items", "2026-01-02", "0123456789"):
        assert word in text
    assert "A notice." in text
    for item in track.items:
        assert f'id="item-text_editing-{item.id}"' in html
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "data", "action") and re.match(r"(\w+:)?//", value or ""):
                assert (tag, value) == ("a", "https://arxiv.org/abs/2403.11105")
        assert tag not in ("iframe", "object") and "src" not in attributes or attributes["src"].startswith("data:")
    assert "url(" not in html and "@import" not in html
    drawn = [attributes for tag, attributes in seen.tags if tag == "img" and "src" in attributes]
    assert len(drawn) == 30 + 10 + 3 and all(p["src"].startswith("data:image/webp") and p["alt"] for p in drawn)
    assert html.count('class="tick"') == html.count('class="cross"') == 10
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {target for target in re.findall(r'href="#([^"]+)"', html)} <= set(ids)


def test_published_and_measured_numbers_never_share_a_table(page, track):
    _, seen = page(track)
    published = [table for table in seen.tables if "137.54" in table]
    assert len(published) == 1 and "28.60" in published[0]
    (measured,) = [table for table in seen.tables if "picturebook encoder" in table]
    assert "28.60" not in measured
    claims = [table for table in seen.tables if "17.87 → 28.60" in table]
    assert claims and all("other pictures and encoders" in table for table in claims)


def test_best_values_and_verdicts(page, track):
    html, seen = page(track)
    assert html.count('class="star"') == 3  # both PSNRs and LPIPS; edit success and seconds are equal
    text = " ".join("".join(seen.text).split())
    assert re.search(r"11 claims: 4 hold, 7 not measured;", text)  # with edit success no worse
    assert "inconclusive" not in text and "holds SPDInv keeps the background" in text


def test_reference_rows_stand_apart_and_win_nothing(page, track):
    """The same rows, of which the better method is there for reference only."""
    html, _ = page(replace(track, references=("spd+p2p",)))
    (part,) = re.findall(r'<tbody class="reference">.*?</tbody>', html, re.DOTALL)
    assert "SPDInv + P2P" in part and "DDIM + P2P" not in part and 'class="star"' not in html


def test_no_other_method_stands_in_for_the_papers_own(page, track):
    run = track.runs[0]
    assert 'own"' in page(track)[0] and boards.papers_own(track, run) == "spd+p2p"
    for stranger in ("", "none that ran"):
        html, seen = page(replace(track, own=stranger))
        assert boards.papers_own(replace(track, own=stranger), run) is None and ' own"' not in html
        assert boards.breakdown(replace(track, own=stranger), run)["methods"] == list(track.methods.values())


def test_rows_of_different_items_have_no_best_value(page, track):
    run = track.runs[0]
    fewer = [row for row in run.rows if (row["method"], row["item"]) != ("spd+p2p", "item0")]
    html, seen = page(replace(track, runs=[Run("this run", fewer, run.config)]))
    assert 'class="star"' not in html and "different numbers of items" in "".join(seen.text)
    assert re.search(r'<td class="n" data-v="9">9</td>', html) and re.search(r'<td class="n" data-v="10">10</td>', html)


@pytest.mark.parametrize("value", [math.nan, None, math.inf])
def test_odd_values(page, track, value):
    rows = [{**row, "metrics": {**row["metrics"], "psnr/pie_official": value}} for row in track.runs[0].rows]
    html, _ = page(replace(track, runs=[Run("this run", rows, track.runs[0].config)]))
    assert not re.search(r"[>\" ](nan|inf)\b", re.sub(r' data-v="inf"', "", html), re.IGNORECASE)
    assert html.count("–</span>") + html.count("∞") >= 2


def test_missing_parts(page, track):
    rows = [row for row in track.runs[0].rows if row["method"] == "ddim+p2p"]
    del rows[0]["metrics"]["psnr/pie_official"]
    track.items[0].pictures[0].path.unlink()
    alone = {"ddim+p2p": "DDIM + P2P"}
    run = Run("this run", rows, {})
    html, _ = page(replace(track, runs=[run], methods=alone, published=None, papers={}))
    assert "no picture" in html and "Published:" not in html and "This run has one item" not in html
    html, _ = page(replace(track, runs=[Run("this run", [row for row in rows if row["item"] == "item1"], {})]))
    assert "This run has one item" in html
    page(replace(track, runs=[Run("this run", [], {})], items=[]))
    page()


def test_hostile_text_stays_text(page, track):
    evil = "\"><script>alert(1)</script><img src=x onerror=y> {{ 7 * 7 }} & 'it'"
    item = replace(track.items[0], source_prompt=evil, target_prompt=evil + " b", kind=evil)
    rows = [row | {"item": evil} for row in track.runs[0].rows]
    html, seen = page(replace(track, items=[item], title=evil, about=evil, commands={"ddim+p2p": evil},
                              runs=[Run(evil, rows, {"limit": evil})], notices=[evil]))  # fmt: skip
    assert html.count("<script") == 1 and "{{ 7 * 7 }}" in html
    assert "onerror" not in [name for _, attributes in seen.tags for name in attributes]
    assert all(x.get("src", "data:").startswith("data:") for _, x in seen.tags)


def test_a_link_to_an_item_is_one_whatever_its_name(page, track):
    _, seen = page(replace(track, items=[replace(item, id=f"50% of #{item.id}") for item in track.items]))
    links = [link for tag, x in seen.tags if tag == "a" and (link := x.get("href", "")).startswith("#item-")]
    ids = {x["id"] for tag, x in seen.tags if tag == "article" and x.get("id", "").startswith("item-")}
    assert links and {unquote(link[1:]) for link in links} <= ids


def test_a_run_with_a_new_method_comes_first_and_the_longer_one_judges(page, track):
    """Beside the committed rows: the newcomer is in the first table, the plots and the strip."""
    new = [row | {"method": "new+p2p"} for row in track.runs[0].rows if row["method"] == "ddim+p2p"]
    few = [row for row in [*track.runs[0].rows, *new] if row["item"] in ("item0", "item1")]
    runs = [Run("this run", few, track.runs[0].config), Run("committed run", track.runs[0].rows, {})]
    methods = {"ddim+p2p": "DDIM + P2P", "third+p2p": "Third", "new+p2p": "New + P2P", "spd+p2p": "SPDInv + P2P"}
    drawn = [replace(track.items[0].pictures[1], method=name) for name in methods]
    items = [replace(item, pictures=[item.pictures[0], *drawn]) for item in track.items]
    asked = replace(track, methods=methods, runs=runs, items=items, asked=("ddim+p2p", "new+p2p"))
    html, seen = page(asked)
    text = " ".join("".join(seen.text).split())
    assert "11 claims: 4 hold, 7 not measured (committed run, 10 items); this run, 2 items." in text
    assert text.index("this run: 2 items") < text.index("committed run: 10 items")
    assert "New + P2P" in seen.tables[0] and html.count("New + P2P: ") > 2  # pictures, and lines of forests
    strip = html[html.index('class="strip-row"') :].partition("</div>")[0]
    assert re.findall("<figcaption>(.*?)</figcaption>", strip)[1:] == ["DDIM + P2P", "New + P2P", "SPDInv + P2P"]


def test_pictures_are_whole_while_they_fit_and_reduced_together_when_not(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.effect_noise((512, 512), 90).save(path)
    found = pictures.encode_all([*paths, tmp_path / "missing.png"], 10_000_000)
    assert [size for _, *size in found.values()] == [[512, 512]] * 3
    small = pictures.encode_all(paths, sum(len(uri) for uri, *_ in found.values()) // 3)
    assert {tuple(size) for _, *size in small.values()} == {(256, 256)}


def test_a_front_shows_every_point_with_its_intervals():
    points = [plots.Point("<a>", Interval(20, 18, 22, 9), Interval(1, 0.5, 1.5, 9), "f0"),
              plots.Point("b", Interval(30, math.nan, math.nan, 1), Interval(2, 1, 3, 9), "f1 own")]  # fmt: skip
    drawn = plots.front(points, ("x", "y"), {"a knob": points})
    assert drawn.count("<circle") == 2 and drawn.count('class="whisker') == 3 and drawn.count("<polyline") == 1
    assert "&lt;a&gt;" in drawn and "nan" not in drawn
    axis = plots.axis([18, 30], 0, 100)
    assert axis.low <= 18 and axis.high >= 30 and axis.at(axis.high) == 100 and axis.ticks()[-1] == axis.high


def test_every_committed_score_has_a_name_for_readers():
    from common.runs import read_rows
    from eval.freshness import RESULTS

    for path in RESULTS.glob("*.jsonl"):
        unnamed = [key for key in keys(read_rows(path)) if not measure(key).definition]
        assert not unnamed, f"{path.name}: eval/report/measures.toml does not define {unnamed}"


@pytest.mark.parametrize("key, value, signed, text", [
    ("psnr/pie_official", 28.649, False, "28.6"),
    ("lpips/pie_official (picturebook)", 0.03601, False, "36.0"),
    ("lpips/pie_corrected (picturebook)", -0.03601, True, "−36.0"),
    ("edit_success (picturebook)", 0.625, False, "62"),
    ("psnr_truth", -0.01, True, "+0.0"),
    ("psnr_truth", math.nan, False, "–"),
    ("psnr_truth", None, False, "–"),
    ("psnr_truth", math.inf, False, "∞"),
    ("inversion_forward", 1250.0, False, "1\u202f250"),
    ("never_heard_of", 0.12345, False, "0.123"),
])  # fmt: skip
def test_text(key, value, signed, text):
    assert measure(key).text(value, signed) == text


def test_a_measure_knows_direction_encoder_and_protocol():
    column = measure("lpips/pie_official (picturebook)")
    assert (column.sign, column.encoder, column.protocol, column.factor) == (-1, "picturebook", "pie_official", 1e3)
    assert measure("lpips/pie_official").encoder == "squeeze"  # the prescribed one
    assert measure("edit_success (picturebook)").gap_unit == "points"
    assert measure("clip_source/pie_official").sign == measure("never_heard_of").sign == 0


def test_find_ignores_the_encoder_but_not_the_protocol():
    rows = [make_row("a", "0", {"psnr/pie_corrected": 1, "lpips/pie_official (picturebook)": 2})]
    assert find(rows, "lpips/pie_official") == "lpips/pie_official (picturebook)"
    assert find(rows, "psnr/pie_official") is None and find(rows, "seconds") == "seconds"
    assert keys(rows)[-3:] == ["inversion_seconds", "seconds", "peak_memory_mb"]


def test_a_best_value_needs_an_interval_without_zero():
    rng = np.random.default_rng(0)
    base = rng.normal(25, 3, 30)
    better, same = list(base + 1 + rng.normal(0, 0.5, 30)), list(base + rng.normal(0, 0.5, 30))
    assert best_method(pairs("psnr", base, better), "psnr", list(METHODS)) == "spd+p2p"
    assert best_method(pairs("mse", base, better), "mse", list(METHODS)) == "ddim+p2p"  # less is better
    assert best_method(pairs("psnr", base, same), "psnr", list(METHODS)) is None
    assert best_method(pairs("never_heard_of", base, better), "never_heard_of", list(METHODS)) is None
    assert best_method(pairs("psnr", base, better), "psnr", ["spd+p2p"]) is None
    assert best_method(pairs("psnr", base[:4], better[:4]), "psnr", list(METHODS), least=8) is None
