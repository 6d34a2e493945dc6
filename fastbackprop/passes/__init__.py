"""Passes: how a batch goes through the network, and how its gradients are summed. Importing this compiles nothing.

A pass is a short sequence of phases (chunks.py has the scheme `chunks`); a phase is one step of backpropagation on one
tile (tile.py); a product is a register-tiled kernel (kernels/). Python decides everything else beforehand: how a
batch is cut in a plan (engine/plan.py), where rows and gradients lie in its layout (engine/layout.py).
"""
