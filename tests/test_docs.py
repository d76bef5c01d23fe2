"""README and docs say what the code does: links, commands, options, knobs, files, methods and environment variables that they name exist.

The tables of params.md, artifacts.md and methods/ are made from the code: `python -m tests.test_docs` renews them. Those of performance.md and its
pictures are made from the benchmarks' results: `python -m benchmarks.plot` renews them.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from pydantic import BaseModel
from typer.core import TyperGroup
from typer.main import get_command

from al_core import registry
from al_core.composition import Diversify, Quota
from al_core.methods import methods
from al_core.pool import SIGNALS
from al_core.pretraining import METHODS
from al_core.pretraining.recipes import PRESETS
from al_core.registry import COMPOSITION, Card, parameters_of, spelled
from benchmarks import plot
from flows.cli import app
from tasks import artifacts
from tasks.artifacts import Record, Table
from tasks.params import Params, Pretrain, Section
from tasks.stage import POOL_STAGES, ROUND_STAGES, all_stages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
VARIABLE = re.compile(r"\"((?:RONDO|PREFECT|MLFLOW|DVC|OMP|CUBLAS)_[A-Z0-9_]+)\"")


def name_of(page: Path) -> str:
    """The page as messages and test ids name it."""
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text("utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    """The blocks of code in one of these languages."""
    return [found[2] for found in FENCE.finditer(page.read_text("utf-8")) if found[1] in languages]


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# ---- links ---------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere in the repository."""
    for found in LINK.finditer(prose(page)):
        link = found[1] or found[2]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


def test_a_broken_link_and_a_broken_anchor_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading, here\n[a](none.md) [b](#a-heading-here) [c](#nowhere) [d](page.md) [e](https://example.org)\n", "utf-8")
    assert list(broken(page)) == ["none.md", "#nowhere"]


def test_every_page_is_to_be_found_from_the_index() -> None:
    indexes = (DOCS / "index.md", DOCS / "decisions/index.md", DOCS / "methods/index.md")
    linked = {(page.parent / found[1].partition("#")[0]).resolve() for page in indexes for found in LINK.finditer(prose(page))}
    assert [name_of(page) for page in DOCS.rglob("*.md") if page not in linked | {indexes[0]}] == []


# ---- commands ------------------------------------------------------------------------------------------------------------


def rondo() -> TyperGroup:
    """The command line."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def spoken(page: Path) -> set[str]:
    """Commands in running text, such as `rondo open --again`."""
    return {code for code in CODE.findall(prose(page)) if code.startswith("rondo ")}


def typed(page: Path) -> set[str]:
    """Commands in blocks, continued lines joined and comments cut off."""
    lines = [line for block in blocks(page, "sh", "yaml") for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^|[\s/:;&])(rondo [^#|&;>]+)", line.split(" # ")[0]) for line in lines]
    return {match[1].strip() for match in found if match}


def problem(command: str, *, whole: bool) -> str | None:
    """What is wrong with a command; `whole`: it must also be complete, so that it could be typed."""
    first, *words = shlex.split(command)[1:]
    if first.startswith("-"):
        return None if any(first in parameter.opts for parameter in [*rondo().params, help_option()]) else f"{command}: no option {first}"
    if first not in rondo().commands:
        return f"{command}: no command {first}"
    this = rondo().commands[first]
    known = {option for parameter in [*this.params, help_option()] for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known]
    if unknown:
        return f"{command}: no option {', '.join(unknown)}"
    if whole and "--help" not in words:
        try:
            this.make_context(first, list(words))
        except Exception as error:
            return f"{command}: {getattr(error, 'message', None) or error!r}"
    return None


def help_option() -> Any:
    """`--help`, which every command has."""
    command = rondo()
    return command.get_help_option(command.context_class(command))


def problems(commands: Iterable[str], *, whole: bool) -> list[str]:
    """All that is wrong."""
    return [found for command in sorted(commands) if (found := problem(command, whole=whole))]


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    assert problems(spoken(page), whole=False) + problems(typed(page), whole=True) == []


def test_wrong_commands_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    block = ".venv/bin/rondo cycle --rounds x\nrondo init w \\\n  --source s --labels drop # why\nrondo reproduce r002 -w w && rondo status\nrondo reproduce\n"
    page.write_text(f"`rondo opne`, `rondo open --agian`, `rondo --help`, `rondo open --again`\n```sh\n{block}```\n", "utf-8")
    assert problems(spoken(page), whole=False) == ["rondo open --agian: no option --agian", "rondo opne: no command opne"]
    wrong = [found.split(":")[0] for found in problems(typed(page), whole=True)]
    assert wrong == ["rondo cycle --rounds x", "rondo init w    --source s --labels drop", "rondo reproduce"]


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in rondo().commands if f"`rondo {name}" not in text] == []


def test_targets_of_make_and_stages_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert set(re.findall(r"(?:`|^|\$ )make ([a-z]\w*)", text, re.M)) <= targets
    assert set(re.findall(r"python -m tasks ([\w-]+)", text)) <= {*POOL_STAGES, *ROUND_STAGES, "dvc"}
    modules = set(re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", text))
    assert "benchmarks.orchestration" in modules
    assert [name for name in modules if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists()] == []


# ---- params.yaml ----------------------------------------------------------------------------------------------------------


@each_page
def test_blocks_of_params_are_params(page: Path) -> None:
    for block in blocks(page, "yaml"):
        if not block.startswith("# dvc.yaml\n"):
            Params.check(yaml.safe_load(block), name_of(page))


def keys() -> Iterator[str]:
    """`section.key` of every knob, and the keys that stand alone."""
    for name, field in Params.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from (f"{field.alias or name}.{inner}" for inner in kind.model_fields)
        else:
            yield name


@each_page
def test_knobs_named_in_running_text_exist(page: Path) -> None:
    sections = {key.split(".")[0] for key in keys() if "." in key}
    named = {code for code in CODE.findall(prose(page)) if re.fullmatch(r"[a-z-]+\.[a-z_]+", code) and code.split(".")[0] in sections}
    assert named - set(keys()) - files() == set()


def files() -> set[str]:
    """Names of the artifacts' files."""
    kinds = [kind for stage in all_stages() for kind in (*stage.reads.values(), *stage.writes.values())]
    return {kind.file.rpartition("/")[2] for kind in kinds}


# ---- tables made from the code --------------------------------------------------------------------------------------------


def row(*cells: object) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(heading: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """A Markdown table."""
    return "\n".join([row(*heading), row(*["---"] * len(heading)), *(row(*cells) for cells in rows)]) + "\n"


def code(value: object) -> str:
    """As `params.yaml` writes it, in the type of code."""
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def takes(schema: dict[str, Any]) -> str:
    """What a knob may be, in words."""
    if "$ref" in schema:
        return "the keys below"
    if "anyOf" in schema:
        return " or ".join(takes(each) for each in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {takes(schema['items'])}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text", "object": "name and parameters", "null": "`null`"}
    bounds = [("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below")]
    return " ".join([words[schema["type"]], *(f"{word} {schema[key]:g}" for key, word in bounds if key in schema)])


def knobs(model: type[BaseModel], skip: Callable[[str], bool] = lambda _: False) -> str:
    """The table of a section."""
    return table(("key", "meaning", "takes", "default"), knob_rows(model, skip))


def knob_rows(model: type[BaseModel], skip: Callable[[str], bool] = lambda _: False, above: str = "") -> Iterator[tuple[object, ...]]:
    """A row for each knob, followed by those of the keys inside it."""
    shapes = model.model_json_schema(by_alias=True)["properties"]
    for name, field in model.model_fields.items():
        key = field.alias or name
        if not skip(key):
            yield f"`{above}{key}`", field.description, takes(shapes[key]), code(plain(field.default))
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, Section):
                    yield from knob_rows(kind, above=f"{above}{key}.")


def plain(value: object) -> object:
    """As YAML has it."""
    return list(value) if isinstance(value, tuple) else value.model_dump() if isinstance(value, Section) else value


def params_tables() -> str:
    """All of params.md that follows from the models."""
    kinds = {field.alias or name: field.annotation for name, field in Params.model_fields.items()}
    sections = {key: kind for key, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}
    wiring = list(kinds)[list(kinds).index("round") :]
    alone = knobs(Params, lambda key: key in sections or key in wiring)
    parts = [f"### {key}\n\n{(kind.__doc__ or '').strip()}\n\n{knobs(kind)}" for key, kind in sections.items()]
    about = "Set when a pool or a round is opened; in the workspace's own file they serve the example alone."
    wired = knobs(Params, lambda key: key not in wiring)
    return "\n".join([f"### Keys that stand alone\n\n{alone}", *parts, f"### Wiring\n\n{about}\n\n{wired}"])


def stage_table() -> str:
    """What every stage reads and writes, and on which keys of params it depends."""
    rows = []
    for stage in all_stages():
        reads, writes = (", ".join(f"`{kind.file}`" for kind in kinds.values()) or "the source" for kinds in (stage.reads, stage.writes))
        own = [stage.name] if stage.section else []
        rows.append((f"`{stage.name}`", reads, writes, ", ".join(f"`{key}`" for key in [*own, "code", *stage.extra_params])))
    return table(("stage", "reads", "writes", "depends on, of params.yaml"), rows)


def schema_tables() -> str:
    """The columns of every table that a stage writes."""
    kinds = [kind for stage in all_stages() for kind in stage.writes.values() if issubclass(kind, Table)]
    parts = []
    for kind in kinds:
        columns = [(f"`{field.name}`", f"`{field.type}`", field.metadata[b"meaning"].decode()) for field in kind.schema]
        about = f"{(kind.__doc__ or '').strip()} Sorted by {', '.join(f'`{key}`' for key in kind.key)}."
        parts.append(f"#### `{kind.file}`\n\n{about}\n\n{table(('column', 'type', 'meaning'), columns)}")
    return "\n".join(parts)


def objective_table() -> str:
    """The parameters of every self-supervised method."""
    known = [(name, each) for name, kind in METHODS.items() for each in parameters_of(kind)]
    return table(("method", "parameter", "meaning", "default"), [(f"`{name}`", f"`{each.name}`", each.meaning, code(each.default)) for name, each in known])


def schedules() -> str:
    """What every self-supervised method was published with, keys in the order of `params.yaml`."""
    parts = []
    for preset, known in PRESETS.items():
        for name, each in known.items():
            section = each.section(name)
            lines = "".join(f"  {key}: {code(section[key]).strip('`')}\n" for key in Pretrain.model_fields if key in section)
            about = f"From {each.source}." + (f" What the section cannot say: {each.departs}." if each.departs else "")
            about = textwrap.fill(about, 150, break_long_words=False, break_on_hyphens=False)
            parts.append(f"### `{preset}`, `{name}`\n\n{about}\n\n```yaml\npretrain:\n{lines}```\n")
    return "\n".join(parts)


OWN = [card for card in methods() if card.kind.__module__.startswith("al_core.")]


def reads(card: Card) -> str:
    """The signals of a method."""
    return ", ".join(f"`{need}`" for need in card.needs) or "nothing"


def method_table() -> str:
    """Rondo's own methods, each with a link to its page."""
    rows = []
    for card in OWN:
        first = "no" if card.needs_model else "yes"
        rounds = "yes" if all(SIGNALS[need].in_rounds for need in card.needs) else "no"
        rows.append((f"[`{card.name}`]({card.name}.md)", card.family, reads(card), first, rounds, card.when))
    return table(("method", "family", "reads", "before the first model", "in rounds", "when"), rows)


def method_card(card: Card) -> str:
    """What the code says of a method."""
    facts = [
        ("family", card.family),
        ("reads", reads(card)),
        ("score", card.direction),
        ("when", card.when),
        ("time", card.complexity),
        ("memory", card.memory),
        ("seed", "draws at random" if card.stochastic else "draws nothing: every seed gives the same picks"),
        ("bears", "every composition" if card.ranks else "`partitions`"),
        ("source", card.source),
    ]
    rows = [(f"`{each.name}`", each.meaning, cell(spelled(each.type)), code(each.default)) for each in card.parameters]
    return table(("", ""), facts) + ("\n" + table(("parameter", "meaning", "takes", "default"), rows) if rows else "")


def composition_table() -> str:
    """What may be laid over methods."""
    rows = [(f"`{each.name}`", each.meaning, cell(spelled(each.type)), code(each.default)) for each in COMPOSITION]
    inner = [
        (f"`{name}.{each.name}`", each.meaning, cell(spelled(each.type)), code(each.default))
        for name, kind in (("diversify", Diversify), ("quota", Quota))
        for each in parameters_of(kind)
    ]
    return table(("parameter", "meaning", "takes", "default"), rows + inner)


def cell(text: str) -> str:
    """Code in a cell of a table, where a bar would end it."""
    return f"`{text}`".replace(" | ", "` or `")


@dataclass(frozen=True)
class Made:
    """A part of a page that is made from the code."""

    page: Path
    mark: str
    make: Callable[[], str]
    by: str = "tests.test_docs"

    def split(self) -> tuple[str, str, str]:
        """The page before, in and after the part."""
        begin, end = f"<!-- {self.mark}: made by `python -m {self.by}` -->\n", f"<!-- end of {self.mark} -->\n"
        before, found, rest = self.page.read_text("utf-8").partition(begin)
        part, ended, after = rest.partition(end)
        assert found and ended, f"{name_of(self.page)} lacks the line {(end if found else begin).strip()}"
        return before + begin, part, end + after


MADE = [
    Made(DOCS / "params.md", "params", params_tables),
    Made(DOCS / "artifacts.md", "stages", stage_table),
    Made(DOCS / "artifacts.md", "tables", schema_tables),
    Made(DOCS / "how-to/train-an-encoder.md", "objectives", objective_table),
    Made(DOCS / "how-to/train-an-encoder.md", "schedules", schedules),
    Made(DOCS / "methods/index.md", "methods", method_table),
    Made(DOCS / "methods/composition.md", "composition", composition_table),
    *(Made(DOCS / f"methods/{card.name}.md", "card", partial(method_card, card)) for card in OWN),
    *(Made(page, name, partial(make, plot.load()), "benchmarks.plot") for page, parts in plot.PARTS.items() for name, make in parts.items()),
]


@pytest.mark.parametrize("made", MADE, ids=lambda made: f"{name_of(made.page)} {made.mark}")
def test_tables_are_what_the_code_says(made: Made) -> None:
    _, part, _ = made.split()
    assert part == made.make(), f"{name_of(made.page)} is out of date; renew it: python -m {made.by}"


@pytest.mark.parametrize("name", plot.DATA)
def test_pictures_show_what_was_measured(name: str) -> None:
    """Each says of what numbers it was drawn; how it looks depends on matplotlib's version."""
    data = plot.DATA[name][1](plot.load())
    path = plot.PICTURES / f"{name}.svg"
    drawn = path.read_text("utf-8") if path.exists() else ""
    assert (plot.digest(data) in drawn) if data else not drawn, f"{name_of(path)} is out of date; renew it: python -m benchmarks.plot"


def test_every_method_has_a_page_and_every_page_a_method() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} - {"index", "composition"} == {card.name for card in OWN}


def test_every_knob_is_in_the_reference() -> None:
    text = (DOCS / "params.md").read_text("utf-8")
    assert [key for key in keys() if f"| `{key.split('.')[-1]}` |" not in text] == []
    assert [f"### {key}" for key in {key.split(".")[0] for key in keys() if "." in key} if f"### {key}\n" not in text] == []


# ---- what else the pages name ----------------------------------------------------------------------------------------------


def test_every_field_of_a_record_is_in_the_reference() -> None:
    text = (DOCS / "artifacts.md").read_text("utf-8")
    records = [kind for kind in vars(artifacts).values() if isinstance(kind, type) and issubclass(kind, Record) and kind is not Record]
    for kind in records:
        _, found, rest = text.partition(f"#### `{kind.file}`\n")
        assert found, f"{kind.file} is not in artifacts.md"
        listed = re.findall(r"^\| `(\w+)` \|", rest.partition("\n#")[0], re.M)
        assert sorted(listed) == sorted(kind.model_fields), kind.file


def test_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [card.name for card in OWN if f"`{card.name}`" not in text] == []


def test_the_method_of_the_guide_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    definition, trial = blocks(DOCS / "how-to/write-a-method.md", "python")
    (tmp_path / "rondo_example.py").write_text(definition, "utf-8")
    (tmp_path / "trial.py").write_text(trial, "utf-8")
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))  # so that the guide's method is gone again
    spec = spec_from_file_location("rondo_example", tmp_path / "rondo_example.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rondo_example", module)
    spec.loader.exec_module(module)
    runpy.run_path(str(tmp_path / "trial.py"))
    length = np.linalg.norm(np.random.default_rng(0).normal(size=(50, 8)), axis=1)
    expected = [row for row in np.argsort(-length) if row not in (0, 3, 4)][:5]
    assert capsys.readouterr().out.split() == str(np.array(expected)).split()


def test_every_environment_variable_is_in_operations() -> None:
    text = (DOCS / "operations.md").read_text("utf-8")
    sources = [path.read_text("utf-8") for part in ("flows", "tasks", "al_core") for path in sorted((ROOT / part).rglob("*.py"))]
    used = {name for source in sources for name in VARIABLE.findall(source)}
    assert {"PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RONDO_IMAGE"} <= used  # else the pattern is wrong
    assert sorted(name for name in used if f"`{name}`" not in text) == []


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert first is not None
    assert first[1] == version


def test_a_table_of_results_has_what_their_form_says() -> None:
    results = {
        "one": {
            "size": 10,
            "sure": {"loop_over_rondo": 20.0, "loop_over_rondo, farthest": 0.5, "all_seconds": {"rondo": [1.0]}},
            "dim 5": {"times_faster": {"peer/code": 3.0}, "base_over_product": 1.25},
            "family": {"over_reading": {"bald": 1.5}},
            "growth": {"sample": {"1000 rows, 10 picks": 1.5, "200 rows, 10 picks": 0.25}},
        },
        "scale": {
            "methods": {
                "margin": [{"rows": 10, "budget": 1, "seconds": 0.125, "cpu_seconds": 0.25, "peak_megabytes": 3}],
                "slow": [{"rows": 10, "budget": 1, "stopped": ""}],
            }
        },
    }
    assert plot.peers(results).startswith(
        "| benchmark | circumstances | peer | times faster |\n| --- | --- | --- | --- |\n"
        "| one | sure | loop | 20 |\n| one | sure, farthest | loop | 0.5 |\n| one | dim 5 | peer/code | 3 |\n"
    )
    assert "| one | dim 5 | base over product | 1.25 |\n| one | family | bald over reading | 1.5 |\n" in plot.floors(results)
    assert "| `margin` | 0.125 s (0.25 of CPU), 3 MB |\n| `slow` | stopped |\n" in plot.growth(results)
    assert "|  | 200 rows, 10 picks | 1000 rows, 10 picks |\n| --- | --- | --- |\n| sample | 0.25 | 1.5 |\n" in plot.own_growth(results)
    goal = plot.Goal("fast", plot.at("one", "sure", "loop_over_rondo", size=10), 25)
    assert goal.row(results) == ("fast", "at least 25", "20", "**not met**")
    assert plot.Goal("fast", plot.at("one", "sure", "loop_over_rondo", size=99), 5).row(results)[-1] == "not measured"


def renew() -> None:
    """Write the parts that are made from the code."""
    for made in MADE:
        before, _, after = made.split()
        made.page.write_text(before + made.make() + after, "utf-8")


if __name__ == "__main__":
    renew()
