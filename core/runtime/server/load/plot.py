"""The figures of a load test as one picture (SVG): throughput, first token and gap between tokens over the load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, PANEL, GAP = 1080, 340, 64, 64, 280, 72
PANEL_HEIGHT = 200
COLOURS = {"p50": "#2563eb", "p90": "#d97706", "p99": "#dc2626", "": "#2563eb"}


def plot(records: Sequence[dict[str, Any]], title: str) -> str:
    """An SVG document of these records (see `summarize`), in their order along the horizontal axis."""
    loads = [f"{r['clients']}" if r["clients"] is not None else f"{r['rate']:g}/s" for r in records]
    axis = "clients" if records[0]["clients"] is not None else "arrivals per second"
    panels = [
        ("output tokens per second", {"": [r["output_tokens_per_s"] for r in records]}),
        ("time to first token, s", {p: [_value(r["ttft_s"], p) for r in records] for p in ("p50", "p90", "p99")}),
        ("gap between tokens, s", {p: [_value(r["itl_s"], p) for r in records] for p in ("p50", "p90", "p99")}),
    ]
    body = [_panel(i, name, series, loads, axis) for i, (name, series) in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#334155">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">{escape(title)}</text>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _value(figures: dict[str, float] | None, name: str) -> float | None:
    return None if figures is None else figures[name]


def _panel(index: int, name: str, series: dict[str, list[float | None]], loads: Sequence[str], axis: str) -> str:
    x0 = LEFT + index * (PANEL + GAP)
    bottom = TOP + PANEL_HEIGHT
    top_value = _nice(max((v for values in series.values() for v in values if v is not None), default=1.0))
    parts = [f'<text x="{x0}" y="{TOP - 14}" font-weight="600">{escape(name)}</text>']
    for i in range(5):
        y = bottom - PANEL_HEIGHT * i / 4
        parts.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + PANEL}" y2="{y:.1f}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{top_value * i / 4:g}</text>')
    step = PANEL / len(loads)
    places = [x0 + step * (i + 0.5) for i in range(len(loads))]
    for x, load in zip(places, loads):
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(load)}</text>')
    parts.append(f'<text x="{x0 + PANEL / 2}" y="{bottom + 38}" text-anchor="middle">{axis}</text>')
    for i, (label, values) in enumerate(series.items()):
        points = [(x, bottom - PANEL_HEIGHT * v / top_value) for x, v in zip(places, values) if v is not None]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[label]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[label]}"/>' for x, y in points]
        if label:
            x = x0 + PANEL - 34 * (len(series) - i) + 8
            parts.append(f'<text x="{x}" y="{TOP - 14}" fill="{COLOURS[label]}">{label}</text>')
    return "\n".join(parts)


def _nice(value: float) -> float:
    """The least of 1, 2, 4, 5, 8 times a power of ten that is not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 4, 5, 8, 10) if m * power >= value * 0.999999)
