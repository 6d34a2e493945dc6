"""Charts of what has been measured, as SVG and PNG."""

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, PercentFormatter, ScalarFormatter, StrMethodFormatter

from benchmarks.cases import Case
from benchmarks.growth import larger_half

COLOURS = {
    "fastbackprop": "#d55e00",
    "NumPy": "#0072b2",
    "NumPy as in the notebooks": "#e69f00",
    "PyTorch": "#009e73",
    "PyTorch compiled": "#56b4e9",
    "JAX": "#cc79a7",
    "scikit-learn": "#7f7f7f",
}
MARKERS = dict(zip(COLOURS, "osPDd^v", strict=True))
STYLE = {
    "svg.hashsalt": "fastbackprop",  # the same figures give the same file
    "svg.fonttype": "none",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
}


def lines(axes, results, x_of, y_of):
    """One line for each library, over the results that have it."""
    for name, colour in COLOURS.items():
        found = [result for result in results if y_of(result, result["libraries"].get(name)) is not None]
        if found:
            x = [x_of(Case(*result["case"])) for result in found]
            y = [y_of(result, result["libraries"][name]) for result in found]
            width = 2.2 if name == "fastbackprop" else 1.2
            axes.plot(x, y, color=colour, marker=MARKERS[name], markersize=4, linewidth=width, label=name)


def by_dtype(measured):
    """A figure with one panel for each dtype measured, and (axes, dtype, its results) of each."""
    dtypes = list(dict.fromkeys(result["dtype"] for result in measured["results"]))
    figure, panels = plt.subplots(1, len(dtypes), figsize=(5 * len(dtypes), 3.8), sharey=True, squeeze=False)
    return figure, [
        (axes, dtype, [result for result in measured["results"] if result["dtype"] == dtype])
        for axes, dtype in zip(panels[0], dtypes, strict=True)
    ]


def share(measured):
    """Share of the FMA peak against width."""
    figure, panels = by_dtype(measured)
    for axes, dtype, results in panels:
        lines(axes, results, lambda case: case.width, lambda _, library: library and library["share"])
        axes.set(title=dtype, xlabel="units of each layer (input, 3 hidden, output)", xscale="log", ylim=(0, 1))
        axes.set_xticks([5, 10, 16, 32, 64, 128, 256, 512, 1024])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0][0].set_ylabel("share of the FMA peak")
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


def others(measured, results):
    """How many times as long as this package each other library takes, one row for each result."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(results) + 1.2))
    names = {}
    for row, result in enumerate(results):
        case, libraries = Case(*result["case"]), result["libraries"]
        names[row] = f"{'-'.join(map(str, case.layer_sizes))}\n{case.samples:,} samples, {result['dtype']}"
        for name, library in libraries.items():
            times = library["median"] / libraries["fastbackprop"]["median"]
            axes.plot(times, row, MARKERS[name], color=COLOURS[name], markersize=7, label=name, clip_on=False)
    axes.axvline(1, color=COLOURS["fastbackprop"], linewidth=1)
    axes.set(xscale="log", yticks=list(names), yticklabels=names.values(), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel(f"time over that of fastbackprop, {measured['threads']} threads (right is slower)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    handles, labels = axes.get_legend_handles_labels()
    marks = dict(zip(labels, handles, strict=True))  # one for each library
    axes.legend(marks.values(), marks, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def batches(measured):
    """Time, and growth of peak memory, against the number of samples."""
    results = [result for result in measured["results"] if result["dtype"] == "float32"]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(10, 3.8))
    lines(times, results, lambda case: case.samples, lambda _, library: library and library["median"])
    lines(memory, results, lambda case: case.samples, lambda _, library: library and library.get("memory"))
    for axes in times, memory:
        axes.set(xscale="log", xlabel="samples", title="16-64-64-64-64-4, float32")
    times.set(yscale="log", ylabel="seconds for a gradient")
    memory.set(ylabel="growth of peak memory, MB")
    memory.set_yscale("symlog", linthresh=1)
    memory.set_ylim(bottom=0)
    memory.yaxis.set_major_formatter(ScalarFormatter())
    times.legend(frameon=False, fontsize=8)
    return figure


def roofline(measured):
    """Speed against flops for each byte that has to be moved, under the machine's two roofs."""
    figure, panels = by_dtype(measured)
    for axes, dtype, results in panels:
        peak, itemsize = max(result["peak"] for result in results), np.dtype(dtype).itemsize
        ends = np.array([0.1, peak / measured["bandwidth"], 1e4])
        axes.plot(ends, np.minimum(peak, ends * measured["bandwidth"]) / 1e9, color="black")
        for name, bytes_of in ("fastbackprop", Case.fused_bytes), ("NumPy", Case.layered_bytes):
            found = [(Case(*result["case"]), result["libraries"].get(name)) for result in results]
            points = [(case, library["quartiles"][0]) for case, library in found if library]
            x = [case.flops / bytes_of(case, itemsize) for case, _ in points]
            y = [case.flops / seconds / 1e9 for case, seconds in points]
            axes.scatter(x, y, color=COLOURS[name], marker=MARKERS[name], s=22, label=name, zorder=3)
        axes.set(title=dtype, xscale="log", yscale="log", xlabel="flops for each byte to and from memory")
    panels[0][0].set_ylabel("GFLOP/s")
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


def growth(measured):
    """Seconds against samples, width, depth and threads, with the fitted powers."""
    names = list(dict.fromkeys(result["sweep"] for result in measured["results"]))
    figure, panels = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.4))
    for axes, name in zip(panels, names, strict=True):
        for result, colour in zip(
            (result for result in measured["results"] if result["sweep"] == name), ("#d55e00", "#0072b2"), strict=False
        ):
            sizes, seconds, power = result["sizes"], result["seconds"], result["power"]
            axes.plot(sizes, seconds, color=colour, marker="o", markersize=4, linewidth=0, label=result["dtype"])
            if power is not None:
                start = larger_half(sizes)
                middle = np.exp(np.mean(np.log(seconds[start:]))), np.exp(np.mean(np.log(sizes[start:])))
                fitted = middle[0] * (np.array(sizes[start:]) / middle[1]) ** power
                axes.plot(sizes[start:], fitted, color=colour, linewidth=1, label=f"power {power:.2f}")
        axes.set(xscale="log", yscale="log", xlabel=name)
        if name == "threads":
            axes.set(xscale="linear", yscale="linear", xticks=result["sizes"], ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("seconds for a gradient")
    return figure


def show(figure, file):
    """Open a window, where there is a display and no file is given; save a PNG otherwise, and print where."""
    if file is None and plt.get_backend().lower() != "agg":
        plt.show()
        return
    file = file or Path(tempfile.mkdtemp()) / "chart.png"
    figure.savefig(file, dpi=150, bbox_inches="tight")
    plt.close(figure)
    print(f"chart: {file}")


def draw(chart, measured, file):
    """Save a chart of what has been measured as SVG, and as PNG beside it."""
    with mpl.rc_context(STYLE):
        figure = chart(measured)
        figure.tight_layout()
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(file.with_suffix(".png"), dpi=150)
        plt.close(figure)
