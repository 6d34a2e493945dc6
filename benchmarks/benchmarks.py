"""Times of the notebooks' network: both passes of the drop-in interface and the fused path, beside plain NumPy."""

import fastbackprop
from benchmarks.cases import NOTEBOOK, Case, batch, network
from fastbackprop import reference

CASES = [Case(NOTEBOOK.inputs, NOTEBOOK.width, NOTEBOOK.outputs, NOTEBOOK.hidden, n) for n in (1, 1000, 1_000_000)]


class Notebook:
    """The notebooks' network at a few batch sizes; fastbackprop and NumPy timed side by side."""

    params = (CASES, ["float64", "float32"])
    param_names = ("case", "dtype")

    def setup(self, case, dtype):
        self.parameters = network(case.layer_sizes, dtype)
        self.net_input, self.y = batch(case.layer_sizes, case.samples, dtype)
        _, *self.passed = reference.compute_network_output(self.net_input, *self.parameters)
        self.workspace = fastbackprop.Workspace(case.layer_sizes, dtype)
        fastbackprop.warmup(dtype)

    def time_forward(self, _case, _dtype):
        fastbackprop.compute_network_output(self.net_input, *self.parameters)

    def time_forward_numpy(self, _case, _dtype):
        reference.compute_network_output(self.net_input, *self.parameters)

    def time_backward(self, _case, _dtype):
        fastbackprop.backward_pass(*self.parameters, *self.passed, self.y)

    def time_backward_numpy(self, _case, _dtype):
        reference.backward_pass(*self.parameters, *self.passed, self.y)

    def time_fused(self, _case, _dtype):
        self.workspace.loss_and_gradients(self.net_input, *self.parameters, self.y)

    def time_fused_numpy(self, _case, _dtype):
        reference.loss_and_gradients(self.net_input, *self.parameters, self.y)
