"""Zeros in the place of weights (`compressor sparsify`): the same shapes, the same architecture.

Block by block a method decides which weights go and what becomes of the others. Zeros alone make
nothing smaller or faster; they are for study, and for formats that leave zeros out.
"""
