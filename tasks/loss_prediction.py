"""`retrain.loss_prediction`: whether and how a module that predicts losses is trained beside the classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.errors import ParamsError

if TYPE_CHECKING:
    from al_core.loss_prediction import Recipe


def loss_recipe(knobs: dict[str, Any] | None) -> Recipe | None:
    """What the params say, and defaults for the rest; None: no module.

    Raises:
        ParamsError: an unknown parameter, or a value that it cannot have.
    """
    from al_core.loss_prediction import Recipe
    from al_core.registry import filled

    if knobs is None:
        return None
    try:
        return filled("retrain.loss_prediction", Recipe, knobs)
    except ValueError as error:
        raise ParamsError(str(error)) from error
