"""Names, parameters and packages: what a person may write, and what a person who errs is told."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from al_core import Pool, Selection, methods, select
from al_core.registry import REGISTRY, build, method, parameters

HERE = Path(__file__).parent
POOL = Pool(embeddings=np.eye(5), labeled=[0])
CARD: dict[str, Any] = dict.fromkeys(("family", "direction", "complexity", "memory", "source", "when"), "test")


OUTER = "diversify, max_similarity, min_distance, partitions, quota, stochastic, temperature"


@pytest.fixture
def only_here() -> Iterator[None]:
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@dataclass(frozen=True)
class Knobs:
    """A method with a knob of every type."""

    flag: bool = False
    count: int = 3
    power: float = 0.5
    kind: Literal["sample", "farthest"] = "sample"
    norm: Literal[1, 2] = 2
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}; expected at least 1")

    def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
        return Selection(pool.available[:budget], np.zeros(budget))


def test_what_is_there() -> None:
    cards = {each.name: each for each in methods()}
    assert list(cards) == sorted(cards) and {"confidence", "coreset", "entropy", "margin", "random"} <= set(cards)
    assert cards["margin"].needs_model and not cards["coreset"].needs_model and not cards["random"].needs_model
    assert cards["coreset"].needs == ("embeddings",) and cards["random"].needs == ()
    assert [(knob.name, knob.type, knob.default) for knob in cards["coreset"].parameters] == [("normalize", bool, False)]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("corset", {}, "unknown method 'corset'; did you mean 'coreset'?"),
        ("Margin", {}, "unknown method 'Margin'; did you mean 'margin'?"),
        ("coreset", {"normalise": True}, "coreset has no parameter 'normalise'; did you mean 'normalize'?"),
        ("coreset", {"depth": 3}, "coreset has no parameter 'depth'; it takes normalize, partitions"),
        ("coreset", {"stochastic": "power"}, "coreset picks whole batches, so stochastic cannot be laid over it; methods that rank row by row: RANKING"),
        ("margin", {"depth": 3}, f"margin has no parameter 'depth'; it takes {OUTER}"),
        ("margin", {"diversify": {"strenght": 2}}, "margin.diversify has no parameter 'strenght'; did you mean 'strength'?"),
        ("margin", {"diversify": {"strength": 0}}, "diversify.strength is 0.0; expected above 0, at most 100"),
        ("margin", {"quota": 0.5}, "margin.quota is 0.5; expected {by: 'prediction' | 'groups', share: float} | None"),
        ("margin", {"temperature": 2}, "margin: temperature is 2.0 but nothing is drawn; say stochastic: power, softmax or softrank, or leave it out"),
        ("coreset", {"normalize": "yes"}, "coreset.normalize is 'yes'; expected bool"),
        ("coreset", {"normalize": 1}, "coreset.normalize is 1; expected bool"),
    ],
)
def test_mistakes_are_named(name: str, params: dict[str, object], message: str) -> None:
    for attempt in (lambda: build(name, params), lambda: select(name, POOL, budget=1, seed=0, **params)):
        with pytest.raises(ValueError) as error:
            attempt()
        assert str(error.value) == message.replace("RANKING", ", ".join(each.name for each in methods() if each.ranks))


def test_an_unlikely_name_lists_them_all() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'xyz'; the methods are .*coreset.*, margin.*, random"):
        build("xyz", {})
    with pytest.raises(ValueError, match=re.escape("the method's name is ['margin']; expected text")):
        build(["margin"], {})  # type: ignore[arg-type]  # a list is what a slip in YAML makes


@pytest.mark.usefixtures("only_here")
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"count": True}, "knobs.count is True; expected int"),
        ({"count": 2.0}, "knobs.count is 2.0; expected int"),
        ({"count": 0}, "knobs: count is 0; expected at least 1"),
        ({"power": "1"}, "knobs.power is '1'; expected float"),
        ({"power": float("nan")}, "knobs.power is nan; expected float"),
        ({"kind": "farthst"}, "knobs.kind is 'farthst'; expected 'sample' | 'farthest'"),
        ({"norm": 3}, "knobs.norm is 3; expected 1 | 2"),
        ({"norm": True}, "knobs.norm is True; expected 1 | 2"),
        ({"limit": "no"}, "knobs.limit is 'no'; expected int | None"),
        ({"flag": None}, "knobs.flag is None; expected bool"),
        ({3: 3}, "knobs has no parameter 3; it takes count, flag, kind, limit, norm, partitions, power"),
    ],
)
def test_wrong_types_are_named(params: dict[str, object], message: str) -> None:
    method("knobs", needs=(), **CARD)(Knobs)
    with pytest.raises(ValueError) as error:
        build("knobs", params)
    assert str(error.value) == message


@pytest.mark.usefixtures("only_here")
def test_parameters_are_explicit() -> None:
    method("knobs", needs=(), **CARD)(Knobs)
    assert parameters(build("knobs", {})) == {"name": "knobs", "flag": False, "count": 3, "power": 0.5, "kind": "sample", "norm": 2, "limit": None}
    built = build("knobs", {"power": 2, "limit": 7, "kind": "farthest"})
    assert built == Knobs(power=2.0, limit=7, kind="farthest")
    assert type(parameters(built)["power"]) is float  # 2 in params.yaml and 2.0 are one and the same method


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0}, "budget is 0; expected a whole number from 1"),
        ({"budget": 1.0}, "budget is 1.0; expected a whole number from 1"),
        ({"budget": True}, "budget is True; expected a whole number from 1"),
        ({"budget": 5}, "budget is 5 but only 4 images are unlabelled; lower it or ingest more"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": None}, "seed is None; expected a whole number from 0"),
    ],
)
def test_budget_and_seed(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        select("random", POOL, **({"budget": 1, "seed": 0} | arguments))
    assert str(error.value) == message
    assert len(select("random", POOL, budget=np.int64(4), seed=np.int64(3))) == 4  # type: ignore[arg-type]


@pytest.mark.usefixtures("only_here")
def test_a_wrong_declaration_is_refused() -> None:
    @dataclass(frozen=True)
    class Bare(Knobs):
        need: int = field(default_factory=int)

    @dataclass(frozen=True)
    class Taken(Knobs):
        seed: int = 0

    class Plain:
        def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"test_registry declares the method 'margin', which al_core.methods.uncertainty has declared already"):
        method("margin", needs=(), **CARD)(Knobs)
    with pytest.raises(TypeError, match="method 'knobs' needs 'logit', which is no signal; the signals are embeddings, logits, head, mc_probs"):
        method("knobs", needs=("logit",), **CARD)(Knobs)
    with pytest.raises(TypeError, match="parameter 'need' of method 'bare' needs a default that is int"):
        method("bare", needs=(), **CARD)(Bare)
    with pytest.raises(TypeError, match=r"method 'taken' has a parameter 'seed'; `select` takes name, pool, budget, seed, partitions.* itself"):
        method("taken", needs=(), **CARD)(Taken)
    with pytest.raises(TypeError, match="method 'plain' is no frozen dataclass"):
        method("plain", needs=(), **CARD)(Plain)
    assert not {"knobs", "bare", "taken", "plain"} & set(REGISTRY)


@pytest.mark.usefixtures("only_here")
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Selection(np.array([1, 1]), np.zeros(2)), "broken picked a row more than once"),
        (Selection(np.array([1, 0]), np.zeros(2)), "broken picked row 0, which is not available"),
        (Selection(np.array([1]), np.zeros(1)), r"broken answered rows int64 \(1,\) and scores float64 \(1,\); expected int64 and float64 \(2,\)"),
        (Selection(np.array([1.0, 2.0]), np.zeros(2)), r"broken answered rows float64 \(2,\)"),
        (Selection(np.array([1, 2]), np.array([0, np.inf])), "broken gave an infinite score to row 2"),
        (Selection(np.array([1, 2]), np.zeros(2), {"n": np.int64(1)}), "broken gave info that JSON cannot hold: Object of type int64"),
        (Selection(np.array([1, 2]), np.zeros(2), {"r": float("nan")}), "broken gave info that JSON cannot hold"),
    ],
)
def test_a_method_that_breaks_the_contract_is_caught(answer: Selection, message: str) -> None:
    @dataclass(frozen=True)
    class Broken:
        def __call__(self, pool: Pool, budget: int, rng: np.random.Generator) -> Selection:
            return answer

    method("broken", needs=(), **CARD)(Broken)
    with pytest.raises(ValueError, match=message):
        select("broken", POOL, budget=2, seed=0)


def in_new_process(code: str, *path: Path) -> str:
    """What a fresh interpreter prints, with these folders on its path as installed packages are."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *map(str, path)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_another_package_adds_a_method() -> None:
    code = """
import numpy as np
from al_core import Pool, methods, select
from al_core.registry import build, parameters
selection = select("longest", Pool(embeddings=np.diag([1.0, 3.0, 2.0])), budget=2, seed=0, scale=2)
print(selection.rows.tolist(), selection.scores.tolist())
print(parameters(build("longest", {"order": 1})))
print({card.name for card in methods()} >= {"longest", "margin"})
for wrong in ({"name": "longst"}, {"name": "longest", "scale": -1}):
    try:
        select(**wrong, pool=Pool(embeddings=np.eye(3)), budget=1, seed=0)
    except ValueError as error:
        print(error)
"""
    assert in_new_process(code, HERE / "example_package").splitlines() == [
        "[1, 2] [6.0, 4.0]",
        "{'name': 'longest', 'order': 1, 'scale': 1.0}",
        "True",
        "unknown method 'longst'; did you mean 'longest'?",
        "longest: scale is -1.0; expected a number above 0",
    ]


@pytest.mark.parametrize(
    ("source", "name", "problem"),
    [
        ("import nothing_of_that_name", "broken", "cannot be loaded: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("It = 1", "broken", "is not declared with @method('broken')"),
        ("class It: ...", "margin", "is not declared with @method('margin')"),
    ],
)
def test_a_broken_package_is_named(source: str, name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "broken_package.py").write_text(source)
    about = tmp_path / "broken_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[rondo.methods]\n{name} = broken_package:It\n")
    code = "from al_core import methods\ntry:\n    methods()\nexcept ImportError as error:\n    print(error)"
    where = f"method {name!r} of package broken-package (broken_package:It)"
    assert in_new_process(code, tmp_path) == f"{where} {problem}; mend or remove the package"


def test_import_is_light() -> None:
    code = "import sys, al_core; print([name for name in ('torch', 'lightly', 'sklearn', 'faiss', 'pandas', 'importlib.metadata') if name in sys.modules])"
    assert in_new_process(code) == "[]"


def test_methods_never_import_methods() -> None:
    """Each stands on the pool and the registry alone."""
    for path in sorted((HERE.parents[1] / "al_core" / "methods").glob("[!_]*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module != "al_core" and not (node.module or "").startswith("al_core.methods"), path
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("al_core.methods") for alias in node.names), path
