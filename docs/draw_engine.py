"""The picture of docs/engine.md: plan, pass, product and sum, the four levels of a call.

python docs/draw_engine.py
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle

ORANGE, BLUE, GREEN, PURPLE, GREY = "#d55e00", "#0072b2", "#009e73", "#aa4499", "#666666"
PHASES = [
    ("take_input", "h₀ = columns of the input", GREY),
    ("forward", "hₖ₊₁ = ReLU(Ωₖ hₖ + βₖ), each layer", BLUE),
    ("take_loss", "∂l/∂f of the last layer", PURPLE),
    ("add_layer_gradient", "∂l/∂Ωₖ += ∂l/∂fₖ hₖᵀ", ORANGE),
    ("backward", "∂l/∂fₖ₋₁ = Ωₖᵀ ∂l/∂fₖ · [hₖ > 0]", GREEN),
]


def box(axes, x, y, width, height, colour, text="", **style):
    """A rectangle with text in its middle."""
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1.5, **style))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, color="white")


def arrow(axes, start, end, **style):
    """An arrow from one point to another."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=GREY, **style))


def draw_plan(axes):
    """The batch is cut into chunks, a chunk into tiles."""
    axes.set_title("1  Plan: cut the batch, from shapes alone", loc="left")
    axes.text(
        0, 0.93, "the batch: threads take chunks (thread 0 blue, thread 1 orange)", fontsize=9, color=GREY, va="top"
    )
    chunks = [(0.0, BLUE, "chunk 0"), (0.26, ORANGE, "chunk 1"), (0.52, BLUE, "chunk 2"), (0.78, ORANGE, "chunk 3")]
    for x, colour, name in chunks:
        box(axes, x, 0.62, 0.22, 0.2, colour, name)
    for tile in range(4):
        box(axes, 0.13 + 0.185 * tile, 0.12, 0.175, 0.2, ORANGE, f"tile {tile}", alpha=1.0 if tile == 0 else 0.75)
    for x, end in (0.26, 0.13), (0.48, 0.86):
        axes.plot([x, end], [0.62, 0.32], color=ORANGE, linewidth=0.8, linestyle=":")
    axes.text(0, 0.04, "a tile: up to 512 samples, rows of 256 KB in all", fontsize=9, color=GREY, va="top")


def draw_pass(axes):
    """One tile goes through all phases."""
    axes.set_title("2  Pass: all phases on one tile, then the next tile", loc="left")
    for number, (name, formula, colour) in enumerate(PHASES):
        y = 0.8 - 0.19 * number
        box(axes, 0, y, 0.36, 0.13, colour, name)
        axes.text(0.39, y + 0.065, formula, fontsize=9, va="center")
        if number:
            arrow(axes, (0.18, y + 0.19), (0.18, y + 0.13))
    # The last two phases alternate, from the last layer down.
    arrow(axes, (-0.005, 0.1), (-0.005, 0.295), connectionstyle="arc3,rad=-0.4")
    axes.text(0, -0.02, "the last two alternate, from the last layer down", fontsize=9, color=GREY, va="top")


def draw_sum(axes):
    """The partial gradients are added in a fixed order."""
    axes.set_title("4  Sum: partial gradients, in a fixed order", loc="left")
    for chunk, colour in enumerate((BLUE, ORANGE, BLUE, ORANGE)):
        box(axes, 0.26 * chunk, 0.6, 0.22, 0.2, colour, f"partial {chunk}")
        arrow(axes, (0.26 * chunk + 0.11, 0.6), (0.5 + 0.06 * (chunk - 1.5), 0.36))
    box(axes, 0.25, 0.14, 0.5, 0.22, PURPLE, "gradient")
    axes.text(0, 0.93, "each chunk has summed its own", fontsize=9, color=GREY, va="top")
    axes.text(0, 0.06, "in double precision: the same bits for any number of threads", fontsize=9, color=GREY, va="top")


def draw_product(axes):
    """A product keeps the sums of a register tile in registers."""
    axes.set_title("3  Product: sums stay in registers", loc="left")
    axes.text(0.0, 0.38, "Ω: weights", fontsize=9, color=GREY, va="top")
    axes.text(0.68, 0.93, "h: rows of the tile", fontsize=9, color=GREY, va="top", ha="center")
    axes.text(0.68, 0.38, "f: 4 rows of 4 vectors of sums", fontsize=9, color=GREY, va="top", ha="center")
    for row in range(4):
        for column in range(5):
            chosen = column == 2
            box(axes, 0.055 * column, 0.02 + 0.07 * (3 - row), 0.055, 0.07, BLUE, alpha=0.9 if chosen else 0.25)
        for vector in range(4):
            box(axes, 0.44 + 0.12 * vector, 0.02 + 0.07 * (3 - row), 0.12, 0.07, ORANGE)
    for column in range(5):
        for vector in range(4):
            chosen = column == 2
            box(
                axes,
                0.44 + 0.12 * vector,
                0.45 + 0.075 * (4 - column),
                0.12,
                0.075,
                GREEN,
                alpha=0.9 if chosen else 0.25,
            )
    arrow(axes, (0.29, 0.16), (0.43, 0.16))
    arrow(axes, (0.95, 0.45), (0.95, 0.305), connectionstyle="arc3,rad=-0.3")
    axes.text(0, -0.04, "one weight times one vector of samples at a time", fontsize=9, color=GREY, va="top")


def picture():
    """The figure of the four levels."""
    with mpl.rc_context({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"}):
        figure, panels = plt.subplots(2, 2, figsize=(10.5, 6.6), layout="constrained")
        for axes, draw in zip(panels.flat, (draw_plan, draw_pass, draw_product, draw_sum), strict=True):
            draw(axes)
            axes.set(xlim=(-0.06, 1.02), ylim=(-0.12, 1))
            axes.axis("off")
    return figure


if __name__ == "__main__":
    with mpl.rc_context({"svg.hashsalt": "fastbackprop", "svg.fonttype": "path"}):
        picture().savefig(Path(__file__).with_name("engine.svg"), metadata={"Date": None})
