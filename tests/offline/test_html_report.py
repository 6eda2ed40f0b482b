"""Reports as one HTML file."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np

from phoenix_d2.offline import html_report

EVIL = "<script>alert('x')</script> & \"$body\""


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def test_text_from_files_is_only_ever_text():
    picture = np.zeros((8, 8, 3), np.uint8)
    html = html_report.page(
        EVIL,
        {
            "": html_report.paragraph(EVIL),
            EVIL: html_report.table([EVIL], [[EVIL]]) + html_report.histogram({EVIL: 3}),
            "pictures": html_report.figures([(picture, EVIL)]),
        },
    )
    reader = read(html)
    assert "script" not in reader.tags
    # title twice, paragraph, heading, head and cell of the table, bar, caption
    assert reader.text.count(EVIL) == 8


def test_nothing_is_fetched():
    html = html_report.page("a", {"b": html_report.figures([(np.zeros((8, 8, 3), np.uint8), "c")])})
    reader = read(html)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert all(value.startswith("data:") for name, value in reader.attributes if name in ("src", "href"))
    assert "default-src 'none'" in html and "http://" not in html and "https://" not in html


def test_pictures_lie_inside():
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[..., 0] = 250
    html = html_report.figures([(picture, "red\nbelow")])
    (encoded,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert decoded.shape == picture.shape and np.abs(decoded.astype(int) - picture).max() < 10
    assert "red<br>below" in html


def test_bars_are_as_long_as_counts_are_large():
    html = html_report.histogram({"low": 0, "middle": 5, "high": 20})
    assert re.findall(r"width:([\d.]+)%", html) == ["0.0", "25.0", "100.0"]
    assert html_report.histogram({"none": 0}).count("width:0.0%") == 1
