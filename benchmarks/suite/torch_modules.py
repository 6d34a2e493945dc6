"""fastbackprop.torch beside PyTorch's own module: forward, loss and backward."""

import importlib.util

from benchmarks import cases, pytorch, timing


class TorchModules:
    params = (cases.TORCH, cases.DTYPES)
    param_names = ("case", "dtype")
    timeout = 600

    def setup(self, case, dtype):
        if importlib.util.find_spec("torch") is None:
            raise NotImplementedError("PyTorch is not installed")  # has asv leave it out
        self.steps = pytorch.steps(case, dtype, compiled=False)
        for step in self.steps.values():
            step()

    def time_module(self, *_):
        self.steps["module"]()

    def time_fused(self, *_):
        self.steps["fused"]()

    def track_module_over_torch(self, *_):
        return timing.over(self.steps["module"], self.steps["eager"])

    def track_fused_over_torch(self, *_):
        return timing.over(self.steps["fused"], self.steps["eager"])

    track_module_over_torch.unit = track_fused_over_torch.unit = "of PyTorch's time"
