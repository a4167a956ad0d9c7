"""Maps the folders to import names; everything else is in pyproject.toml.

`compressor/` is the package and `kernels/` is `compressor.kernels`. A top-level `kernels` must never
be installed: transformers imports a package of that name.
"""

from setuptools import find_packages, setup

setup(
    package_dir={"compressor": "compressor", "compressor.kernels": "kernels"},
    packages=[
        "compressor",
        *(f"compressor.{name}" for name in find_packages("compressor")),
        "compressor.kernels",
    ],
    package_data={"compressor": ["py.typed", "held_out_modules.txt"]},
)
