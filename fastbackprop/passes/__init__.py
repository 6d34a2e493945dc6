"""Passes: how a batch goes through the network, and how its gradients are summed. Importing this compiles nothing.

A pass is what every thread of a call runs. Most passes are a loop over tiles (chunks.py) that calls a tile function: a
short sequence of phases (gradient.py). A phase is one step of backpropagation on one tile (tile.py). Phases call
products, which are kernels, by address. Python decides everything else beforehand: how a batch is cut in a plan
(engine/plan.py), where rows and gradients lie in its layout (engine/layout.py).
"""
