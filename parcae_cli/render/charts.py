"""Charts made of characters: a curve of braille dots, and bars of eighths of a block."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"
# The bit of each dot in a braille character, by row and column (Unicode, section 21.1).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def braille_curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """A curve through the values, `width` x `height` characters, the highest value in the first line.

    Each character has 2 x 4 dots; neighbours are joined, so that steep parts have no gaps.
    """
    cells = [[0] * width for _ in range(height)]
    if values:
        low, high = min(values), max(values)
        columns, rows = width * 2, height * 4
        span = (high - low) or 1.0
        previous: int | None = None
        for column in range(columns):
            if len(values) == 1:
                value = values[0]
            else:
                at = column * (len(values) - 1) / (columns - 1)
                index = min(int(at), len(values) - 2)
                value = values[index] + (values[index + 1] - values[index]) * (at - index)
            row = round((high - value) / span * (rows - 1)) if high > low else rows // 2
            start, end = sorted((row, row if previous is None else previous))
            for dot in range(start, end + 1):
                cells[dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]
            previous = row
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in line) for line in cells]


def bars(values: Sequence[float], top: float, height: int) -> list[str]:
    """One column per value, `height` lines, `top` at the upper edge; the highest line comes first."""
    lines = []
    for line in range(height - 1, -1, -1):
        eighths = (value / top * height * 8 - line * 8 if top > 0 else 0.0 for value in values)
        lines.append("".join(BLOCKS[max(0, min(8, round(count)))] for count in eighths))
    return lines


def progress_bar(part: float, width: int) -> tuple[str, str]:
    """The done and the open part of a bar of `width` characters, `part` of 0 to 1."""
    done = round(max(0.0, min(1.0, part)) * width)
    return "━" * done, "─" * (width - done)
