"""
A grid search with scikit-learn
===============================

The same grid search over networks runs twice: with scikit-learn's classes and with the classes of this package. Only
the import differs. Both find the same best network. The bars show the seconds of each search.
"""

import time

from matplotlib import pyplot as plt
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
seconds = {}
print("              grid search   cross-validation   held out   best alpha")
for name, library in ("scikit-learn", neural_network), ("fastbackprop", fastbackprop.sklearn):
    found, seconds[name] = search(library.MLPClassifier)
    accuracy = 100 * found.score(test_X, test_y)
    best = found.best_params_["mlpclassifier__alpha"]
    print(f"{name:12} {seconds[name]:11.2f} s {found.best_score_:18.3f} {accuracy:9.1f}% {best:12}")

figure, axes = plt.subplots(figsize=(7, 1.8), layout="constrained")
axes.bar_label(axes.barh(list(seconds), list(seconds.values())), fmt="%.1f s", padding=4)
axes.set(title="Grid search: 4 networks, 3 folds", xlabel="seconds", ylim=(1.5, -0.5))
figure.savefig("scikit_learn.png", dpi=150)
