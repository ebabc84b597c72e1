"""The pages in a browser, at both widths, light and dark."""

import shutil

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from osr_lightning.evaluation.caption import Caption
from osr_lightning.evaluation.compare import compare
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report.write import write_report

WIDTHS = (1280, 390)
LOOKS = [(width, scheme) for width in WIDTHS for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """A finished run with a plot and a picture beside its numbers."""
    folder = tmp_path_factory.mktemp("shown") / "version_0"
    shutil.copytree(small_run, folder)
    (folder / "figures").mkdir()
    for name, plot in (("curve", True), ("photos", False)):
        info = PngInfo()
        for key, value in Caption(1, name, plot=plot).metadata().items():
            info.add_text(key, value)
        Image.new("L", (1200, 300)).save(folder / "figures" / f"{name}.png", pnginfo=info)
    write_report(folder)
    return folder


def rates(table, threshold):
    """What the page has to say of a threshold: known, unknown and total accuracy."""
    rejected = table.score > threshold
    right = np.where(table.known, ~rejected & (table.predicted_class == table.label), rejected)
    return [f"{100 * part.mean():.2f}%" for part in (right[table.known], right[~table.known], right)]


def commanded(tab):
    """The threshold of the command below the slider."""
    return float(tab.js("command.textContent").split("--model.threshold=")[1])


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_the_slider_shows_what_each_threshold_does(tab, run, width, scheme):
    tab.open((run / "report.html").as_uri(), width, scheme)
    assert tab.overflow() <= 0
    assert tab.unspoken() == []
    table = PredictionTable.load(run)
    last = tab.js("Number(slider.max)")
    assert commanded(tab) == table.threshold
    seen = set()
    for place in (tab.js("Number(slider.value)"), 0, last // 3, last // 2, last):
        tab.js(f"slider.value = {place}; slider.dispatchEvent(new Event('input'))")
        names = ("out-known", "out-unknown", "out-total", "out-set-0")
        said = [tab.js(f"document.getElementById('{name}').textContent") for name in names]
        expected = rates(table, commanded(tab))
        assert said == [*expected, expected[1]]  # of the only unknown set
        assert float(tab.js("at.textContent")) == pytest.approx(commanded(tab), rel=1e-5)
        assert tab.js("slider.getAttribute('aria-valuetext') === at.textContent")
        bar = tab.js("document.getElementById('bar-known').style.width")
        assert float(bar.rstrip("%")) == pytest.approx(float(said[0].rstrip("%")), abs=0.006)
        seen.add(tuple(said))
    assert len(seen) >= 3
    tab.js("document.getElementById('reset').click()")
    assert commanded(tab) == table.threshold


def test_the_slider_rounds_as_the_tables_do(tab, run):
    tab.open((run / "report.html").as_uri(), 1280)
    shares = [(hits, images) for images in (320, 800, 1600) for hits in range(images + 1)]
    said = tab.js(f"{[list(share) for share in shares]}.map(([hits, images]) => percent(hits / images))")
    assert said == [f"{hits / images:.2%}" for hits, images in shares]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_plots_follow_the_page(tab, run, scheme):
    tab.open((run / "report.html").as_uri(), 1280, scheme)
    light = "(colour) => colour.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)"
    style = "getComputedStyle(document.body)"
    ink, page = (tab.js(f"({light})({style}.{name})") for name in ("color", "backgroundColor"))
    assert (ink > page) == (scheme == "dark")
    assert abs(ink - page) > 450
    turned = tab.js(
        "[...document.querySelectorAll('figure img')].map((i) => getComputedStyle(i).filter !== 'none')"
    )
    assert turned == [scheme == "dark", False]
    assert tab.js("[...document.images].every((i) => i.naturalWidth === 1200 && i.width > 0)")


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_figures_keep_a_size_that_can_be_read_and_what_is_cut_says_so(tab, run, width, scheme):
    tab.open((run / "report.html").as_uri(), width, scheme)
    tab.js("document.getElementById('measures').open = true")
    tab.wait("new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(true), 50)))")
    boxes = tab.js(
        "[...document.querySelectorAll('.scroll')].map((b) => [b.scrollWidth > b.clientWidth + 1, "
        "getComputedStyle(b, '::after').content.includes('scroll sideways')])"
    )
    assert all(cut == said for cut, said in boxes)
    widths = tab.js(
        "[...document.querySelectorAll('figure img')].map((i) => i.getBoundingClientRect().width)"
    )
    for shown in widths:  # of 1200 pixels, more than a page of 390 has room for
        assert (shown == pytest.approx(960, abs=1)) if width == 390 else (500 < shown <= 1200)
    assert any(cut for cut, _ in boxes) == (width == 390)
    # tables are never cut
    right = tab.js(
        "Math.max(...[...document.querySelectorAll('td')].map((d) => d.getBoundingClientRect().right))"
    )
    assert right <= width
    # at the end nothing is left to scroll to
    tab.js("document.querySelectorAll('.scroll').forEach((b) => { b.scrollLeft = b.scrollWidth })")
    tab.wait("!document.querySelector('.scroll.more')")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_leads_to_the_reports(tab, run, tmp_path, width):
    other = tmp_path / "a #1% <b>" / "version_0"
    shutil.copytree(run, other)
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / "report.html").unlink()
    compare([run, other, bare], tmp_path / "out", resamples=5)
    page = (tmp_path / "out" / "comparison.html").as_uri()
    tab.open(page, width)
    assert tab.overflow() <= 0
    assert tab.unspoken() == []
    right = tab.js(
        "Math.max(...[...document.querySelectorAll('td')].map((d) => d.getBoundingClientRect().right))"
    )
    assert right <= width  # nothing hides behind a scroll bar
    links = tab.js("[...document.querySelectorAll('#runs a')].map((a) => [a.textContent, a.href])")
    assert [text for text, _ in links] == [f"{run.parent.name}/version_0", "a #1% <b>/version_0"]
    for (_, href), folder in zip(links, (run, other), strict=True):
        tab.open(href, width)
        assert tab.js("!!document.getElementById('slider')")
        assert href == (folder / "report.html").as_uri()
