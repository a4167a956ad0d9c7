"""The kernels in other people's pruning libraries; each module needs that library and no more."""
