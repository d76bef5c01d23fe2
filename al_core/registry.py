"""Acquisition methods by name: how one is declared, found, and made from what `params.yaml` says.

A method is a frozen dataclass: its fields are its parameters, calling it selects. `@method(...)` at its definition names it and describes it.
Another package adds its own through the entry-point group `rondo.methods`: one entry a method, its name on the left, its class on the right.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from al_core.composition import Composed, Composition
from al_core.pool import SIGNALS
from al_core.ranking import Ranking
from al_core.selection import Method

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "rondo.methods"
M = TypeVar("M", bound=Method)


@dataclass(frozen=True)
class Parameter:
    """A field of a method."""

    name: str
    type: object  # bool, int, float, str, a Literal, a frozen dataclass of such (in params.yaml a mapping), or a union of these and None
    default: object
    meaning: str


@dataclass(frozen=True)
class Card:
    """What to know of a method before using it."""

    name: str
    family: str
    needs: tuple[str, ...]  # signals that it reads, named as in al_core.pool.SIGNALS
    direction: str  # what the score of a pick is, its unit or range, and which end is picked first
    complexity: str  # n rows, d dimensions
    memory: str  # beside the signals
    source: str
    when: str  # to use it, and when not
    stochastic: bool  # it draws at random; where not, the seed changes nothing
    summary: str
    parameters: tuple[Parameter, ...]
    kind: type[Method]

    @property
    def ranks(self) -> bool:
        """Whether it scores rows one by one, so that every composition can be laid over it; over others, partitions alone."""
        return issubclass(self.kind, Ranking)

    @property
    def needs_model(self) -> bool:
        """Whether it reads what only a trained model can give, which a first round does not have."""
        return any(SIGNALS[signal].from_model for signal in self.needs)


REGISTRY: dict[str, Card] = {}


def method(
    name: str,
    *,
    family: str,
    needs: tuple[str, ...],
    direction: str,
    complexity: str,
    memory: str,
    source: str,
    when: str,
    stochastic: bool = False,
) -> Callable[[type[M]], type[M]]:
    """Register a frozen dataclass as the method of that name. The other arguments are its `Card`.

    Raises:
        TypeError: the name is taken, the class is no frozen dataclass, a field has no plain default or a reserved name, a need is no signal.
    """

    def register(kind: type[M]) -> type[M]:
        taken = REGISTRY.get(name)
        if taken and (taken.kind.__module__, taken.kind.__qualname__) != (kind.__module__, kind.__qualname__):
            raise TypeError(f"{kind.__module__} declares the method {name!r}, which {taken.kind.__module__} has declared already")
        for need in needs:
            if need not in SIGNALS:
                raise TypeError(f"method {name!r} needs {need!r}, which is no signal; the signals are {', '.join(SIGNALS)}")
        REGISTRY[name] = Card(
            name=name,
            family=family,
            needs=needs,
            direction=direction,
            complexity=complexity,
            memory=memory,
            source=source,
            when=when,
            stochastic=stochastic,
            summary=(kind.__doc__ or "").split("\n")[0],
            parameters=declared(name, kind),
            kind=kind,
        )
        return kind

    return register


def declared(name: str, kind: type[Method]) -> tuple[Parameter, ...]:
    """The parameters that a method's fields declare."""
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:
        raise TypeError(f"method {name!r} is no frozen dataclass; put @dataclass(frozen=True) below @method")
    found = parameters_of(kind)
    for each in found:
        if each.name in RESERVED:
            raise TypeError(f"method {name!r} has a parameter {each.name!r}; `select` takes {', '.join(RESERVED)} itself")
        if not fits(each.default, each.type):
            raise TypeError(f"parameter {each.name!r} of method {name!r} needs a default that is {spelled(each.type)}")
    return found


def parameters_of(kind: type) -> tuple[Parameter, ...]:
    """The fields of a dataclass; `field(metadata={"meaning": ...})` says what one does."""
    hints = typing.get_type_hints(kind)
    return tuple(Parameter(field.name, hints[field.name], field.default, field.metadata.get("meaning", "")) for field in dataclasses.fields(kind))


COMPOSITION = parameters_of(Composition)
OVER_ANY = ("partitions",)  # of these, what any method bears; the others only one that ranks
RESERVED = ("name", "pool", "budget", "seed", *(parameter.name for parameter in COMPOSITION))  # what `select` takes itself


def methods() -> tuple[Card, ...]:
    """The cards of all methods, by name: Rondo's and those of installed packages.

    Raises:
        ImportError: a package's method cannot be loaded.
    """
    for entry in offered():
        load(entry)
    return tuple(REGISTRY[name] for name in sorted(REGISTRY))


def card(name: str) -> Card:
    """The card of a method.

    Raises:
        ValueError: there is no such method; names the nearest.
        ImportError: another package offers it but it cannot be loaded.
    """
    if name not in REGISTRY:
        entries = offered()
        for entry in entries:
            if entry.name == name:
                load(entry)
        if name not in REGISTRY:
            known = {*REGISTRY, *(entry.name for entry in entries)}
            raise ValueError(f"unknown method {name!r}; {nearest(name, known, 'the methods are')}")
    return REGISTRY[name]


def build(name: str, params: Mapping[str, object]) -> Method:
    """The method of that name with these parameters, its own and those of a `Composition`; defaults for the rest.

    Raises:
        ValueError: unknown method or parameter (names the nearest), a value of the wrong type or out of range, or a composition that needs
            scores over a method that picks whole batches.
    """
    if not isinstance(name, str):
        raise ValueError(f"the method's name is {name!r}; expected text")
    it = card(name)
    outer = {each.name: each for each in COMPOSITION if it.ranks or each.name in OVER_ANY}
    known = outer | {each.name: each for each in it.parameters}
    for each in COMPOSITION:
        if each.name in params and each.name not in known:
            ranking = ", ".join(other.name for other in methods() if other.ranks)
            raise ValueError(f"{name} picks whole batches, so {each.name} cannot be laid over it; methods that rank row by row: {ranking}")
    arguments = {key: argument(name, key, value, known) for key, value in params.items()}
    try:
        method = it.kind(**{key: value for key, value in arguments.items() if key not in outer})
        composition = Composition(**{key: value for key, value in arguments.items() if key in outer})  # type: ignore[arg-type]  # checked by `argument`
    except ValueError as error:  # from a __post_init__
        raise ValueError(f"{name}: {error}") from error
    return method if composition == Composition() else Composed(method, composition)


def argument(where: str, key: str, value: object, known: Mapping[str, Parameter]) -> object:
    """A parameter's value as its field takes it: mappings become dataclasses, an int that stands for a float becomes one."""
    if key not in known:
        raise ValueError(f"{where} has no parameter {key!r}; {nearest(key, known, 'it takes')}")
    kind = known[key].type
    nested = next((option for option in options(kind) if dataclasses.is_dataclass(option)), None)
    if isinstance(nested, type) and isinstance(value, Mapping):
        inner = {parameter.name: parameter for parameter in parameters_of(nested)}
        return nested(**{each: argument(f"{where}.{key}", each, given, inner) for each, given in value.items()})
    if not fits(value, kind):
        raise ValueError(f"{where}.{key} is {value!r}; expected {spelled(kind)}")
    return float(value) if type(value) is int and float in options(kind) else value


Filled = TypeVar("Filled")


def filled(where: str, kind: type[Filled], params: Mapping[str, object]) -> Filled:
    """A frozen dataclass of parameters with these values, and defaults for the rest.

    Raises:
        ValueError: an unknown parameter (names the nearest), or a value of the wrong type or out of range.
    """
    known = {each.name: each for each in parameters_of(kind)}
    arguments = {key: argument(where, key, value, known) for key, value in params.items()}
    try:
        return kind(**arguments)
    except ValueError as error:  # from a __post_init__
        raise ValueError(f"{where}: {error}") from error


def parameters(built: Method) -> dict[str, object]:
    """A method as `params.yaml` writes it: its name, each of its parameters, and what of a composition is laid over it."""
    method, composition = (built.method, built.composition) if isinstance(built, Composed) else (built, Composition())
    name = next(each.name for each in REGISTRY.values() if each.kind is type(method))
    own = {parameter.name: getattr(method, parameter.name) for parameter in card(name).parameters}
    changed = {each.name: getattr(composition, each.name) for each in COMPOSITION if getattr(composition, each.name) != each.default}
    return {"name": name} | {key: plain(value) for key, value in (own | changed).items()}


def plain(value: object) -> object:
    """A parameter's value as `params.yaml` writes it."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def needs(built: Method) -> tuple[str, ...]:
    """Signals that a method and its composition read."""
    method, composition = (built.method, built.composition) if isinstance(built, Composed) else (built, Composition())
    own = next(each.needs for each in REGISTRY.values() if each.kind is type(method))
    return tuple(dict.fromkeys((*own, *composition.needs)))


# ---- the types of parameters ---------------------------------------------------------------------------------------------------


def options(kind: object) -> tuple[object, ...]:
    """What a parameter may be: the types of a union one by one, a Literal's choices, or the type alone."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(option for member in typing.get_args(kind) for option in options(member))
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else (kind,)


def fits(value: object, kind: object) -> bool:
    """Whether a value has a parameter's type: an int serves as a float, a bool never as a number, NaN and infinity as nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return any(is_option(value, option) for option in options(kind))


def is_option(value: object, option: object) -> bool:
    """Whether a value is of this type or, where the option is a choice, this value."""
    if isinstance(option, type):
        return type(value) is option or (option is float and type(value) is int)
    return type(value) is type(option) and value == option


def spelled(kind: object) -> str:
    """A type as a person writes it: `int | None`, `'sample' | 'farthest'`, `{by: 'embeddings', strength: float}`."""
    return " | ".join(option_spelled(option) for option in options(kind))


def option_spelled(option: object) -> str:
    """One option of a type."""
    if isinstance(option, type) and dataclasses.is_dataclass(option):
        return "{" + ", ".join(f"{parameter.name}: {spelled(parameter.type)}" for parameter in parameters_of(option)) + "}"
    return "None" if option is types.NoneType else getattr(option, "__name__", repr(option))


def nearest(word: object, known: Iterable[str], otherwise: str) -> str:
    """A hint for a misspelt name."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(names) or 'none'}"


# ---- methods of other packages -------------------------------------------------------------------------------------------------


def offered() -> tuple[EntryPoint, ...]:
    """The entry points of installed packages that offer methods, by name."""
    from importlib import metadata

    return tuple(sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: (entry.name, entry.value)))


def load(entry: EntryPoint) -> None:
    """Import what an entry point names, which registers the method.

    Raises:
        ImportError: it cannot be imported, or declares no method of the entry's name.
    """
    package = entry.dist.name if entry.dist else "an unknown package"
    where = f"method {entry.name!r} of package {package} ({entry.value})"
    try:
        kind = entry.load()
    except Exception as error:
        raise ImportError(f"{where} cannot be loaded: {type(error).__name__}: {error}; mend or remove the package") from error
    if entry.name not in REGISTRY or REGISTRY[entry.name].kind is not kind:
        raise ImportError(f"{where} is not declared with @method({entry.name!r}); mend or remove the package")
