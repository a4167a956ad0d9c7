"""Repair: what a cut model computes is fitted to what the dense one computes, block by block.

The kinds of repair are in `config/repair.py`, the closed form in `solvers/ridge.py`, the training in
`refine.py`; in which order a model is repaired says `streaming.py`.
"""
