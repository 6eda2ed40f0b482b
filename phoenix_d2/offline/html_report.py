"""A report as one HTML file that needs nothing else: pictures lie inside it, and it asks no network.

All text is escaped here, since names in it come from files that anyone may have written.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import cv2

from phoenix_d2.visualization import Image

_JPEG_QUALITY = 85

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1340px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd; }
th { position: sticky; top: 0; background: #fff; }
th:first-child, td:first-child { text-align: left; }
.scroll { max-height: 30em; overflow: auto; display: inline-block; }
.bar { background: #40a0ff; height: .9em; }
td.bars { width: 24em; text-align: left; }
.figures { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; }
figcaption { font-size: 13px; }
img { display: block; max-width: 100%; }
pre { font: inherit; white-space: pre-wrap; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def page(title: str, sections: Mapping[str, str]) -> str:
    """A whole file.

    Args:
        title: plain text.
        sections: HTML of the functions below by heading, which is plain text; "" for none.
    """
    headed = (f"<h2>{escape(heading)}</h2>\n{html}" if heading else html for heading, html in sections.items())
    return _PAGE.substitute(title=escape(title), body="\n".join(headed))


def paragraph(text: str) -> str:
    """Plain text with its line breaks."""
    return f"<pre>{escape(text)}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Plain values in rows under a header, scrolling when there are many."""
    cells = "\n".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{_cells("th", header)}</tr>\n{cells}\n</table></div>'


def histogram(counts: Mapping[str, int]) -> str:
    """A bar for each label, in the given order."""
    most = max(counts.values(), default=0) or 1
    rows = "\n".join(
        f'<tr><td>{escape(label)}</td><td class="bars"><div class="bar" style="width:{100 * count / most:.1f}%"></div>'
        f"</td><td>{count}</td></tr>"
        for label, count in counts.items()
    )
    return f"<table>\n{rows}\n</table>"


def figures(pictures: Iterable[tuple[Image, str]]) -> str:
    """Pictures, each with a caption of plain text."""
    html = (f'<figure><img src="{_data_url(image)}">{_caption(text)}</figure>' for image, text in pictures)
    return '<div class="figures">\n' + "\n".join(html) + "\n</div>"


def _cells(tag: str, values: Iterable[Any]) -> str:
    return "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values)


def _caption(text: str) -> str:
    return "<figcaption>" + escape(text).replace("\n", "<br>") + "</figcaption>"


def _data_url(image: Image) -> str:
    # OpenCV takes BGR
    _, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode("ascii")
