"""Passes: how a batch goes through the network, and how its gradients are summed. Importing this compiles nothing.

A pass is a short schedule of phases; a phase is one step of backpropagation on one tile (tile.py); a product is a
register-tiled kernel (kernels/). Python decides everything else beforehand, in a plan (engine/plan.py).
"""
