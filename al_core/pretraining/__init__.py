"""Self-supervised training of encoders: methods by name, and the loop that trains with any of them."""

from collections.abc import Mapping

from al_core.pretraining.barlow_twins import BarlowTwins
from al_core.pretraining.dino import DINO
from al_core.pretraining.mocov2 import MoCoV2
from al_core.pretraining.objective import Method
from al_core.pretraining.simclr import SimCLR
from al_core.pretraining.swav import SwAV
from al_core.pretraining.vicreg import VICReg
from al_core.registry import argument, nearest, parameters_of

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "mocov2": MoCoV2,
    "vicreg": VICReg,
    "barlow-twins": BarlowTwins,
    "dino": DINO,
    "swav": SwAV,
}

__all__ = ["METHODS", "Method", "build"]


def build(name: str, params: Mapping[str, object]) -> Method:
    """The method of that name with these parameters, and defaults for the rest.

    Raises:
        ValueError: unknown method or parameter (names the nearest), or a value of the wrong type or out of range.
    """
    if name not in METHODS:
        raise ValueError(f"unknown self-supervised method {name!r}; {nearest(name, METHODS, 'the methods are')}")
    known = {each.name: each for each in parameters_of(METHODS[name])}
    arguments = {key: argument(name, key, value, known) for key, value in params.items()}
    try:
        return METHODS[name](**arguments)
    except ValueError as error:  # from a __post_init__
        raise ValueError(f"{name}: {error}") from error
