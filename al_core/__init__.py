"""Arrays in, arrays out: acquisition methods, encoders, classifiers and their metrics. Needs torch and numpy alone."""

from al_core.methods import methods
from al_core.pool import Pool
from al_core.progress import listening
from al_core.select import select
from al_core.selection import Selection

__all__ = ["Pool", "Selection", "listening", "methods", "select"]
