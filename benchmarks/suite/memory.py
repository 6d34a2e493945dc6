"""Peak memory of a process that takes the gradient of a large batch; `peakmem_arguments` is what the others start from.

NumPy keeps every activation; the package keeps nothing that grows with the batch.
"""

from benchmarks import cases
from benchmarks.suite import base


class Memory(base._Calls):
    params = ([cases.Case(16, 64, 4, 4, samples) for samples in (1000, 100_000)], cases.DTYPES)

    def peakmem_arguments(self, *_):
        pass

    def peakmem_fastbackprop(self, *_):
        self.ours()

    def peakmem_numpy(self, *_):
        self.numpy()
