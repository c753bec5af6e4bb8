"""The version of the Python package and of the C++ core (CMakeLists.txt and setup.py read it from here)."""

__version__ = "0.1.0"
