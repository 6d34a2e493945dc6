"""Gradients against central differences of a forward pass in plain NumPy and float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastbackprop import reference
from fastbackprop.arguments.batch import Batch, check_callables
from fastbackprop.arguments.checks import Array, Gradients, Loss, check_gradient_lists, check_tolerance, shown
from fastbackprop.gradients import loss_and_gradients

EVERY_ENTRY = 2**28  # multiply-adds: 187 parameters and 3838 samples, just as many, took 12 s
TOLERANCE = {"float32": 2e-4, "float64": 1e-6}
ROUNDINGS = 16  # units in the last place of each term of a gradient: a path through some layers, three sigma
SHOWN = 10  # of the entries of one array that differ
STEP = np.finfo(np.float64).eps ** (1 / 3)

_Direction = tuple[tuple[int, ...] | None, Array]
"""The index of an entry of an array, None for a random direction, and the direction as an array."""


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
    """A preactivation changes its sign between the two points, and `got` is a derivative at one side of such a kink."""

    @property
    def agrees(self) -> bool:
        """Whether the two values are equal within the tolerance."""
        return bool(np.isfinite(self.got)) and abs(self.got - self.expected) <= self.tolerance

    def __str__(self) -> str:
        where = "a random direction" if self.index is None else f"[{', '.join(map(str, self.index))}]"
        finite = np.isfinite(self.got) and np.isfinite(self.expected)
        state = "agrees" if self.agrees else "at a ReLU kink" if self.kink else "WRONG" if finite else "not finite"
        return (
            f"{self.parameter}[{self.layer}] {where}: got {self.got:.9g}, expected {self.expected:.9g}, "
            f"tolerance {self.tolerance:.2g}: {state}"
        )


@dataclass(frozen=True, repr=False)
class Report:
    """The result of check_gradients. ``print(report)`` shows it."""

    entries: list[Entry]

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
        """Whether no entry failed and at least one could be compared."""
        return not self.failures and len(self.kinks) < len(self.entries)

    def raise_if_failed(self) -> None:
        """Raise AssertionError with this report unless it passed."""
        if not self.passed:
            raise AssertionError(str(self))

    def __repr__(self) -> str:
        counts = f"{len(self.entries)} entries, {len(self.failures)} failures, {len(self.kinks)} at kinks"
        return f"<Report: {'passed' if self.passed else 'FAILED'}, {counts}>"

    def __str__(self) -> str:
        text = []
        for (parameter, layer), group in itertools.groupby(self.entries, lambda entry: (entry.parameter, entry.layer)):
            entries = list(group)
            apart = [entry for entry in entries if not entry.agrees]
            largest = max(abs(entry.got - entry.expected) for entry in entries)
            scale = max(abs(entry.expected) for entry in entries)
            kind = "random directions" if entries[0].index is None else "derivatives"
            text.append(
                f"{parameter}[{layer}]: {len(entries) - len(apart)} of {len(entries)} {kind} agree, "
                f"largest difference {largest:.1e} (largest derivative {scale:.1e})"
            )
            text += [f"    {entry}" for entry in apart[:SHOWN]]
            if len(apart) > SHOWN:
                text.append(f"    and {len(apart) - SHOWN} more")
        failures = self.failures
        infinite = sum(not np.isfinite(entry.expected) for entry in failures)
        verdict = f"{len(failures) - infinite} derivatives are WRONG."
        if infinite:
            others = f" {verdict}" if len(failures) > infinite else ""
            verdict = f"{infinite} derivatives could not be compared: differences of losses are not finite.{others}"
        if not failures:
            where = " along the random directions" if self.entries[0].index is None else ""
            verdict = f"All {'others' if self.kinks else 'derivatives'} agree{where}."
        if self.kinks:
            verdict = f"{len(self.kinks)} derivatives lie at a ReLU kink and could not be compared. {verdict}"
        return "\n".join([*text, verdict])


@np.errstate(all="ignore")  # losses that overflow are part of the report
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
        The gradients to check, such as those of your own backward pass. The default is :func:`loss_and_gradients`.
    tolerance : float, optional
        The largest allowed difference, relative to the largest derivative of the same array. The default is 1e-6 for
        float64 and 2e-4 for float32. The rounding errors of the central difference and of the gradient are added to
        it: near a minimum, the terms of the gradient cancel, and only rounding errors are left.
    every_entry : bool, optional
        Check each parameter, or only one random direction through each array. By default, every parameter is checked
        unless this takes more than about ten seconds.
    seed : int
        The seed of the random directions.
    raise_on_failure : bool
        Raise an AssertionError if a derivative is wrong.

    Returns
    -------
    report : Report
        ``print(report)`` is for people; ``report.passed``, ``report.failures``, ``report.kinks`` and
        ``report.entries`` (layer, parameter, index, got, expected, tolerance, kink) are for programs.

    Raises
    ------
    AssertionError
        With the report as its text, if ``raise_on_failure`` is true and a derivative is wrong.
    ValueError, TypeError
        As :func:`loss_and_gradients`.

    Notes
    -----
    The loss is evaluated in float64 by :mod:`fastbackprop.reference`, at both sides of each parameter (in a fixed
    random direction v for large networks, where g^T v is compared). A ReLU that switches between the two points
    makes the difference wrong, not the gradient; the step is then made smaller twice. If a ReLU still switches, as
    where weights and biases start at 0, the difference is taken again with every ReLU kept on or off: as it is at the
    point, at either side of it, and on at a preactivation of exactly 0. A gradient in the range of these derivatives is
    reported to be at a kink. Its derivative there is 0 by convention, which no difference can confirm.

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
    tolerance = TOLERANCE[batch.dtype.name] if tolerance is None else check_tolerance(tolerance)
    try:
        rng = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed is {shown(seed)}; expected a whole number from 0 up") from None
    if isinstance(loss, str):
        batch.set_loss(y, loss, reduction, sample_weight)
    else:
        check_callables(loss, reduction, sample_weight)
    if gradients is None:
        _, *computed = loss_and_gradients(
            net_input, all_weights, all_biases, y, loss=loss, reduction=reduction, sample_weight=sample_weight
        )
        gradients = computed[0], computed[1]
    check_gradient_lists(gradients, (batch.shapes.weights, batch.shapes.biases), "gradients")
    problem = _Problem(batch, loss, y, reduction, sample_weight)
    rounding = problem.rounding(np.finfo(batch.dtype).eps)
    sizes = [array.size for array in [*batch.weights, *batch.biases]]
    if every_entry is None:
        every_entry = 2 * sum(sizes) ** 2 * max(batch.samples, 1) <= EVERY_ENTRY
    entries: list[Entry] = []
    for layer in range(len(batch.weights)):
        for part in range(2):
            gradient = np.asarray(gradients[part][layer], np.float64)
            directions = _directions(gradient.shape, every_entry, rng)
            entries += problem.compare(part, layer, gradient, rounding[part][layer], tolerance, directions)
    report = Report(entries)
    if raise_on_failure:
        report.raise_if_failed()
    return report


def _directions(shape: tuple[int, ...], every_entry: bool, rng: np.random.Generator) -> Iterator[_Direction]:
    if every_entry:
        for index in np.ndindex(shape):
            direction = np.zeros(shape)
            direction[index] = 1.0
            yield index, direction
    else:
        yield None, rng.standard_normal(shape)


class _Problem:
    """The loss as a function of the parameters, in float64."""

    def __init__(self, batch: Batch, loss: Loss, y: Any, reduction: str, sample_weight: ArrayLike | None) -> None:
        self.parameters = [
            [np.asarray(array, np.float64) for array in arrays] for arrays in (batch.weights, batch.biases)
        ]
        self.net_input = np.asarray(batch.net_input, np.float64)
        self.y = batch.target if isinstance(loss, str) else y
        self.loss, self.reduction, self.sample_weight = loss, reduction, sample_weight

    def compare(
        self,
        part: int,
        layer: int,
        gradient: Array,
        rounding: Array,
        tolerance: float,
        directions: Iterable[_Direction],
    ) -> Iterator[Entry]:
        """The comparisons of one array of a gradient, which rounding may change by that much."""
        length, largest = float(np.linalg.norm(gradient)), float(np.max(np.abs(gradient)))
        for index, direction in directions:
            expected, noise, is_at_kink = self.difference(part, layer, direction)
            if index is None:
                got, spread, scale = float(np.sum(gradient * direction)), np.linalg.norm(rounding * direction), length
            else:
                got, spread, scale = float(gradient[index]), rounding[index], largest
            allowed = float(tolerance * max(scale if np.isfinite(scale) else 0.0, abs(expected)) + noise + spread)
            kink = False
            if is_at_kink and not abs(got - expected) <= allowed:
                least, most = self.range_at_kink(part, layer, direction)
                kink = bool(least - allowed <= got <= most + allowed)
            yield Entry(layer, ("all_weights", "all_biases")[part], index, got, expected, allowed, kink)

    def evaluate(self, part: int, layer: int, change: Array) -> tuple[float, list[Array]]:
        """The loss with one array of parameters changed, and the preactivations."""
        lists = self.changed(part, layer, change)
        net_output, all_f, _ = reference.compute_network_output(self.net_input, *lists)
        return self.value(net_output), all_f[:-1]

    def evaluate_with(self, on: list[Array], part: int, layer: int, change: Array) -> float:
        """The loss with one array of parameters changed, and every ReLU kept on or off."""
        all_weights, all_biases = self.changed(part, layer, change)
        h = self.net_input
        for weights, biases, is_on in zip(all_weights[:-1], all_biases[:-1], on, strict=True):
            h = (weights @ h + biases.reshape(-1, 1)) * is_on
        return self.value(all_weights[-1] @ h + all_biases[-1].reshape(-1, 1))

    def changed(self, part: int, layer: int, change: Array) -> list[list[Array]]:
        """The parameters with one array of them changed."""
        lists = [list(arrays) for arrays in self.parameters]
        lists[part][layer] = lists[part][layer] + change
        return lists

    def value(self, net_output: Array) -> float:
        """The loss of an output."""
        return reference.loss_value(net_output, self.y, self.loss, self.reduction, self.sample_weight)

    def rounding(self, eps: float) -> tuple[list[Array], list[Array]]:
        """How much each derivative may be off for rounding: its terms are off at random, by a few units each.

        The variance of dl/df goes back through the layers as dl/df itself does, with squared weights. At the output
        it is that of the derivative of the loss and of what a rounded output changes in it.
        """
        weights, biases = self.parameters
        net_output, all_f, all_h = reference.compute_network_output(self.net_input, weights, biases)
        slope = self.derivative(net_output)
        change = (self.derivative(net_output * (1 + STEP)) - slope) / STEP
        variance = (ROUNDINGS * eps) ** 2 * (slope**2 + change**2)
        squares = [w**2 for w in weights], biases, all_f, [h**2 for h in all_h]
        by_weights, by_biases = reference.backward_pass(*squares, 0.0, loss=lambda *_: variance)
        return [np.sqrt(v) for v in by_weights], [np.sqrt(v) for v in by_biases]

    def derivative(self, net_output: Array) -> Array:
        """The derivative of the loss by the output."""
        return reference.loss_derivative(net_output, self.y, self.loss, self.reduction, self.sample_weight)

    def difference(self, part: int, layer: int, direction: Array) -> tuple[float, float, bool]:
        """The central difference along a direction, its rounding error, and whether a ReLU switches within it."""
        is_at_kink = False
        for step in self.steps(part, layer, direction):
            right, f_right = self.evaluate(part, layer, step * direction)
            left, f_left = self.evaluate(part, layer, -step * direction)
            is_at_kink = any(np.any((a > 0) != (b > 0)) for a, b in zip(f_left, f_right, strict=True))
            if not is_at_kink:
                break
        # Each loss is a sum with a relative error of a few units in the last place.
        noise = 64 * np.finfo(np.float64).eps * max(abs(left), abs(right)) / step
        return (right - left) / (2 * step), noise, is_at_kink

    def range_at_kink(self, part: int, layer: int, direction: Array) -> tuple[float, float]:
        """The least and the largest derivative along a direction with every ReLU kept on or off.

        They are kept as they are at the point, where the derivative at 0 is 0 or 1, and as they are beside it.
        """
        first, *_, last = self.steps(part, layer, direction)
        here, right, left = (self.evaluate(part, layer, step * direction)[1] for step in (0.0, last, -last))
        found = []
        for on in [f > 0 for f in here], [f >= 0 for f in here], [f > 0 for f in right], [f > 0 for f in left]:
            ahead, behind = (self.evaluate_with(on, part, layer, step * direction) for step in (first, -first))
            found.append((ahead - behind) / (2 * first))
        return min(found), max(found)

    def steps(self, part: int, layer: int, direction: Array) -> list[float]:
        """The steps of a difference: the first one, then smaller ones for ReLUs that switch within it."""
        size = max(1.0, float(np.max(np.abs(self.parameters[part][layer])))) / float(np.max(np.abs(direction)))
        return [STEP * size, STEP * size / 16, STEP * size / 256]
