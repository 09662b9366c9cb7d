"""The page and the badge: complete, self-contained, and honest about what it shows."""

import html.parser
import json
from xml.etree import ElementTree

import numpy as np
import pytest

from walsh.suite.page import badge, write_badge, write_page
from walsh.suite.runner import Exit, run_backend
from walsh.suite.vectors import load_suite

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Reader(html.parser.HTMLParser):
    """Collects what a browser would load, and the nesting of tags."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.ids, self.links, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.loads += [named[key] for key in ("src", "srcset") if key in named]
        if tag in ("link", "script", "iframe", "object"):
            self.loads.append(tag)
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "a":
            self.links.append(named["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(small, toys, tmp_path):
    class Wrong(toys.Butterfly):
        name = "<wrong> & more"

        def run(self, op, params, inputs, out):
            super().run(op, params, inputs, out)
            out["y"][..., 1] += np.ones((), dtype=out["y"].dtype)

    suite = load_suite(small, min_cases=1)
    runs = [run_backend(backend, suite.cases, toys.policy) for backend in (toys.Butterfly(), Wrong())]
    path = tmp_path / "report.html"
    write_page(path, suite, ["a", "b"], runs, Exit.FAILURE, lambda label, case: f"repeat {label} {case}", "today")
    text = path.read_text("utf-8")
    reader = Reader()
    reader.feed(text)
    return text, reader, runs


def test_it_is_well_formed_and_loads_nothing(page):
    text, reader, _ = page
    assert reader.open == []
    assert reader.loads == []
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text


def test_every_cell_opens_its_cases(page):
    _, reader, _ = page
    targets = [link[1:] for link in reader.links if len(link) > 1]
    assert len(targets) == 4
    assert set(targets) == {name for name in reader.ids if name}


def test_what_it_says(page):
    text, reader, _ = page
    shown = " ".join(reader.text)
    for part in (
        "not conforming",
        "<wrong> & more",
        "hadamard/exact/case-0",
        "3 of 6 elements of y differ",
        "0xc0400000",
        "swapped halves",
        "repeat b hadamard/exact/case-0",
        "4 of 4 vectors",
    ):
        assert part in shown
    assert "<wrong>" not in text
    assert "repeat a" not in shown


def test_it_follows_the_reader_s_light(page):
    assert "prefers-color-scheme: dark" in page[0]


def test_badges(page, tmp_path):
    runs = page[2]
    assert badge(runs[:1], Exit.CONFORMING) == {
        "schemaVersion": 1,
        "label": "walsh",
        "message": "conforming, 4 vectors",
        "color": "brightgreen",
    }
    assert badge(runs, Exit.FAILURE)["color"] == "red"
    assert badge(runs, Exit.INCOMPLETE)["message"] == "incomplete"
    write_badge(tmp_path / "badge.json", runs, Exit.FAILURE)
    assert json.loads((tmp_path / "badge.json").read_text())["message"] == "not conforming"
    write_badge(tmp_path / "badge.svg", runs[:1], Exit.CONFORMING)
    root = ElementTree.parse(tmp_path / "badge.svg").getroot()
    assert root.attrib["aria-label"] == "walsh: conforming, 4 vectors"
