"""What pyproject.toml cannot say: that there is an engine to build."""

from setuptools import setup

setup(cffi_modules=["pcapext/engine/build.py:builder"], options={"bdist_wheel": {"py_limited_api": "cp310"}})
