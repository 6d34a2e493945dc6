"""The commands on one's own files: right results, one line for what is wrong, no half-written file."""

import errno
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

import fastbackprop as fb
from benchmarks.cases import batch, network
from fastbackprop import reference
from fastbackprop.cli import files
from fastbackprop.cli import main as __main__
from fastbackprop.losses import LOSSES
from tests.conftest import assert_close, assert_same_bits
from tests.network_files import GRADIENTS, LAYER_SIZES, ON_DISK_GRADIENTS, named, write_problem

BOTH_DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


@pytest.fixture
def dtype():
    """Of the problem, where a test does not ask for both."""
    return "float64"


@pytest.fixture(autouse=True)
def problem(tmp_path, monkeypatch, dtype):
    monkeypatch.chdir(tmp_path)
    return write_problem(dtype)


def assert_written(expected, path="grads.npz"):
    loss, all_dl_dweights, all_dl_dbiases, *dl_dinput = expected
    with np.load(path, allow_pickle=False) as got:
        layers = range(len(all_dl_dweights))
        names = {"loss"} | {f"dl_{part}_{k}" for part in ("dweights", "dbiases") for k in layers}
        assert set(got.files) == names | ({"dl_dinput"} if dl_dinput else set())
        assert got["loss"] == pytest.approx(loss, rel=1e-5)
        for k in layers:
            assert_close(got[f"dl_dweights_{k}"], all_dl_dweights[k])
            assert_close(got[f"dl_dbiases_{k}"], all_dl_dbiases[k])
        if dl_dinput:
            assert_close(got["dl_dinput"], dl_dinput[0])


@BOTH_DTYPES
@pytest.mark.parametrize("data", [["data.npz"], ["x.npy", "y.npy"]])
def test_gradients(problem, data, capsys):
    net_input, all_weights, all_biases, y = problem
    assert __main__.main(["gradients", "net.npz", *data, "--out", "grads.npz", "--input-gradient"]) == 0
    expected = reference.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True)
    assert_written(expected)
    printed = capsys.readouterr()
    loss, samples, seconds = re.fullmatch(r"loss (\S+), samples (\S+), time (\S+) s\n", printed.out).groups()
    assert float(loss) == pytest.approx(expected[0], rel=1e-5)
    assert samples == "600"
    assert float(seconds) > 0
    assert not printed.err
    assert sorted(path.name for path in Path().iterdir()) == ["data.npz", "grads.npz", "net.npz", "x.npy", "y.npy"]


@BOTH_DTYPES
def test_files_give_the_same_bits_as_the_call(problem):
    expected = fb.loss_and_gradients(*problem)
    for count in "1", "2":
        assert __main__.main([*GRADIENTS, "--threads", count]) == 0
        with np.load("grads.npz", allow_pickle=False) as got:
            assert got["loss"] == expected[0]
            for k in range(len(LAYER_SIZES) - 1):
                assert_same_bits(got[f"dl_dweights_{k}"], expected[1][k])
                assert_same_bits(got[f"dl_dbiases_{k}"], expected[2][k])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_every_loss_and_reduction(problem, loss, reduction):
    net_input, all_weights, all_biases, y = problem
    y = np.abs(y) / np.sum(np.abs(y), axis=0)  # a target for every loss: numbers, probabilities, shares of classes
    np.savez("data.npz", net_input=net_input, y=y)
    assert __main__.main([*GRADIENTS, "--loss", loss, "--reduction", reduction]) == 0
    assert_written(
        reference.loss_and_gradients(net_input, all_weights, all_biases, y, loss=loss, reduction=reduction),
    )
    assert __main__.main(["check", "net.npz", "data.npz", "--loss", loss, "--reduction", reduction]) == 0


@BOTH_DTYPES
@pytest.mark.parametrize("wanted", ["float32", "float64"])
def test_the_dtype_can_be_chosen(problem, wanted):
    net_input, all_weights, all_biases, y = problem
    assert __main__.main([*GRADIENTS, "--dtype", wanted]) == 0
    wide = [np.asarray(net_input, wanted), *([a.astype(wanted) for a in p] for p in (all_weights, all_biases))]
    assert_written(reference.loss_and_gradients(*wide, y.astype(wanted)))


@BOTH_DTYPES
def test_files_that_stay_on_disk_are_widened_but_not_narrowed(problem, capsys):
    net_input, all_weights, all_biases, y = problem
    arguments = [*ON_DISK_GRADIENTS, "--dtype"]
    assert __main__.main([*arguments, "float64"]) == 0
    wide = [[a.astype(np.float64) for a in p] for p in (all_weights, all_biases)]
    assert_written(reference.loss_and_gradients(net_input.astype(np.float64), *wide, y.astype(np.float64)))
    capsys.readouterr()
    narrow = net_input.dtype == np.float32
    assert __main__.main([*arguments, "float32"]) == (0 if narrow else 2)
    line = (
        "x.npy has dtype float64; expected float32, because .npy files are not narrowed: "
        "save it as float32, or save both arrays in one .npz file"
    )
    assert capsys.readouterr().err == ("" if narrow else f"fastbackprop gradients: {line}\n")


@BOTH_DTYPES
def test_integers_and_other_byte_orders(problem):
    net_input, all_weights, all_biases, y = problem
    small = (10 * net_input).astype(np.int8)
    np.savez("data.npz", net_input=small, y=y)
    assert __main__.main(GRADIENTS) == 0
    wide = [[a.astype(np.float64) for a in p] for p in (all_weights, all_biases)]
    assert_written(reference.loss_and_gradients(small.astype(np.float64), *wide, y.astype(np.float64)))
    swapped = net_input.astype(net_input.dtype.newbyteorder())
    np.save("x.npy", np.asfortranarray(swapped))
    dtype = net_input.dtype.name
    assert __main__.main([*ON_DISK_GRADIENTS, "--dtype", dtype]) == 0
    assert_written(reference.loss_and_gradients(*problem))


def test_check_takes_the_first_samples_of_many(problem, capsys):
    net_input, _, _, y = problem
    many = 2000 // net_input.shape[1] + 1
    np.savez("data.npz", net_input=np.tile(net_input, many), y=np.tile(y, many))
    assert __main__.main(["check", "net.npz", "data.npz"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"The first 1,000 of {many * net_input.shape[1]:,} samples:\n")
    assert "All derivatives agree." in printed


def test_check_tells_by_its_status(monkeypatch, capsys):
    for data in ["data.npz"], ["x.npy", "y.npy"]:
        assert __main__.main(["check", "net.npz", *data]) == 0
        assert "All derivatives agree." in capsys.readouterr().out
    right = fb.check_gradients

    def planted(*arguments, **options):
        _, *gradients = fb.loss_and_gradients(*arguments, **options)
        gradients[0][1][2, 3] *= 1.01
        return right(*arguments, gradients=gradients, **options)

    monkeypatch.setattr(fb, "check_gradients", planted)
    assert __main__.main(["check", "net.npz", "data.npz"]) == 1
    assert "WRONG" in capsys.readouterr().out


# What is wrong with files: how they are made, and the line that says so.


def network_with(change):
    def make(_net_input, all_weights, all_biases, _y):
        arrays = named(all_weights, all_biases)
        change(arrays)
        np.savez("net.npz", **arrays)

    return make


def data_with(**changes):
    def make(net_input, _all_weights, _all_biases, y):
        arrays = {"net_input": net_input, "y": y} | changes
        np.savez("data.npz", **{name: array for name, array in arrays.items() if array is not None})

    return make


def rename(old, new):
    return network_with(lambda arrays: arrays.update({new: arrays.pop(old)}))


def truncated(name, size):
    return lambda *_: Path(name).write_bytes(Path(name).read_bytes()[:size])


def damaged(*_):
    raw = bytearray(Path("data.npz").read_bytes())
    raw[300] ^= 255
    Path("data.npz").write_bytes(raw)


def with_a_text_member(*_):
    with zipfile.ZipFile("data.npz", "w") as archive:
        archive.writestr("net_input.npy", "1 2 3")
        archive.writestr("y.npy", "4")


def pickled(name):
    return lambda *_: Path(name).write_bytes(pickle.dumps([1, 2, 3]))


def objects(_net_input, *_):
    np.save("x.npy", np.array([[Planted()]], object), allow_pickle=True)


class Planted:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


NOT_ZIP = "cannot be read as an .npz file: File is not a zip file"
OBJECTS = "Object arrays cannot be loaded when allow_pickle=False"
OTHER_NAMES = "; pass their names, as in --names 'W{}' 'b{}'"
GAP = "; layers are numbered from 0 or 1 without gaps: save them under new names"
DATA_NAMES = "; pass their names, as in --data-names X Y"
NAMES = "weights_0, biases_0, weights_1, biases_1, weights_2, biases_2"
REFUSED = {
    "no file": (
        lambda *_: Path("net.npz").unlink(),
        "net.npz cannot be read as an .npz file: No such file or directory",
    ),
    "a folder": (
        lambda *_: (Path("data.npz").unlink(), Path("data.npz").mkdir()),
        "data.npz cannot be read as an .npz file: Is a directory",
    ),
    "an empty file": (truncated("net.npz", 0), f"net.npz {NOT_ZIP}"),
    "a truncated file": (truncated("net.npz", 500), f"net.npz {NOT_ZIP}"),
    "a pickle": (pickled("data.npz"), f"data.npz {NOT_ZIP}"),
    "one .npy": (lambda *_: Path("x.npy").rename("data.npz"), f"data.npz {NOT_ZIP}"),
    "a damaged file": (damaged, "net_input of data.npz cannot be read: Bad CRC-32 for file 'net_input.npy'"),
    "a text": (
        with_a_text_member,
        r"net_input of data.npz cannot be read: EOF: reading magic string, expected 8 bytes got 5",
    ),
    "objects": (data_with(y=np.array([[Planted()]], object)), f"y of data.npz cannot be read: {OBJECTS}"),
    "a gap": (
        rename("weights_1", "weights_3"),
        "net.npz has no weights_1; found weights_0, weights_2, biases_0, biases_1, biases_2, weights_3" + GAP,
    ),
    "no biases": (
        network_with(lambda arrays: [arrays.pop(f"biases_{k}") for k in range(3)]),
        "net.npz has no biases_0; found weights_0, weights_1, weights_2",
    ),
    "a missing last array": (
        network_with(lambda arrays: arrays.pop("biases_2")),
        "net.npz has no biases_2; found weights_0, weights_1, weights_2, biases_0, biases_1",
    ),
    "nothing": (network_with(lambda arrays: arrays.clear()), "net.npz has no weights_0; found no arrays"),
    "many others": (
        network_with(lambda arrays: (arrays.clear(), arrays.update({f"a{k}": np.ones(1) for k in range(1000)}))),
        "net.npz has no weights_0; found a0, a1, a2, a3, a4, a5, and 994 more" + OTHER_NAMES + "",
    ),
    "an array too many": (
        network_with(lambda arrays: arrays.update(epoch=np.array(3))),
        f"net.npz has epoch; expected {NAMES} and nothing else",
    ),
    "a name of two lines": (
        network_with(lambda arrays: arrays.update({"two\nlines": np.array(3)})),
        rf"net.npz has 'two\nlines'; expected {NAMES} and nothing else",
    ),
    "no y": (data_with(y=None), "data.npz has no y; found net_input" + DATA_NAMES),
    "data of other names": (
        lambda x, _w, _b, y: np.savez("data.npz", X=x, Y=y),
        "data.npz has no net_input; found X, Y" + DATA_NAMES,
    ),
    "a weight for each sample": (
        data_with(sample_weight=np.ones(600)),
        "data.npz has sample_weight; expected net_input, y and nothing else",
    ),
    "strings": (
        data_with(y=np.array([["a"]])),
        "y of data.npz has dtype <U1; expected float32 or float64 (integers count as float64)",
    ),
    "half precision": (
        network_with(lambda arrays: arrays.update(weights_1=arrays["weights_1"].astype(np.float16))),
        "weights_1 of net.npz has dtype float16; expected float32 or float64 (integers count as float64)",
    ),
    "a wrong shape in the network": (
        network_with(lambda arrays: arrays.update(weights_1=np.ones((5, 6)))),
        "all_weights[1] has shape (5, 6); expected (5, 7): its columns must match the rows of all_weights[0]",
    ),
    "samples in rows": (
        lambda x, _w, _b, y: np.savez("data.npz", net_input=x.T, y=y),
        "net_input has shape (600, 3) in its file, for 3 inputs: its samples are rows: pass --rows",
    ),
    "one sample without its axis": (
        data_with(net_input=np.ones(3)),
        "net_input has shape (3,); expected (3, N): its rows must match the columns of all_weights[0], "
        "one column for each sample (a sample is a column: reshape net_input to (3, 1))",
    ),
    "targets in rows": (
        lambda x, _w, _b, y: np.savez("data.npz", net_input=x, y=y.T),
        "y has shape (600, 2); expected (2, 600), the shape of the network's output, "
        "or (2, 1), (1, 1) or a scalar (samples are columns: transpose y)",
    ),
    "class numbers": (
        data_with(y=np.zeros(600, int)),
        "y has shape (600,); expected (2, 600), the shape of the network's output, "
        "or (2, 1), (1, 1) or a scalar (class numbers need the loss 'softmax_cross_entropy')",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("command", ["gradients", "check"])
def test_what_is_wrong_is_one_line_and_status_2(problem, fault, command, capsys):
    make, line = REFUSED[fault]
    make(*problem)
    arguments = GRADIENTS if command == "gradients" else ["check", "net.npz", "data.npz"]
    assert __main__.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err == f"fastbackprop {command}: {line}\n"
    assert not printed.out
    assert not Path("grads.npz").exists()
    assert not Path("unpickled").exists()
    assert not list(Path().glob(".*"))


def header_of(name, shape, body=b""):
    """A file whose header promises another shape than there are numbers."""

    def make(*_):
        with Path(name).open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
            file.write(body)

    return make


def bomb(shape, claimed=None):
    """A member of some kilobytes that unpacks to 16 MB of zeros, behind a header of that shape."""

    def make(*_):
        header_of("member", shape, bytes(2**24))()
        with zipfile.ZipFile("data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write("member", "net_input.npy")
            archive.writestr("y.npy", Path("y.npy").read_bytes())
        Path("member").unlink()
        if claimed is not None:  # in the directory of the archive, which counts
            raw = Path("data.npz").read_bytes()
            right = (2**24 + 128).to_bytes(4, "little")
            assert raw.count(right) == 2
            Path("data.npz").write_bytes(raw.replace(right, claimed.to_bytes(4, "little")))

    return make


LIES = {
    "a shape beyond 64 bits": ((2**40, 2**40), None),
    "a shape beyond all memory": ((2**20, 2**30), None),
    "a negative shape": ((-1, 3), None),
    "no rows of many columns": ((0, 2**62), None),
    "more numbers than promised": ((3, 600), 2**24 + 128),
    "a size that is not that of the member": ((2, 2**20), 1000),
    "fewer numbers than promised": ((2, 2**21), None),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_one_line_and_status_2(lie, capsys, problem):
    shape, claimed = LIES[lie]
    for make, arguments, line in [
        (header_of("x.npy", shape), ON_DISK_GRADIENTS, "x.npy cannot be read as an .npy file: "),
        (bomb(shape, claimed), GRADIENTS, "net_input of data.npz cannot be read: "),
    ]:
        make(*problem)
        reads = lie == "more numbers than promised" and arguments is GRADIENTS
        assert __main__.main(arguments) == (0 if reads else 2)  # what stands behind an array has never been read
        error = capsys.readouterr().err
        if not reads:
            assert error.startswith(f"fastbackprop gradients: {line}")
            assert error.count("\n") == 1
            assert not Path("grads.npz").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such names")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["check", "a\nb.npz", "data.npz"],
            r"check: a\nb.npz cannot be read as an .npz file: No such file or directory",
        ),
        (
            ["check", "net.npz", "a\rb.npz"],
            r"check: a\rb.npz cannot be read as an .npz file: No such file or directory",
        ),
        (["check", "net.npz", "x.npy", "\x1b.npy"], r"check: \x1b.npy cannot be read as an .npy file: No such file or"),
        (["check", "net.npz", "a\nb.npy"], r"check: a\nb.npy is given alone; expected one .npz file or two .npy files"),
        (
            [*GRADIENTS[:-1], "a\nb/grads.npz"],
            r"gradients: a\nb/grads.npz cannot be written: No such file or directory",
        ),
        (
            ["check", "net.npz", "\udcff.npz"],
            r"check: \udcff.npz cannot be read as an .npz file: No such file or directory",
        ),
    ],
)
def test_names_that_do_not_print_are_one_line(arguments, line, capsys):
    assert __main__.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastbackprop {line}")
    assert error.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are those of POSIX")
def test_a_write_that_fails_is_one_line_and_leaves_what_was_there():
    """In a process of its own: what Python prints of an archive that is left open comes when it ends."""
    Path("grads.npz").write_bytes(b"before")
    program = (
        "import resource, sys\n"
        "from fastbackprop.cli.main import main\n"
        "from fastbackprop.cli import files\n"
        "write = files.write_arrays\n"
        "def limited(*arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "    write(*arguments)\n"
        "files.write_arrays = limited\n"
        f"sys.exit(main({GRADIENTS!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "fastbackprop gradients: grads.npz cannot be written: File too large\n"
    assert Path("grads.npz").read_bytes() == b"before"
    assert not list(Path().glob(".*"))


ON_DISK = "x.npy cannot be read as an .npy file:"
REFUSED_ON_DISK = {
    "a pickle": (pickled("x.npy"), f"{ON_DISK} the magic string is not correct; expected b'\\x93NUMPY', got "),
    "objects": (objects, f"{ON_DISK} Array can't be memory-mapped: Python objects in dtype."),
    "truncated": (truncated("x.npy", 1000), f"{ON_DISK} mmap length is greater than file size"),
    "empty": (truncated("x.npy", 0), f"{ON_DISK} EOF: reading magic string, expected 8 bytes got 0"),
    "no file": (lambda *_: Path("x.npy").unlink(), f"{ON_DISK} No such file or directory"),
    "complex": (lambda x, *_: np.save("x.npy", x * 1j), "x.npy has dtype complex"),
    "an archive": (
        lambda *_: Path("data.npz").rename("x.npy"),
        f"{ON_DISK} the magic string is not correct; expected b'\\x93NUMPY', got b'PK",
    ),
}


@pytest.mark.parametrize("fault", REFUSED_ON_DISK)
def test_what_is_wrong_on_disk_is_one_line_and_status_2(problem, fault, capsys):
    make, line = REFUSED_ON_DISK[fault]
    make(*problem)
    assert __main__.main(ON_DISK_GRADIENTS) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastbackprop gradients: {line}")
    assert error.count("\n") == 1
    assert not Path("grads.npz").exists()
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_one_line_each(capsys, seed):
    rng = np.random.default_rng(seed)
    wrong = 0
    for name, region in ("net.npz", None), ("x.npy", 128):  # of the batch, its header: other numbers are no fault
        right = Path(name).read_bytes()
        for _ in range(60):
            raw = bytearray(right)
            for place in rng.integers(region or len(raw), size=rng.integers(1, 5)):
                raw[place] = rng.integers(256)
            Path(name).write_bytes(raw[: rng.integers(len(raw)) if rng.random() < 0.2 else None])
            status = __main__.main(ON_DISK_GRADIENTS)
            error = capsys.readouterr().err
            assert (status, error.count("\n")) in [(0, 0), (2, 1)], error
            wrong += status == 2
        Path(name).write_bytes(right)
    assert wrong > 60


@pytest.mark.parametrize("data", [["data.npz"], ["x.npy", "y.npy"]])
def test_samples_in_rows(problem, data):
    net_input, all_weights, all_biases, y = problem
    np.savez("data.npz", net_input=net_input.T, y=y.T)
    np.save("x.npy", np.ascontiguousarray(net_input.T))
    np.save("y.npy", np.ascontiguousarray(y.T))
    assert __main__.main(["gradients", "net.npz", *data, "--rows", "--out", "grads.npz", "--input-gradient"]) == 0
    *expected, dl_dinput = reference.loss_and_gradients(net_input, all_weights, all_biases, y, input_gradient=True)
    assert_written((*expected, dl_dinput.T))
    assert __main__.main(["check", "net.npz", *data, "--rows"]) == 0


def test_one_number_for_each_sample_is_neither_row_nor_column():
    all_weights, all_biases = network((3, 5, 1))
    net_input, y = batch((3, 5, 1), 50)
    np.savez("net.npz", **named(all_weights, all_biases))
    np.savez("data.npz", net_input=net_input.T, y=y[0])
    assert __main__.main([*GRADIENTS, "--rows"]) == 0
    assert_written(reference.loss_and_gradients(net_input, all_weights, all_biases, y))


def test_rows_that_stay_on_disk_are_let_go(monkeypatch):
    advised = []

    class Mapping(files.mmap.mmap):
        def madvise(self, advice):
            advised.append(advice)

    monkeypatch.setattr(files.mmap, "mmap", Mapping)
    net_input, y = files.read_data([Path("x.npy"), Path("y.npy")], rows=True)
    files.release_pages([net_input, y])
    assert len(advised) == 2 * hasattr(files.mmap, "MADV_DONTNEED")
    with pytest.raises(ValueError, match=r"because \.npy files are not narrowed"):
        files.read_data([Path("x.npy"), Path("y.npy")], np.dtype(np.float32), rows=True)


def test_columns_taken_for_rows(capsys):
    assert __main__.main([*GRADIENTS, "--rows"]) == 2
    assert capsys.readouterr().err.endswith("its samples are columns: leave out --rows\n")


@pytest.mark.parametrize("command", ["gradients", "check"])
@pytest.mark.parametrize("shape", [(2, 600), (600, 3), (599, 2), (600, 600)])
def test_targets_of_a_wrong_shape_beside_rows(problem, command, shape, capsys):
    np.savez("data.npz", net_input=problem[0].T, y=np.zeros(shape))
    arguments = GRADIENTS if command == "gradients" else ["check", "net.npz", "data.npz"]
    assert __main__.main([*arguments, "--rows"]) == 2
    found = f"y has shape {shape} in its file; expected (600, 2) with --rows: a row for each sample"
    assert capsys.readouterr().err == f"fastbackprop {command}: {found}\n"


@pytest.mark.parametrize("shape", [(600, 2), (1, 2), (600, 1), (1, 1), (600,)])
def test_class_numbers_and_targets_of_all_samples_beside_rows(problem, shape):
    y = np.zeros(shape, int) if 600 in shape and 2 not in shape else np.full(shape, 0.5)
    np.savez("data.npz", net_input=problem[0].T, y=y)
    loss = "softmax_cross_entropy" if y.dtype == int else "least_squares"
    assert __main__.main([*GRADIENTS, "--rows", "--loss", loss]) == 0


PAIRS = [("W{}", "b{}"), ("layers.{}.weight", "layers.{}.bias"), ("{}_omega2", "{}_beta"), ("net.1.w{}", "net.1.b{}")]


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("first", [0, 1])
def test_other_names(problem, names, first, capsys):
    net_input, all_weights, all_biases, y = problem
    arrays = {}
    for k, pair in enumerate(zip(all_weights, all_biases, strict=True)):
        arrays |= {name.replace("{}", str(first + k)): array for name, array in zip(names, pair, strict=True)}
    np.savez("net.npz", **arrays)
    assert __main__.main([*GRADIENTS, "--names", *names]) == 0
    assert_written(reference.loss_and_gradients(net_input, all_weights, all_biases, y))
    assert __main__.main(["check", "net.npz", "data.npz", "--names", *names]) == 0
    arrays.pop(names[1].replace("{}", str(first + 1)))
    np.savez("net.npz", **arrays)
    capsys.readouterr()
    assert __main__.main([*GRADIENTS, "--names", *names]) == 2
    missing = names[1].replace("{}", str(first + 1))
    assert capsys.readouterr().err == f"fastbackprop gradients: net.npz has no {missing}; found {', '.join(arrays)}\n"


@pytest.mark.parametrize(
    ("found", "suggested"),
    [
        ("W1 b1 W2 b2", "'W{}' 'b{}'"),
        ("fc1.bias fc1.weight fc2.bias fc2.weight", "'fc{}.weight' 'fc{}.bias'"),
        ("Omega0 beta0", "'Omega{}' 'beta{}'"),
        ("first second", "'W{}' 'b{}'"),
        ("W0 b0 epoch", "'W{}' 'b{}'"),
    ],
)
def test_other_names_are_suggested(found, suggested, capsys):
    np.savez("net.npz", **dict.fromkeys(found.split(), np.ones((1, 1))))
    assert __main__.main(GRADIENTS) == 2
    line = f"net.npz has no weights_0; found {', '.join(found.split())}; pass their names, as in --names {suggested}"
    assert capsys.readouterr().err == f"fastbackprop gradients: {line}\n"


@pytest.mark.parametrize("names", ["inputs labels", "X y", "y X", "target data", "classes features", "y_train X_train"])
def test_other_names_of_the_batch(problem, names, capsys):
    """They are suggested, the input first, and taken."""
    net_input, *_, y = problem
    inputs, target = sorted(names.split(), key=lambda name: name in ("labels", "y", "target", "classes", "y_train"))
    np.savez("data.npz", **{name: {inputs: net_input, target: y}[name] for name in names.split()})
    assert __main__.main(GRADIENTS) == 2
    found = f"data.npz has no net_input; found {', '.join(names.split())}"
    line = f"fastbackprop gradients: {found}; pass their names, as in --data-names {inputs} {target}\n"
    assert capsys.readouterr().err == line
    assert __main__.main([*GRADIENTS, "--data-names", inputs, target]) == 0
    assert_written(reference.loss_and_gradients(*problem))
    assert __main__.main(["check", "net.npz", "data.npz", "--data-names", inputs, target]) == 0


@pytest.mark.parametrize("names", ["a b", "y label", "X"])
def test_names_of_the_batch_that_say_nothing(names, capsys):
    np.savez("data.npz", **dict.fromkeys(names.split(), np.ones((3, 1))))
    assert __main__.main(GRADIENTS) == 2
    assert capsys.readouterr().err.endswith("; pass their names, as in --data-names X Y\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*GRADIENTS, "--data-names", "X", "X"], "--data-names gives 'X' twice; expected two names"),
        ([*ON_DISK_GRADIENTS, "--data-names", "X", "y"], "--data-names is given for two .npy files; expected one .npz"),
    ],
)
def test_names_of_the_batch_that_cannot_be(arguments, line, capsys):
    assert __main__.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"fastbackprop gradients: {line}")
    assert not Path("grads.npz").exists()


@pytest.mark.parametrize("name", ["W", "W{}{}", "W{k}"])
def test_names_without_a_place_for_the_layer(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main([*GRADIENTS, "--names", name, "b{}"])
    assert stopped.value.code == 2
    assert f"{name!r} has no single {{}} for the number of the layer, as in 'W{{}}'" in capsys.readouterr().err


def test_other_names_are_not_unpickled_either(capsys):
    np.savez("net.npz", W0=np.ones((1, 3)), b0=np.array([[Planted()]], object))
    assert __main__.main([*GRADIENTS, "--names", "W{}", "b{}"]) == 2
    assert capsys.readouterr().err == f"fastbackprop gradients: b0 of net.npz cannot be read: {OBJECTS}\n"
    assert not Path("unpickled").exists()


def test_layers_of_a_torch_sequential(capsys):
    found = [f"{k}.{part}" for k in (0, 2, 4) for part in ("weight", "bias")]
    np.savez("net.npz", **dict.fromkeys(found, np.ones((1, 1))))
    assert __main__.main([*GRADIENTS, "--names", "{}.weight", "{}.bias"]) == 2
    line = f"fastbackprop gradients: net.npz has no 1.weight; found {', '.join(found)}{GAP}\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("data", [["my.csv"], ["x.npy", "my.csv"]])
def test_a_table_of_text(data, capsys):
    np.savetxt("my.csv", np.ones((2, 3)), delimiter=",")
    assert __main__.main(["check", "net.npz", *data]) == 2
    line = capsys.readouterr().err
    code = "np.save('my.npy', np.loadtxt('my.csv', delimiter=','))"
    assert line == f"fastbackprop check: my.csv is not an .npy file; convert it with {code}\n"
    exec(code)
    assert np.load("my.npy").shape == (2, 3)


def test_three_files_of_data(capsys):
    assert __main__.main(["check", "net.npz", "x.npy", "y.npy", "y.npy"]) == 2
    line = "3 data files are given; expected one .npz file or two .npy files, X.npy Y.npy"
    assert capsys.readouterr().err == f"fastbackprop check: {line}\n"


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("net.npz", "it is an input"),
        ("./data.npz", "it is an input"),
        ("link.npz", "it is an input"),
        ("folder", "it is a folder"),
        ("none/grads.npz", "No such file or directory"),
        ("net.npz/grads.npz", "Not a directory"),
        (os.devnull, "it is no regular file"),
        ("n" * 300, "File name too long"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the reasons are those of POSIX")
def test_outputs_that_cannot_be(out, reason, capsys, monkeypatch):
    Path("folder").mkdir()
    Path("link.npz").symlink_to("data.npz")
    before = {name: Path(name).read_bytes() for name in ("net.npz", "data.npz")}
    monkeypatch.setattr(fb, "loss_and_gradients", lambda *_, **__: pytest.fail("computed before it was refused"))
    assert __main__.main(["gradients", "net.npz", "data.npz", "--out", out]) == 2
    assert capsys.readouterr().err == f"fastbackprop gradients: {Path(out)} cannot be written: {reason}\n"
    assert {name: Path(name).read_bytes() for name in before} == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_output(capsys):
    Path("grads.npz").touch(mode=0o444)
    assert __main__.main(GRADIENTS) == 2
    assert capsys.readouterr().err == "fastbackprop gradients: grads.npz cannot be written: it is read-only\n"


# Writing: all or nothing.


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError(errno.ENOSPC, "No space left on device"), 2), (KeyboardInterrupt(), 130), (MemoryError(), 2)],
)
def test_an_error_while_writing_leaves_what_was_there(monkeypatch, capsys, before, error, status):
    if before:
        Path("grads.npz").write_bytes(before)

    def write_array(member, _array, **_options):
        member.write(b"half")
        assert len(list(Path().glob(".*"))) == 1
        raise error

    monkeypatch.setattr(files.npy, "write_array", write_array)
    assert __main__.main(GRADIENTS) == status
    assert not list(Path().glob(".*"))
    assert Path("grads.npz").exists() == bool(before)
    if before:
        assert Path("grads.npz").read_bytes() == before
    reason = getattr(error, "strerror", None) or "MemoryError"
    line = f"fastbackprop gradients: grads.npz cannot be written: {reason}\n" if status == 2 else ""
    assert capsys.readouterr().err == line


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_a_link_stays_one_and_files_are_replaced():
    Path("folder").mkdir()
    Path("grads.npz").symlink_to("folder/real.npz")
    for _ in range(2):
        assert __main__.main(GRADIENTS) == 0
        assert Path("grads.npz").is_symlink()
        assert zipfile.is_zipfile("folder/real.npz")
    mode = Path("folder/real.npz").stat().st_mode
    Path("plain").touch()
    assert mode == Path("plain").stat().st_mode


def test_pages_of_arrays_in_memory_are_left_alone():
    array = np.arange(10_000.0)
    files.release_pages([array, array[5:]])
    np.testing.assert_array_equal(array, np.arange(10_000.0))
