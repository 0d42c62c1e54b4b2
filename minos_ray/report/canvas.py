"""From matplotlib to SVG that lives inside the page: its text is text, and it follows the page's colours."""

import functools
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Stand-ins that matplotlib draws with; the page says what they are in light and in dark.
INK, PAPER = "#010203", "#fdfcfb"
THEME = {INK: "currentColor", PAPER: "var(--card)"}

# Colours that stay apart for colour-blind eyes and on white as on near-black.
MINOS, BASE, VOTE, BOUND, OTHER = "#2a7fc9", "#d9822b", "#7d838b", "#b4577f", "#2f9e77"
GROUPS = {"minos": MINOS, "base": BASE, "vote": VOTE, "bound": BOUND, "other": OTHER}
# From 0 over 0.5 to 1: orange, grey, blue.
HEAT = ((217, 122, 30), (150, 152, 158), (36, 118, 200))
TINT = 0.42  # how much of it lies behind text; more would cost the text its contrast
MARKERS = {"minos": "o", "base": "s", "vote": "", "bound": "", "other": "D"}

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"], INK
    ),
}


def drawn(draw: "Callable[P, tuple[Figure, str] | None]") -> "Callable[P, Markup | None]":
    """Turns a function that draws a figure and says what it shows into one that gives inline SVG, or None."""

    @functools.wraps(draw)
    def inline(*args: P.args, **kwargs: P.kwargs) -> Markup | None:
        import matplotlib

        matplotlib.use("Agg")
        style: Any = {**STYLE, "svg.hashsalt": inline.__name__}  # ids that are the same in every run
        with matplotlib.rc_context(style):
            picture = draw(*args, **kwargs)
            return svg(*picture, inline.__name__) if picture else None

    return inline


def grid(
    rows: int, columns: int, height: float = 2.3, width: float = 9.6, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure of equal axes, as a flat list; sizes in inches."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, **options)
    return figure, list(axes.flat)


def svg(figure: "Figure", alt: str, name: str) -> Markup:
    """The figure as inline SVG with ids of its own, without metadata; the figure is closed."""
    import matplotlib.pyplot as plt

    sink = io.StringIO()
    nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    figure.savefig(sink, format="svg", bbox_inches="tight", pad_inches=0.04, metadata=nothing)
    plt.close(figure)
    text = sink.getvalue()
    text = re.sub(r'\bid="', f'id="{name}-', text[text.index("<svg") :])
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for stand_in, colour in THEME.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r'^<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", text, count=1)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(alt)}" ', 1))
