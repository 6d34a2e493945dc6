"""Gradients against central differences of a forward pass in plain NumPy and float64."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop import reference
from fastbackprop.gradients import loss_and_gradients
from fastbackprop.validation import Array, Batch, Gradients, Loss, check_gradient_lists, check_weighting

EVERY_ENTRY = 2**28  # multiply-adds; about a second
TOLERANCE = {"float32": 2e-4, "float64": 1e-6}
SHOWN = 10  # of the entries of one array that differ
STEP = np.finfo(np.float64).eps ** (1 / 3)


@dataclass(frozen=True)
class Entry:
    """One comparison: a derivative by one parameter, or along one direction in an array of parameters."""

    layer: int
    parameter: str
    index: tuple[int, ...] | None
    """The entry of the array; None for a direction through all of it."""
    got: float
    expected: float
    tolerance: float
    kink: bool
    """A preactivation changes its sign between the two points: the difference is no derivative."""

    @property
    def agrees(self) -> bool:
        """Whether the two values are equal within the tolerance."""
        return abs(self.got - self.expected) <= self.tolerance

    def __str__(self) -> str:
        where = "a random direction" if self.index is None else f"[{', '.join(map(str, self.index))}]"
        state = "agrees" if self.agrees else "at a ReLU kink" if self.kink else "WRONG"
        return (
            f"{self.parameter}[{self.layer}] {where}: got {self.got:.9g}, expected {self.expected:.9g}, "
            f"tolerance {self.tolerance:.2g}: {state}"
        )


@dataclass(frozen=True)
class Report:
    """What check_gradients found."""

    entries: list[Entry] = field(repr=False)

    @property
    def failures(self) -> list[Entry]:
        """The entries that differ although no kink explains it."""
        return [entry for entry in self.entries if not (entry.agrees or entry.kink)]

    @property
    def kinks(self) -> list[Entry]:
        """The entries that differ, with a ReLU kink between the two evaluation points: no error of the gradient."""
        return [entry for entry in self.entries if entry.kink and not entry.agrees]

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and at least something could be compared."""
        return not self.failures and len(self.kinks) < len(self.entries)

    def raise_if_failed(self) -> None:
        """Raise AssertionError with this report unless it passed."""
        if not self.passed:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        text = []
        for (parameter, layer), group in itertools.groupby(self.entries, lambda entry: (entry.parameter, entry.layer)):
            entries = list(group)
            apart = [entry for entry in entries if not entry.agrees]
            largest = max(abs(entry.got - entry.expected) for entry in entries)
            scale = max(abs(entry.expected) for entry in entries)
            text.append(
                f"{parameter}[{layer}]: {len(entries) - len(apart)} of {len(entries)} derivatives agree, "
                f"largest difference {largest:.1e} (largest derivative {scale:.1e})"
            )
            text += [f"    {entry}" for entry in apart[:SHOWN]]
            if len(apart) > SHOWN:
                text.append(f"    and {len(apart) - SHOWN} more")
        verdict = "All derivatives agree." if self.passed else f"{len(self.failures)} derivatives are WRONG."
        if self.kinks:
            verdict += f" {len(self.kinks)} lie at a ReLU kink and could not be compared."
        return "\n".join([*text, verdict])


def check_gradients(
    net_input: ArrayLike,
    all_weights: Sequence[ArrayLike],
    all_biases: Sequence[ArrayLike],
    y: Any,
    *,
    loss: Loss = "least_squares",
    reduction: str = "sum",
    sample_weight: ArrayLike | None = None,
    gradients: Gradients | None = None,
    tolerance: float | None = None,
    every_entry: bool | None = None,
    seed: int = 0,
    raise_on_failure: bool = False,
) -> Report:
    """Compare gradients with central differences.

    Parameters
    ----------
    net_input, all_weights, all_biases, y, loss, reduction, sample_weight
        As for :func:`loss_and_gradients`.
    gradients : (all_dl_dweights, all_dl_dbiases), optional
        What to check, such as the result of your own backward pass; the default is :func:`loss_and_gradients`.
    tolerance : float, optional
        Of a difference, relative to the largest derivative of the same array; 1e-6 for float64 and 2e-4 for float32,
        to which the rounding error of the difference itself is added.
    every_entry : bool, optional
        Check each parameter, or only one random direction through each array. The default is every entry, unless
        that takes more than about a second.
    seed : int
        For the random directions.
    raise_on_failure : bool
        Raise where a derivative is wrong.

    Returns
    -------
    report : Report
        ``print(report)`` is for people; ``report.passed``, ``report.failures``, ``report.kinks`` and
        ``report.entries`` (layer, parameter, index, got, expected, tolerance, kink) are for programs.

    Raises
    ------
    AssertionError
        With the report as its text, where ``raise_on_failure`` is true and a derivative is wrong.
    ValueError, TypeError
        As :func:`loss_and_gradients`.

    Notes
    -----
    The loss is evaluated in float64 by :mod:`fastbackprop.reference`, at both sides of each parameter (in a fixed
    random direction v for large networks, where g^T v is compared). A ReLU that switches between the two points
    makes the difference wrong, not the gradient; the step is then made smaller twice before giving up. At a
    preactivation of exactly 0 the derivative is 0 by convention, which no difference can confirm.

    Examples
    --------
    >>> import numpy as np
    >>> from fastbackprop import check_gradients
    >>> weights, biases = [np.array([[2.0], [1.0]]), np.array([[1.0, -1.0]])], [np.zeros((2, 1)), np.zeros((1, 1))]
    >>> report = check_gradients(np.array([[1.0, -3.0]]), weights, biases, y=3.0)
    >>> report.passed, len(report.entries)
    (True, 7)
    """
    batch = Batch(net_input, all_weights, all_biases)
    batch.set_target(y, loss)
    check_weighting(reduction, sample_weight, batch.samples)
    if gradients is None:
        _, *computed = loss_and_gradients(
            net_input, all_weights, all_biases, y, loss=loss, reduction=reduction, sample_weight=sample_weight
        )
        gradients = computed[0], computed[1]
    check_gradient_lists(gradients, batch.weights, batch.biases, "gradients")
    problem = _Problem(batch, loss, reduction, sample_weight)
    sizes = [array.size for array in [*batch.weights, *batch.biases]]
    if every_entry is None:
        every_entry = 2 * sum(sizes) ** 2 * max(batch.samples, 1) <= EVERY_ENTRY
    if tolerance is None:
        tolerance = TOLERANCE[batch.dtype.name]
    rng = np.random.default_rng(seed)
    entries = []
    for layer in range(len(batch.weights)):
        for parameter, part in ("all_weights", 0), ("all_biases", 1):
            gradient = np.asarray(gradients[part][layer], np.float64)
            for index, direction in _directions(gradient.shape, every_entry, rng):
                expected, noise, kink = problem.difference(part, layer, direction)
                scale = np.max(np.abs(gradient)) * np.linalg.norm(direction)
                if index is None:
                    scale = np.linalg.norm(gradient) * np.linalg.norm(direction) / np.sqrt(direction.size)
                got = float(np.sum(gradient * direction))
                allowed = float(tolerance * max(scale, abs(expected)) + noise)
                entries.append(Entry(layer, parameter, index, got, expected, allowed, kink))
    report = Report(entries)
    if raise_on_failure:
        report.raise_if_failed()
    return report


def _directions(
    shape: tuple[int, ...], every_entry: bool, rng: np.random.Generator
) -> Iterator[tuple[tuple[int, ...] | None, Array]]:
    if every_entry:
        for index in np.ndindex(shape):
            direction = np.zeros(shape)
            direction[index] = 1.0
            yield index, direction
    else:
        yield None, rng.standard_normal(shape)


class _Problem:
    """The loss as a function of the parameters, in float64."""

    def __init__(self, batch: Batch, loss: Loss, reduction: str, sample_weight: ArrayLike | None) -> None:
        self.parameters = [
            [np.asarray(array, np.float64) for array in arrays] for arrays in (batch.weights, batch.biases)
        ]
        self.net_input = np.asarray(batch.net_input, np.float64)
        self.y = np.asarray(batch.target, np.float64) if isinstance(loss, str) else batch.target
        self.loss, self.reduction, self.sample_weight = loss, reduction, sample_weight

    def evaluate(self, part: int, layer: int, change: Array) -> tuple[float, list[Array]]:
        """The loss with one array of parameters changed, and which units are on."""
        lists = [list(arrays) for arrays in self.parameters]
        lists[part][layer] = lists[part][layer] + change
        net_output, all_f, _ = reference.compute_network_output(self.net_input, *lists)
        value = reference.loss_value(net_output, self.y, self.loss, self.reduction, self.sample_weight)
        return value, [f > 0 for f in all_f[:-1]]

    def difference(self, part: int, layer: int, direction: Array) -> tuple[float, float, bool]:
        """The central difference along a direction, its rounding error, and whether a ReLU switches in between."""
        size = max(1.0, float(np.max(np.abs(self.parameters[part][layer])))) / float(np.max(np.abs(direction)))
        for step in (STEP * size, STEP * size / 16, STEP * size / 256):
            right, on_right = self.evaluate(part, layer, step * direction)
            left, on_left = self.evaluate(part, layer, -step * direction)
            kink = any(not np.array_equal(a, b) for a, b in zip(on_left, on_right, strict=True))
            if not kink:
                break
        # Each loss is a sum with a relative error of a few units in the last place.
        noise = 64 * np.finfo(np.float64).eps * max(abs(left), abs(right)) / step
        return float((right - left) / (2 * step)), float(noise), kink
