"""fastbackprop.sklearn against scikit-learn's own classes: same losses, parameters and predictions, same behaviour."""

import importlib
import os
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="see the extra `sklearn`")

import joblib
import threadpoolctl
from scipy.sparse import csr_array
from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import fastbackprop.sklearn
from fastbackprop.sklearn import MLPClassifier, MLPRegressor

ROOT = Path(__file__).parents[1]
SAMPLES = 430  # more than a batch of 200, and 129 of them for the validation of early stopping
KINDS = ["several classes", "two classes", "several labels", "one output", "several outputs"]
TOLERANCE = {"float64": 1e-9, "float32": 2e-3}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def make_data(kind, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(SAMPLES, 6)).astype(dtype)
    hidden = np.maximum(X @ rng.normal(size=(6, 4)), 0) + 0.1 * rng.normal(size=(SAMPLES, 4))
    y = {
        "several classes": hidden.argmax(axis=1),
        "two classes": np.where(hidden[:, 0] > hidden[:, 1], 7, 3),
        "several labels": (hidden > 0.5).astype(int)[:, :3],
        "one output": hidden[:, 0],
        "several outputs": hidden[:, :2],
    }
    return X, y[kind]


def pair(kind, **parameters):
    """scikit-learn's model and ours."""
    name = "MLPRegressor" if "output" in kind else "MLPClassifier"
    options = {"hidden_layer_sizes": (12, 9), "max_iter": 15, "random_state": 0} | parameters
    return [getattr(library, name)(**options) for library in (neural_network, fastbackprop.sklearn)]


def assert_same(got, expected, tolerance=1e-9, *, dtype=True):
    """Compare numbers, arrays, or lists of them."""
    if isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for g, e in zip(got, expected, strict=True):
            assert_same(g, e, tolerance, dtype=dtype)
    else:
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
        assert np.asarray(got).dtype == np.asarray(expected).dtype or not dtype


def assert_same_fit(ours, theirs, X, tolerance=1e-9):
    """Compare all that a fit leaves behind."""
    assert set(vars(ours)) == set(vars(theirs))
    for name in ("coefs_", "intercepts_"):
        assert_same(getattr(ours, name), getattr(theirs, name), tolerance)
    for name in ("loss_", "n_iter_", "t_"):
        assert_same(getattr(ours, name), getattr(theirs, name), tolerance, dtype=False)
    if theirs.solver != "lbfgs":
        for name in ("loss_curve_", "validation_scores_", "best_validation_score_", "best_loss_"):
            found, expected = getattr(ours, name), getattr(theirs, name)
            assert (
                (found is None) if expected is None else (assert_same(found, expected, tolerance, dtype=False) is None)
            )
        assert type(ours._optimizer) is type(theirs._optimizer)
        assert set(vars(ours._optimizer)) == set(vars(theirs._optimizer))
        for name, expected in vars(theirs._optimizer).items():
            if isinstance(expected, list):
                assert_same(getattr(ours._optimizer, name), expected, tolerance, dtype=False)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(theirs, method):
            got, expected = getattr(ours, method)(X), getattr(theirs, method)(X)
            assert got.flags.c_contiguous == expected.flags.c_contiguous
            if expected.dtype.kind == "f":
                assert_same(got, expected, tolerance)
            else:
                assert np.mean(got == expected) > (0.999 if tolerance < 1e-6 else 0.98)


@pytest.fixture
def workspaces(monkeypatch):
    """The arguments of every Workspace that is made: one for each fit on the kernels."""
    made = []

    def record(*args, **options):
        made.append(options)
        return fastbackprop.Workspace(*args, **options)

    monkeypatch.setattr(fastbackprop.sklearn, "Workspace", record)
    return made


@pytest.fixture
def kernels_only(monkeypatch):
    """An error where scikit-learn's own gradient or prediction runs for a model of ours."""
    theirs = neural_network._multilayer_perceptron.BaseMultilayerPerceptron
    for name in ("_backprop", "_forward_pass_fast"):
        original = getattr(theirs, name)

        def guarded(self, *args, original=original, **options):
            assert not isinstance(self, fastbackprop.sklearn._OnKernels)
            return original(self, *args, **options)

        monkeypatch.setattr(theirs, name, guarded)


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_as_scikit_learn(kind, solver, dtype):
    X, y = make_data(kind, dtype)
    if "output" in kind:
        y = y.astype(dtype)
    theirs, ours = (
        model.fit(X, y) for model in pair(kind, solver=solver, alpha=0.05, max_iter=8 if solver == "lbfgs" else 15)
    )
    assert_same_fit(ours, theirs, X, TOLERANCE[dtype])


OPTIONS = {
    "plain momentum": {"solver": "sgd", "nesterovs_momentum": False},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1, "power_t": 0.3},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1, "max_iter": 40},
    "no shuffle": {"shuffle": False, "batch_size": 64},
    "batches of one": {"batch_size": 1, "max_iter": 2},
    "whole batches": {"batch_size": SAMPLES},
    "tolerance": {"tol": 0.1, "n_iter_no_change": 2, "max_iter": 200},
    "Adam's own": {"beta_1": 0.5, "beta_2": 0.7, "epsilon": 1e-3, "learning_rate_init": 0.01},
    "no hidden layer": {"hidden_layer_sizes": ()},
    "no penalty": {"alpha": 0.0, "solver": "lbfgs"},
}


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", ["several classes", "several outputs"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, kind, weighted, capsys):
    X, y = make_data(kind)
    sample_weight = np.random.default_rng(1).uniform(0.1, 3, SAMPLES) if weighted else None
    models, printed = pair(kind, verbose=OPTIONS[name].get("solver") != "lbfgs", **OPTIONS[name]), []
    for model in models:
        model.fit(X, y, sample_weight=sample_weight)
        printed.append(capsys.readouterr().out)
    assert_same_fit(*reversed(models), X)
    assert printed[0] == printed[1]


@pytest.mark.usefixtures("kernels_only")
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_early_stopping(kind, weighted):
    X, y = make_data(kind)
    sample_weight = np.random.default_rng(1).uniform(0.1, 3, SAMPLES) if weighted else None
    options = {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 3, "max_iter": 200}
    models = pair(kind, **options)
    for model in models:
        model.fit(X, y, sample_weight=sample_weight)
    assert_same_fit(*reversed(models), X)


def test_warnings_and_errors_of_scikit_learn():
    X, y = make_data("one output")
    for model in pair("one output", batch_size=1000):
        with pytest.warns(UserWarning, match="Got `batch_size` less than 1 or larger than sample size"):
            model.fit(X, y)
    for model in pair("one output", max_iter=2):
        with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
            model.fit(X, y)
    for model in pair("one output", early_stopping=True, validation_fraction=0.001):
        with pytest.raises(ValueError, match="The validation set is too small"):
            model.fit(X, y)
        with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
            model.partial_fit(X, y)


def test_an_interrupt_ends_the_fit(monkeypatch):
    X, y = make_data("one output")
    model, seen = MLPRegressor(random_state=0), []
    count = model._update_no_improvement_count

    def interrupt(*args):
        count(*args)
        seen.append(args)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(model, "_update_no_improvement_count", interrupt)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == 3


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("kind", KINDS)
def test_partial_fit_in_turns_with_code_of_scikit_learn(kind, solver):
    """Sparse batches run scikit-learn's own code, on the state that the kernels have left, and the other way round."""
    X, y = make_data(kind)
    models = pair(kind, solver=solver)
    for model in models:
        for part in range(6):
            rows = slice(30 * part, 30 * part + 30)
            options = {} if "output" in kind else {"classes": np.unique(y) if y.ndim == 1 else np.arange(3)}
            model.partial_fit(csr_array(X[rows]) if part % 3 == 2 else X[rows], y[rows], **options)
    assert_same_fit(*reversed(models), X)


@pytest.mark.parametrize("options", [{}, {"solver": "sgd"}, {"solver": "lbfgs"}, {"early_stopping": True}])
def test_warm_start(options):
    """The second time on wrong targets, where no validation score is better than before."""
    X, y = make_data("several classes")
    models = pair("several classes", warm_start=True, max_iter=30, learning_rate_init=0.01, **options)
    for model in models:
        model.fit(X, y)
        best = getattr(model, "best_validation_score_", None)
        model.fit(X, y[::-1])
        assert getattr(model, "best_validation_score_", None) == best
    assert_same_fit(*reversed(models), X)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")], ids=str)
def test_a_warm_start_in_another_dtype(solver, dtypes):
    X, y = make_data("one output")
    models = pair("one output", solver=solver, warm_start=True, max_iter=5)
    for model in models:
        for dtype in dtypes:
            model.fit(X.astype(dtype), y.astype(dtype))
    for got, expected in zip(*(model.coefs_ + model.intercepts_ for model in reversed(models)), strict=True):
        assert_same(got, expected, TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("kind", "options", "sparse"),
    [
        ("several classes", {"activation": "tanh"}, False),
        ("several classes", {"activation": "logistic", "solver": "lbfgs"}, False),
        ("one output", {"activation": "identity"}, False),
        ("one output", {"loss": "poisson"}, False),
        ("one output", {"loss": "poisson", "solver": "lbfgs"}, False),
        ("two classes", {}, True),
        ("several labels", {"solver": "lbfgs"}, True),
    ],
)
def test_everything_else_is_scikit_learns(kind, options, sparse, workspaces):
    """To the bit."""
    X, y = make_data(kind)
    y = abs(y) if options.get("loss") == "poisson" else y
    X = csr_array(X) if sparse else X
    theirs, ours = (model.fit(X, y) for model in pair(kind, **options))
    for got, expected in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert not workspaces


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_a_fit_makes_one_workspace(solver, workspaces):
    MLPRegressor(solver=solver, max_iter=3).fit(*make_data("one output"))
    assert workspaces == [{"num_threads": None}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [pickle.loads, joblib.load])
def test_pickles_predict_and_train_on(kind, kept, tmp_path):
    X, y = make_data(kind)
    ours = pair(kind)[1].fit(X, y)
    if kept is pickle.loads:
        copied = pickle.loads(pickle.dumps(ours))
    else:
        joblib.dump(ours, tmp_path / "model")
        copied = joblib.load(tmp_path / "model")
    np.testing.assert_array_equal(copied.predict(X), ours.predict(X))
    for model in (ours, copied):
        model.partial_fit(X, y)
    assert_same(copied.coefs_, ours.coefs_, 0)
    assert_same(copied.intercepts_, ours.intercepts_, 0)


def test_a_clone_has_the_parameters_alone():
    model = MLPClassifier((7,), alpha=0.5, random_state=3).fit(*make_data("two classes"))
    copied = clone(model)
    assert (
        copied.get_params()
        == model.get_params()
        == neural_network.MLPClassifier((7,), alpha=0.5, random_state=3).get_params()
    )
    assert not hasattr(copied, "coefs_")
    assert copied.set_params(alpha=1.0).alpha == 1.0


@pytest.mark.parametrize("values", [np.int64, np.uint8, np.float32, np.float16, bool])
def test_predictions_from_other_dtypes(values):
    X, y = make_data("several classes")
    theirs, ours = (model.fit(X, y) for model in pair("several classes"))
    other = (abs(3 * X)).astype(values)
    assert_same(ours.predict_proba(other), theirs.predict_proba(other))


def test_few_predictions_are_scikit_learns(monkeypatch):
    X, y = make_data("several classes")
    theirs, ours = (model.fit(X, y) for model in pair("several classes"))
    monkeypatch.delattr(fastbackprop.sklearn, "predict")
    assert_same(ours.predict_proba(X[:127]), theirs.predict_proba(X[:127]))
    with pytest.raises(NameError, match="predict"):
        ours.predict_proba(X[:128])


def test_parameters_set_by_hand():
    X, _ = make_data("one output")
    theirs, ours = (model.fit(X, X[:, 0]) for model in pair("one output"))
    for model in (theirs, ours):
        model.coefs_ = [np.ascontiguousarray(2 * coefs) for coefs in model.coefs_]
        model.intercepts_[0] = model.intercepts_[0] + 1
    assert_same(ours.predict(X), theirs.predict(X))


def test_nothing_of_the_data_is_changed():
    X, y = make_data("several outputs")
    weight = np.ones(SAMPLES)
    kept = [array.copy() for array in (X, y, weight)]
    for solver in ("adam", "lbfgs"):
        MLPRegressor(solver=solver, max_iter=3).fit(X, y, sample_weight=weight)
    for array, before in zip((X, y, weight), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_searches_and_pipelines():
    X, y = make_data("several classes")
    results = []
    for library in (neural_network, fastbackprop.sklearn):
        model = make_pipeline(StandardScaler(), library.MLPClassifier((8,), max_iter=10, random_state=0))
        search = GridSearchCV(
            model, {"mlpclassifier__alpha": [1e-4, 1.0, 100.0]}, cv=3, n_jobs=2, scoring="neg_log_loss"
        )
        search.fit(X, y)
        probabilities = cross_val_predict(model, X, y, cv=3, method="predict_proba", n_jobs=2)
        results.append((search.cv_results_["mean_test_score"], search.predict_proba(X), probabilities))
    assert_same(results[1], results[0])


def threads_of_a_model(X, y):
    """The num_threads of a fit and of a prediction, which are the same; None is this package's default."""
    passed = set()

    def recording(function):
        def record(*args, num_threads, **options):
            passed.add(num_threads)
            return function(*args, num_threads=num_threads, **options)

        return record

    with pytest.MonkeyPatch.context() as patch:
        for function in (fastbackprop.Workspace, fastbackprop.predict):
            patch.setattr(fastbackprop.sklearn, function.__name__, recording(function))
        MLPRegressor(max_iter=2).fit(X, y).predict(X)
    (num_threads,) = passed
    return num_threads


@pytest.mark.parametrize("setting", [None, "1"])
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_workers_of_joblib_share_the_processors(backend, setting):
    """In a process of its own, whose workers inherit the variable."""
    calls = 2 if backend == "loky" else 1  # threads share the module that the function looks into
    code = f"""
import joblib, warnings
from tests.test_sklearn_adapter import make_data, threads_of_a_model
warnings.simplefilter("ignore")
data = make_data("one output")
calls = [joblib.delayed(threads_of_a_model)(*data)] * {calls}
print(*joblib.Parallel(n_jobs=2, backend={backend!r})(calls), threads_of_a_model(*data))
"""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    environment |= {} if setting is None else {"FASTBACKPROP_NUM_THREADS": setting}
    printed = run([sys.executable, "-c", code], environment).split()
    share = str(max(joblib.cpu_count() // 2, 1)) if backend == "loky" else "1"
    assert printed == [share if setting is None else "None"] * calls + ["None"]


def run(command, environment):
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_scikit_learns_own_tests(tmp_path):
    """The whole of its test module for these classes, with the classes replaced before it is imported."""
    (tmp_path / "replaced.py").write_text(
        "import sklearn.neural_network as theirs, fastbackprop.sklearn as ours\n"
        "theirs.MLPClassifier, theirs.MLPRegressor = ours.MLPClassifier, ours.MLPRegressor\n"
        "def pytest_collection_modifyitems(items):\n"
        "    (module,) = {item.module for item in items}\n"
        "    assert module.MLPClassifier is ours.MLPClassifier\n"
        "    assert module.MLPRegressor is ours.MLPRegressor\n"
    )
    module = "sklearn.neural_network.tests.test_mlp"
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "replaced", "--pyargs", module]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    printed = run([sys.executable, "-m", "pytest", *options], environment)
    assert int(printed.split(" passed")[0].split()[-1]) > 50


@pytest.mark.parametrize(
    "model",
    [MLPClassifier(max_iter=100), MLPRegressor(max_iter=100), MLPRegressor(max_iter=100, solver="lbfgs")],
    ids=str,
)
def test_check_estimator(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few iterations, and of checks that are skipped
        check_estimator(model)


@pytest.mark.parametrize(
    ("version", "reason"), [(None, "import of sklearn"), ("1.6.2", "scikit-learn 1.6.2 is too old")]
)
def test_a_missing_or_old_scikit_learn_is_told(version, reason, monkeypatch):
    sklearn = sys.modules["sklearn"]
    if version is None:
        monkeypatch.setitem(sys.modules, "sklearn", None)
    else:
        monkeypatch.setattr(sklearn, "__version__", version)
    monkeypatch.delitem(sys.modules, "fastbackprop.sklearn")
    expected = r"fastbackprop.sklearn needs scikit-learn 1.7 or newer: pip install 'fastbackprop\[sklearn\]'"
    with pytest.raises(ImportError, match=expected) as raised:
        importlib.import_module("fastbackprop.sklearn")
    assert reason in str(raised.value.__cause__)


def test_the_package_does_not_import_scikit_learn():
    code = "import sys, fastbackprop; print('sklearn' in sys.modules, 'scipy' in sys.modules)"
    assert run([sys.executable, "-c", code], os.environ).split() == ["False", "False"]


def blas_threads():
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_blas_has_one_thread_while_lbfgs_runs(monkeypatch):
    """Its threads would spin beside those of the kernels. Afterwards it has as many as before, also after an error."""
    X, y = make_data("one output")
    _, model = pair("one output", solver="lbfgs")
    seen, differentiate = [], fastbackprop.sklearn._Network.differentiate

    def watched(*args):
        seen.append(blas_threads())
        return differentiate(*args)

    if not blas_threads():
        pytest.skip("threadpoolctl does not know this BLAS")
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        monkeypatch.setattr(fastbackprop.sklearn._Network, "differentiate", watched)
        model.fit(X, y)
        assert len(seen) > 10
        assert all(threads == {1} for threads in seen)
        assert blas_threads() == {3}
        monkeypatch.setattr(fastbackprop.sklearn._Network, "differentiate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.fit(X, y)
        assert blas_threads() == {3}


def test_fits_at_once_leave_blas_its_threads(monkeypatch):
    """The first one to begin ends first. threadpoolctl alone would leave one thread for the rest of the process."""
    before, differentiate = blas_threads(), fastbackprop.sklearn._Network.differentiate
    X, y = make_data("one output")
    both_run, first_ended = threading.Barrier(2), threading.Event()
    name = threading.local()

    def watched(*args):
        if not hasattr(name, "waited"):
            name.waited = True
            both_run.wait(60)
            assert name.ends_first or first_ended.wait(60)
        return differentiate(*args)

    def fit(ends_first):
        name.ends_first = ends_first
        pair("one output", solver="lbfgs")[1].fit(X, y)
        if ends_first:
            first_ended.set()

    monkeypatch.setattr(fastbackprop.sklearn._Network, "differentiate", watched)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fit, (True, False)))
    assert blas_threads() == before
