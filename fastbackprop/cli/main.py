"""The command line: the main job, gradients and checks of files, and what the package runs on."""

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import fastbackprop
from fastbackprop.arguments.checks import Array, check_layer_sizes, shown
from fastbackprop.cli import files, profiling
from fastbackprop.cli.demonstration import demonstrate
from fastbackprop.losses import LOSSES
from fastbackprop.parallel.cpus import available_threads, decided_by

NETWORK_AND_BATCH = """\
NET.npz holds weights_0, (units, inputs), biases_0, (units, 1) or (units,), weights_1, ...: what the functions take as
all_weights[0], all_biases[0], all_weights[1], ... With --names 'W{}' 'b{}' it holds W0, b0, W1, ... or W1, b1, W2, ...
DATA.npz holds net_input, (D_i, N), and y, (D_o, N), or class numbers (N,) for the softmax; --data-names takes others.
Samples are columns, or rows with --rows. Two files X.npy and Y.npy may take its place: they are read from disk.
Pickled arrays are refused, and so is a file with arrays of other names.
"""
NO_MEMORY = "there is not enough memory"
CHECKED = 1000
"""The most samples that are checked: central differences hold the activations of all of them."""

GRADS = """
X.npy and Y.npy may be larger than memory.
GRADS.npz gets loss, dl_dweights_0, dl_dbiases_0, dl_dweights_1, ..., each with its parameter's shape, and dl_dinput
where it is asked for, in rows with --rows. The file appears when it is complete: until then, and after an error or
Ctrl-C, what was there before is there. Long calls show a bar where tqdm is installed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    if sys.stdout is None:  # closed by whoever started this process
        options.parser.error("the standard output is closed")
    try:
        status = run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # of printing: files name theirs
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # what reads the output has seen enough
            return 141
        print(f"{options.parser.prog}: {one_line(error)}", file=sys.stderr)
        return 2


def one_line(error: object) -> str:
    """The text of an error on one line, whatever the name of a file holds."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(error))


def run(options: argparse.Namespace) -> int:
    """Run the command that was asked for."""
    parser: argparse.ArgumentParser = options.parser
    try:
        num_threads = options.threads or available_threads()
    except ValueError as error:
        parser.error(str(error))
    if options.command in {"gradients", "check"}:
        try:
            return gradients(options, num_threads) if options.command == "gradients" else check(options)
        except (ValueError, TypeError, MemoryError) as error:  # what is wrong with the files or the arrays in them
            print(f"{parser.prog}: {one_line(error) or NO_MEMORY}", file=sys.stderr)
            return 2
    try:
        if options.command == "info":
            return info(options, num_threads)
        return demonstrate(options.samples, num_threads)
    except MemoryError as error:
        parser.error(str(error) or NO_MEMORY)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, and the parser of the command, for what it can say about errors."""
    parser = _Parser(prog="fastbackprop", description="Check the notebooks' network, then time a large batch.")
    parser.add_argument("--version", action="version", version=f"fastbackprop {fastbackprop.__version__}")
    parser.add_argument("--samples", type=_whole, default=1_000_000, help="samples of the batch (%(default)s)")
    parser.add_argument("--threads", type=_whole, default=None, help="threads to use (all processors)")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="other commands")
    add_gradients(commands)
    add_check(commands)
    add_info(commands)
    return parser.parse_args(arguments)


def problem_parser() -> argparse.ArgumentParser:
    """The options of a network and a batch, which two commands share."""
    problem = argparse.ArgumentParser(add_help=False)
    problem.add_argument("net", type=Path, metavar="NET.npz", help="the network")
    problem.add_argument("data", type=Path, metavar="DATA", nargs="+", help="the batch: DATA.npz, or X.npy Y.npy")
    problem.add_argument("--rows", action="store_true", help="the samples are rows, not columns")
    names_help = "names of weights and biases in NET.npz, with {} for the layer from 0 or 1 (weights_{} biases_{})"
    problem.add_argument(
        "--names", type=_name, nargs=2, default=files.NAMES, metavar=("WEIGHTS", "BIASES"), help=names_help
    )
    problem.add_argument(
        "--data-names", nargs=2, default=files.DATA_NAMES, metavar=("X", "Y"), help="names in DATA.npz (net_input y)"
    )
    problem.add_argument("--loss", choices=LOSSES, default="least_squares", help="(%(default)s)")
    problem.add_argument("--reduction", choices=["sum", "mean"], default="sum", help="(%(default)s)")
    return problem


def add_gradients(commands: Any) -> None:
    """Add the command `gradients`."""
    command = commands.add_parser(
        "gradients",
        help="write the loss of a batch and its gradients",
        usage="%(prog)s NET.npz (DATA.npz | X.npy Y.npy) --out GRADS.npz [options]",
        description="Write the loss of a batch and its gradient by every weight and bias.",
        epilog=NETWORK_AND_BATCH + GRADS,
        parents=[problem_parser()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--out", type=Path, metavar="GRADS.npz", required=True, help="the file to write")
    dtype_help = "what to compute in (the widest type of the arrays; integers count as float64); "
    dtype_help += "float32 needs X.npy and Y.npy in float32"
    command.add_argument("--dtype", choices=["float32", "float64"], help=dtype_help)
    command.add_argument("--input-gradient", action="store_true", help="write dl_dinput too; it is kept in memory")
    command.add_argument("--threads", type=_whole, default=argparse.SUPPRESS, help="threads to use (all processors)")
    command.set_defaults(parser=command)


def add_check(commands: Any) -> None:
    """Add the command `check`."""
    command = commands.add_parser(
        "check",
        help="check the gradients by central differences",
        usage="%(prog)s NET.npz (DATA.npz | X.npy Y.npy) [options]",
        description=f"Check the gradients by central differences, of the first {CHECKED:,} samples at most.\n"
        "The exit status is 0 where they are right, 1 where one is wrong or not finite.",
        epilog=NETWORK_AND_BATCH,
        parents=[problem_parser()],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(parser=command)


def add_info(commands: Any) -> None:
    """Add the command `info`."""
    command = commands.add_parser(
        "info",
        help="show versions, processor, threads and cache folder, or where a network's time goes",
        description="Show versions, processor, threads and cache folder; with --layers, how the gradient of a network "
        "is computed and where its time goes, too.",
    )
    command.add_argument("--layers", type=_layer_sizes, metavar="D_I,...,D_O", help="sizes, as in 784,256,10")
    command.add_argument("--samples", dest="batch", type=_whole, default=4096, help="of the batch (%(default)s)")
    command.add_argument("--dtype", choices=["float32", "float64"], default="float64", help="(%(default)s)")
    command.add_argument("--threads", type=_whole, default=argparse.SUPPRESS, help="threads to use (all processors)")
    command.set_defaults(parser=command)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line and exit status 2."""
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


def _whole(text: str) -> int:
    if not (text.isdecimal() and len(text) < 100 and int(text) > 0):  # Python refuses to read thousands of digits
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from 1 up")
    return int(text)


def _name(text: str) -> str:
    if text.count("{}") != 1:
        raise argparse.ArgumentTypeError(f"{text!r} has no single {{}} for the number of the layer, as in 'W{{}}'")
    return text


def gradients(options: argparse.Namespace, num_threads: int) -> int:
    """Write the loss and the gradients of the files' network and batch."""
    dtype = None if options.dtype is None else np.dtype(options.dtype)
    all_weights, all_biases = files.read_network(options.net, dtype, options.names)
    net_input, y = files.read_data(options.data, dtype, options.rows, options.data_names)
    check_orientation(net_input, y, all_weights, options.rows)
    files.check_output(options.out, [options.net, *options.data])
    start = time.perf_counter()
    with progress_bar() as bar:

        def progress(done: int, total: int) -> None:
            files.release_pages([net_input, y])
            if bar is not None:
                bar.total = total
                bar.update(done - bar.n)

        loss, all_dl_dweights, all_dl_dbiases, *rest = fastbackprop.loss_and_gradients(
            net_input,
            all_weights,
            all_biases,
            y,
            loss=options.loss,
            reduction=options.reduction,
            input_gradient=options.input_gradient,
            num_threads=num_threads,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    arrays = {"loss": loss}
    for k, (dl_dweights, dl_dbiases) in enumerate(zip(all_dl_dweights, all_dl_dbiases, strict=True)):
        arrays |= {f"dl_dweights_{k}": dl_dweights, f"dl_dbiases_{k}": dl_dbiases}
    if options.input_gradient:
        arrays["dl_dinput"] = rest[0].T if options.rows else rest[0]
    files.write_arrays(options.out, arrays)
    print(f"loss {loss:.9g}, samples {net_input.shape[1]:,}, time {seconds:.3g} s")
    return 0


def check_orientation(net_input: Array, y: Array, all_weights: list[Array], rows: bool) -> None:
    """Refuse samples in rows that are read as columns, and the reverse. Errors show shapes as they are in the files."""
    inputs, outputs = all_weights[0].shape[-1:], all_weights[-1].shape[:1]
    if net_input.ndim == 2 and net_input.shape[:1] != inputs == net_input.shape[1:]:
        remedy = "columns: leave out --rows" if rows else "rows: pass --rows"
        found = net_input.shape[::-1] if rows else net_input.shape
        raise ValueError(f"net_input has shape {found} in its file, for {inputs[0]} inputs: its samples are {remedy}")
    expected = net_input.shape[1:] + outputs
    if rows and y.ndim == len(expected) == 2:
        found = y.shape[::-1]
        if any(size not in (1, wanted) for size, wanted in zip(found, expected, strict=True)):
            raise ValueError(f"y has shape {found} in its file; expected {expected} with --rows: a row for each sample")


def progress_bar() -> contextlib.AbstractContextManager[Any]:
    """A bar on a terminal, from the second second on; None if tqdm is not installed or standard error is closed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext()
    if sys.stderr is None:
        return contextlib.nullcontext()
    bar: contextlib.AbstractContextManager[Any] = tqdm(
        unit=" samples", unit_scale=True, delay=1.0, leave=False, disable=None
    )
    return bar


def check(options: argparse.Namespace) -> int:
    """Check the gradients of the files' network and batch."""
    all_weights, all_biases = files.read_network(options.net, names=options.names)
    net_input, y = files.read_data(options.data, rows=options.rows, names=options.data_names)
    check_orientation(net_input, y, all_weights, options.rows)
    if net_input.ndim == 2 and net_input.shape[1] > CHECKED:
        print(f"The first {CHECKED:,} of {net_input.shape[1]:,} samples:")
        y = y[..., :CHECKED] if y.shape[-1:] == net_input.shape[1:] else y
        net_input = net_input[:, :CHECKED]
    report = fastbackprop.check_gradients(
        net_input, all_weights, all_biases, y, loss=options.loss, reduction=options.reduction
    )
    print(report)
    return 0 if report.passed else 1


def _layer_sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) < 2:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not two or more whole numbers, as in 784,256,10")
    try:
        return check_layer_sizes([_whole(part) for part in parts])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def info(options: argparse.Namespace, num_threads: int) -> int:
    """Print what the package runs on; with --layers, where a network's time goes."""
    profile = options.layers and profiling.report(options.layers, np.dtype(options.dtype), options.batch, num_threads)
    show_versions(num_threads, "--threads" if options.threads else decided_by())
    if profile:
        print(f"\n{profile}")
    return 0


def show_versions(num_threads: int, decided_by: str) -> None:
    """Print what the package runs on."""
    import llvmlite
    import numba

    from fastbackprop.kernels import jit, simd

    target, triple, cpu = simd.host_target()
    rows = {
        "fastbackprop": fastbackprop.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "numba": f"{numba.__version__} (llvmlite {llvmlite.__version__})",
        "target": f"{cpu}, {triple}",
        "vectors": f"{8 * target.vector_bytes} bits, {target.registers} registers, "
        + ("fused multiply-add" if target.has_fma else "no fused multiply-add"),
        "threads": f"{num_threads} on {os.cpu_count()} processors, decided by {decided_by}",
        "cache folder": jit.cache_folder() or "none that can be written: kernels are compiled in every process",
    }
    for name, value in rows.items():
        print(f"{name:13} {value}")
