"""The one hierarchy of errors. Each message is one sentence that says what is wrong and what to do.

The command line prints the message and leaves with `exit_status`; a Python host catches `DipEngineError`
or, where it already guards with `ValueError`, that.
"""


class DipEngineError(Exception):
    """Base of every error that dipengine raises on purpose."""

    exit_status = 2


class InputError(DipEngineError, ValueError):
    """An argument, image, mask or file is not usable as given."""


class ImageError(InputError):
    """An image (or mask) cannot be read, or holds values that no fit can use."""


class OutputError(DipEngineError, OSError):
    """A result cannot be written where it was asked for."""


class FormatError(OutputError):
    """The format asked for cannot hold the result."""


class DeviceError(DipEngineError, RuntimeError):
    """The device, precision or kernel backend asked for is not available here."""


class DeviceFailed(DeviceError):
    """A GPU gave up while it worked: the process can use it no more, another one may."""

    exit_status = 1


class DependencyError(DipEngineError, ImportError):
    """A package is missing; the message names the command that installs it."""


class FitError(DipEngineError, RuntimeError):
    """A fit went wrong and could not be rolled back."""

    exit_status = 1


class OutOfMemory(FitError):
    """A fit needs more memory than there is."""
