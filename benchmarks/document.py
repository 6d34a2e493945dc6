"""Charts, and the tables in README.md, docs/performance.md and docs/numerics.md, from the results in docs/performance.

    python -m benchmarks.document

A document has two comments, `<!-- begin NAME -->` and `<!-- end NAME -->`, around what is written here.
"""

import json
import re
from pathlib import Path

from benchmarks import charts, machine, per_sample, pytorch
from benchmarks.cases import MINIBATCH, NOTEBOOK, Case
from benchmarks.compare import best_other, rounded
from benchmarks.libraries import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("docs/performance")
README_CASES = [
    NOTEBOOK,
    Case(8, 32, 1, 3, 100_000),
    Case(784, 256, 10, 3, 4096),
    MINIBATCH,
    Case(784, 1024, 10, 3, 2048),
]
"""The rows of the table in README.md, in float32: the narrowest network, the widest, and others between them."""
CHARTS = {
    "others": (lambda measured: charts.others(measured, readme_results(measured)), "table"),
    "share": (charts.share, "curve"),
    "batches": (charts.batches, "batches"),
    "roofline": (charts.roofline, "table"),
    "growth": (charts.growth, "growth"),
}
"""Each chart, and the results that it shows."""


def seconds(value):
    """A time with three digits, rounded before its unit is chosen, as `best_other` rounds it."""
    value = rounded(value)
    for unit, size in ("s", 1.0), ("ms", 1e-3):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def table(header, rows):
    """Markdown; the first column is left, the others right."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def network(case):
    """Its layer sizes, as a table shows them."""
    few = case.hidden < 4
    return "-".join(map(str, case.layer_sizes)) if few else f"{case.inputs}-{case.width}x{case.hidden}-{case.outputs}"


def measured_on(measured):
    """The machine and the command."""
    return f"{machine.sentence(measured)} Command: `{measured['command']}`."


def not_won(results):
    """The cases in which another library is faster, in a sentence."""
    lost = []
    for result in results:
        case, (name, ratio) = Case(*result["case"]), best_other(result)
        if ratio < 1.0:
            row = f"{network(case)} with {case.samples:,} samples in {result['dtype']}"
            lost.append(f"{row} ({name}, {1 / ratio:.2f} times as fast)")
    return "Another library is faster: " + "; ".join(lost) + "." if lost else "fastbackprop is fastest in every row."


def side_by_side(measured):
    """The table of times, the cases that are not won, and the machine."""
    results = measured["results"]
    names = [name for name in LIBRARIES if any(name in result["libraries"] for result in results)]
    rows = []
    for result in results:
        case, libraries = Case(*result["case"]), result["libraries"]
        times = [seconds(libraries[name]["median"]) if name in libraries else "" for name in names]
        rows.append([network(case), f"{case.samples:,}", result["dtype"], *times])
        rows[-1] += [f"{libraries['fastbackprop']['share']:.0%}", f"{best_other(result)[1]:.2f}"]
    header = ["network", "samples", "dtype", *names, "share of the peak", "best other / fastbackprop"]
    about = (
        "Median time of one gradient. The share of the peak is the speed of this package over the FMA peak of the "
        "processors. The last column is the time of the fastest other library over the time of this package. The "
        "column NumPy is `fastbackprop.lean`, the same gradient in NumPy, written for speed. NumPy as in the notebooks "
        "is `fastbackprop.reference`, which keeps every activation."
    )
    return "\n\n".join([table(header, rows), f"{about} {not_won(results)}", measured_on(measured)])


def readme_results(measured):
    """The results of README_CASES in float32, in that order."""
    found = {Case(*result["case"]): result for result in measured["results"] if result["dtype"] == "float32"}
    return [found[case] for case in README_CASES]


def in_short(measured):
    """The table of a few cases: this package, NumPy, and the fastest of the others."""
    rows = []
    for result in readme_results(measured):
        case, (best, ratio) = Case(*result["case"]), best_other(result)
        times = {name: seconds(library["median"]) for name, library in result["libraries"].items()}
        rows.append([network(case), f"{case.samples:,}", times["fastbackprop"], times.get("NumPy", "")])
        rows[-1] += [f"{times[best]} ({best})", f"{ratio:.2f}"]
    header = ["network", "samples", "fastbackprop", "NumPy", "fastest other library", "fastest other / fastbackprop"]
    about = (
        "Median time of one gradient in float32. 1-6x5-1 has one input, five hidden layers of 6 units and one output. "
        "The column NumPy is `fastbackprop.lean`, the same gradient in NumPy, written for speed."
    )
    return "\n\n".join([table(header, rows), f"{about} {not_won(readme_results(measured))}", measured_on(measured)])


def roofs(measured):
    """The two roofs of the machine."""
    peaks = {result["dtype"]: result["peak"] for result in sorted(measured["results"], key=lambda found: found["peak"])}
    told = " and ".join(f"{peak / 1e9:.0f} GFLOP/s in {dtype}" for dtype, peak in sorted(peaks.items()))
    memory = f"{measured['bandwidth'] / 1e9:.1f} GB/s to and from memory"
    return f"The roofs are {told}, and {memory}. {measured_on(measured)}"


def powers(measured):
    """The powers with which cost grows."""
    header = ["what grows", "dtype", "from", "to", "power of the time", "power of the flops of a thread"]
    rows = []
    for result in measured["results"]:
        if result["power"] is not None:
            sizes = [f"{size:,}" for size in result["sizes"]]
            fitted = [f"{result['power']:.2f}", f"{result['power_of_flops']:.2f}"]
            rows.append([result["sweep"], result["dtype"], sizes[0], sizes[-1], *fitted])
    return f"{table(header, rows)}\n\n{measured_on(measured)}"


def layer_products(measured):
    """The share of the peak of each product of one layer."""
    products = list(measured["results"][0]["shares"])
    rows = [
        [f"{result['width']}", result["dtype"], *[f"{result['shares'][name]:.0%}" for name in products]]
        for result in measured["results"]
    ]
    return f"{table(['width', 'dtype', *products], rows)}\n\n{measured_on(measured)}"


def predictions(measured):
    """The predicted efficiency of many threads."""
    threads = measured["results"][0]["threads"]
    rows = []
    for result in measured["results"]:
        case = Case(*result["case"])
        rows.append([network(case), f"{case.samples:,}", result["dtype"], *[f"{e:.0%}" for e in result["efficiency"]]])
    header = ["network", "samples", "dtype", *[f"{number} thread{'s' * (number > 1)}" for number in threads]]
    return f"{table(header, rows)}\n\nOnly the times of the pieces were measured. {measured_on(measured)}"


LIMIT = 1.5
"""Times NumPy's error that one of this package may have."""


def errors(measured):
    """The errors of this package, and how many times those of NumPy they are."""
    parts = list(measured["results"][0]["errors"])
    rows, above = [], []
    for result in measured["results"]:
        case = Case(*result["case"])
        row = [network(case), f"{case.samples:,}", result["dtype"]]
        for part in parts:
            error, ratio = result["errors"][part]
            row.append(f"{error:.1e} ({ratio:.2f})")
            if ratio > LIMIT:
                above.append(f"{part} of {network(case)} with {case.samples:,} samples in {result['dtype']}")
        rows.append(row)
    header = ["network", "samples", "dtype", *parts]
    told = f"Errors of more than {LIMIT} times NumPy's: {'; '.join(above) or 'none'}."
    return f"{table(header, rows)}\n\n{told} {measured_on(measured)}"


def samples(measured):
    """What each sample says: times over those of a gradient, of a fill, and of clipped sums."""
    names = [name for name in per_sample.PEERS if any(name in found["seconds"] for found in measured["results"])]
    rows = []
    for result in measured["results"]:
        case, times = Case(*result["case"]), result["seconds"]
        ratios = {name: per_sample.ratio(times, name) for name in times}
        rows.append([network(case), f"{case.samples:,}", result["dtype"], seconds(times["gradient"])])
        rows[-1] += [f"{ratios[name]:.2f}" for name in per_sample.SUMS]
        rows[-1] += [seconds(times["gradients"]), f"{1 / ratios['gradients']:.0%}"]
        rows[-1] += [f"{ratios[name]:.3g}" if name in ratios else "" for name in names]
    header = ["network", "samples", "dtype", "gradient", *[f"{name} / gradient" for name in per_sample.SUMS]]
    header += ["gradients of each sample", "speed of a fill", *[f"{name} / clipped" for name in names]]
    large = Case(*measured["large"])
    grown = [
        f"{', '.join(f'{name} {megabytes:.0f}' for name, megabytes in growth.items())} in {dtype}"
        for dtype, growth in measured["growth"].items()
    ]
    told = (
        f"A call with {large.samples:,} samples of {network(large)} takes this memory in MB, without its results: "
        f"{'; '.join(grown)}."
    )
    return "\n\n".join([table(header, rows), told, measured_on(measured)])


def fits(measured):
    """The times of scikit-learn's fits and of this package's."""
    clock = "CPU time" if measured["cpu_time"] else "Median time"
    rows = []
    for result in measured["results"]:
        lower, upper = result["ratio_quartiles"]
        times = [seconds(result["medians"][name]) for name in ("scikit-learn", "fastbackprop")]
        rows.append([result["fit"], *times, f"{result['ratio']:.2f} ({lower:.2f} to {upper:.2f})"])
    header = ["fit", "scikit-learn", "fastbackprop", "ratio (quartiles)"]
    return f"{table(header, rows)}\n\n{clock} of a fit. {measured_on(measured)}"


def training_steps(measured):
    """How many times as long PyTorch takes for a training step."""
    rows = []
    for result in measured["results"]:
        case = Case(*result["case"])
        factors = [f"{factor:.2f}" for factor in pytorch.factors(result["medians"])]
        rows.append([network(case), f"{case.samples:,}", seconds(pytorch.best(result["medians"])), *factors])
    header = ["network", "samples", "PyTorch", "module, PyTorch's loss", "fused loss"]
    dtypes = " and ".join(dict.fromkeys(result["dtype"] for result in measured["results"]))
    threads = "1 thread" if measured["threads"] == 1 else f"{measured['threads']} threads"
    return f"{table(header, rows)}\n\nIn {dtypes}, on {threads}. {measured_on(measured)}"


def chunks_of_dask(measured):
    """What a chunk costs, and what a second worker gains."""
    rows = []
    for result in measured["results"]:
        clocks = [seconds(value) for value in result["chunk"].values()]
        rows.append([network(Case(*result["case"])), seconds(result["call"]), *clocks])
    header = ["network", "a call with one chunk", "each further chunk", "CPU: client and scheduler", "CPU: workers"]
    one, two = measured["one_worker"], measured["two_workers"]
    told = (
        f"The gradient of {measured['samples']:,} samples of 8-32-32-32-1, in the memory of the workers, took "
        f"{seconds(one)} on one worker with one thread. On two such workers it took {seconds(two)}, "
        f"{one / two:.2f} times as fast."
    )
    return f"{table(header, rows)}\n\n{told} {measured_on(measured)}"


def insert(document, name, text):
    """The document with the text between the markers of that name."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    found, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", document, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the markers {begin} and {end} were found {count} times; expected once")
    return found


SECTIONS = {
    "README.md": {"table": ("table", in_short)},
    "docs/performance.md": {
        "table": ("table", side_by_side),
        "curve": ("curve", measured_on),
        "batches": ("batches", measured_on),
        "roofline": ("table", roofs),
        "per_sample": ("per_sample", samples),
        "growth": ("growth", powers),
        "schedule": ("schedule", predictions),
        "products": ("products", layer_products),
    },
    "docs/numerics.md": {"errors": ("numerics", errors)},
    "docs/scikit_learn.md": {"sklearn": ("sklearn", fits), "sklearn_widths": ("sklearn_widths", fits)},
    "docs/pytorch.md": {
        "pytorch": ("pytorch", training_steps),
        "pytorch_widths": ("pytorch_widths", training_steps),
    },
    "docs/scaling.md": {"dask": ("dask", chunks_of_dask)},
}
"""The results and the text of each section of each document."""


def read_results():
    """What has been measured, by the name of its file."""
    folder = ROOT / FOLDER
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def written(name, document, results):
    """A document with its sections as the results have them."""
    for section, (source, text) in SECTIONS[name].items():
        document = insert(document, section, text(results[source]))
    return document


def main():
    """Draw the charts and write the sections."""
    results = read_results()
    for name, (chart, source) in CHARTS.items():
        charts.draw(chart, results[source], ROOT / FOLDER / name)
    for name in SECTIONS:
        file = ROOT / name
        file.write_text(written(name, file.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
