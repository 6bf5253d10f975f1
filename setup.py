"""What pyproject.toml cannot say: that there is an engine to build, in C."""

import sysconfig

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError

NEEDS = """\
pcapext's engine is written in C, and could not be built: {reason}.
It needs a C compiler and Python's headers, Python.h; what is missing stands above. To install them:
  Debian, Ubuntu:  apt install gcc libc6-dev python3-dev
  Fedora, RHEL:    dnf install gcc glibc-devel python3-devel
  Alpine:          apk add gcc musl-dev python3-dev
  Arch:            pacman -S gcc"""


class BuildEngine(build_ext):
    """A build that says what it needs."""

    def build_extensions(self):
        try:
            super().build_extensions()
        except (CCompilerError, ExecError) as error:
            raise CompileError(NEEDS.format(reason=error)) from None


class TagWheel(bdist_wheel):
    """One wheel for every version of Python, where cffi makes what every version can load: not for one without a global lock."""

    def finalize_options(self):
        stable = all(extension.py_limited_api for extension in self.distribution.ext_modules)
        if stable and not sysconfig.get_config_var("Py_GIL_DISABLED"):
            self.py_limited_api = "cp310"
        super().finalize_options()


setup(cffi_modules=["pcapext/engine/build.py:builder"], cmdclass={"build_ext": BuildEngine, "bdist_wheel": TagWheel})
