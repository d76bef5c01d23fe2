"""The acquisition methods, one idea a file. Importing one registers it; methods never import methods."""

from al_core.methods import coreset, random, uncertainty
from al_core.registry import methods

__all__ = ["coreset", "methods", "random", "uncertainty"]
