"""Pieces of HTML that the report's sections are made of."""

import base64
from collections.abc import Iterable, Sequence
from html import escape


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, wrap: int | None = None
) -> str:
    """A table; from column `left` on, columns of numbers stand to the right; `wrap` may be long."""
    rows = [list(map(str, row)) for row in rows]
    right = [
        i >= left and all(cell == "" or cell[0] in "-.0123456789" for cell in column)
        for i, column in enumerate(zip(*rows, strict=True))
    ]
    mark = [' class="number"' if at_right else "" for at_right in right]
    if wrap is not None and mark:
        mark[wrap] = ' class="wrap"'
    cells = "".join(f"<th{m}>{escape(name)}</th>" for m, name in zip(mark, head, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{m}>{escape(cell)}</td>" for m, cell in zip(mark, row, strict=True))
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def figure(image: str | bytes, alt: str, caption: str) -> str:
    """An SVG (text) or JPEG (bytes) inside of the page, so that names in it stay in it."""
    kind, data = ("svg+xml", image.encode()) if isinstance(image, str) else ("jpeg", image)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><img alt="{escape(alt)}" src="{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def soft(text: str) -> str:
    """A paragraph of lesser weight."""
    return f'<p class="soft">{escape(text)}</p>'


def warning(text: str) -> str:
    """A paragraph that must not be missed."""
    return f'<p class="warn">{escape(text)}</p>'


def number(value: float | None, digits: int = 3) -> str:
    """The number with so many digits; `-` where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction in percent; `-` where there is none."""
    return "-" if value is None or value != value else f"{100 * value:.{digits}f} %"
