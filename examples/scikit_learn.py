"""A grid search over networks of scikit-learn, and the same search with this package's classes: same result, sooner.

Only the import differs. Both libraries train the same networks from the same random_state.
"""

import time

from sklearn import neural_network
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import fastbackprop.sklearn

GRID = {"mlpclassifier__alpha": [1e-3, 1.0], "mlpclassifier__hidden_layer_sizes": [(50,), (50, 50)]}

X, y = load_digits(return_X_y=True)
train_X, test_X, train_y, test_y = train_test_split(X, y, stratify=y, random_state=0)


def search(mlp_classifier):
    """The fitted search, and its seconds."""
    network = mlp_classifier(tol=0.01, random_state=0)
    found = GridSearchCV(make_pipeline(MinMaxScaler(), network), GRID, cv=3)
    start = time.perf_counter()
    found.fit(train_X, train_y)
    return found, time.perf_counter() - start


fastbackprop.warmup("float64")  # compiles the kernels before anything is timed
print("              grid search   cross-validation   held out   best alpha")
for name, library in ("scikit-learn", neural_network), ("fastbackprop", fastbackprop.sklearn):
    found, seconds = search(library.MLPClassifier)
    accuracy = 100 * found.score(test_X, test_y)
    best = found.best_params_["mlpclassifier__alpha"]
    print(f"{name:12} {seconds:11.2f} s {found.best_score_:18.3f} {accuracy:9.1f}% {best:12}")
