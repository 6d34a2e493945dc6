"""Passes: how a batch goes through the network, and how its gradients are summed. Importing this compiles nothing.

A pass is a loop over tiles (chunks.py). What it does with a tile is a short sequence of phases (gradient.py). A phase
is one step of backpropagation on one tile (tile.py). A product is a register-tiled kernel (kernels/). Python decides
everything else beforehand: how a batch is cut in a plan (engine/plan.py), where rows and gradients lie in its layout
(engine/layout.py).
"""
