"""Generators: what the network is (`architecture`), where it starts (`initial`), what it is fed (`code`).

Nothing imported here needs torch. The network itself is `dipengine.generators.hourglass.HourglassNetwork`; weights
from and for the paper's own code pass through `dipengine.generators.authors`.
"""

from dipengine.generators.architecture import Hourglass, ParameterSpec
from dipengine.generators.code import Code
from dipengine.generators.initial import initial_parameters

__all__ = ["Code", "Hourglass", "ParameterSpec", "initial_parameters"]
