"""What the results say, in tables and pictures: renews docs/performance.md, its pictures and docs/encoders.md from benchmarks/results/*.json.

    python -m benchmarks.plot

A result is read by its form, wherever in the file it stands, so a new benchmark needs no line here but for its goals:

* `PEER_over_rondo: 3.2`, `PEER_over_rondo, VARIANT: 3.2` and `times_faster: {PEER: 3.2}` (also `times_faster_than`): Rondo takes that many times less
  time than a peer;
* `OURS_over_FLOOR: 1.2`, `over_FLOOR: {OURS: 1.2}` and `ratio_to_FLOOR: 1.2`: Rondo takes that many times the time of something that it cannot do without;
* `growth...: {SERIES: {"1000 rows, 10 picks": seconds}}`, or below such a key a list of entries with sizes and seconds by name;
* in scale.json, `methods: {NAME: [{rows, budget, seconds, cpu_seconds, peak_megabytes}]}`; an entry may say `stopped` or `failed` instead;
* `machine`, as benchmarks.record writes it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from al_core import methods
from benchmarks.record import RESULTS

PAGE = Path(__file__).parents[1] / "docs/performance.md"
PICTURES = PAGE.with_suffix("")
ENCODERS = PAGE.with_name("encoders.md")

OVER = re.compile(r"^(.+)_over_([^,]+)(?:, (.+))?$")
SIZES = ("passes, rows, classes", "rows", "budget", "picks", "candidates")  # first columns of a table of growth
GIB = 1073.741824  # megabytes

Results = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What a figure ought to be; `find` raises KeyError where it was not measured, or at other sizes."""

    text: str
    find: Callable[[Results], float]
    least: float | None = None
    most: float | None = None

    def row(self, results: Results) -> tuple[str, str, str, str]:
        """A row of the table."""
        wanted = f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"
        try:
            found = self.find(results)
        except KeyError:
            return self.text, wanted, "", "not measured"
        met = found >= self.least if self.least is not None else found <= (self.most or 0)
        return self.text, wanted, f"{found:.3g}", "met" if met else "**not met**"


def at(benchmark: str, *path: str, **sizes: int) -> Callable[[Results], float]:
    """A figure of a benchmark that ran at these sizes."""

    def find(results: Results) -> float:
        found = results[benchmark]
        given = found | found.get("sizes", {})
        if any(given[name] != size for name, size in sizes.items()):
            raise KeyError(benchmark)
        for step in path:
            found = found[step]
        return statistics.median(found) if isinstance(found, list) else float(found)

    return find


def most_memory(results: Results) -> float:
    """GiB of the method that takes most at a million rows and 10,000 picks."""
    largest = {name: run for name, runs in results["scale"]["methods"].items() for run in runs if (run["rows"], run["budget"]) == (1_000_000, 10_000)}
    return max(float(largest[card.name]["peak_megabytes"]) for card in methods()) / GIB  # KeyError where a method did not run, or not to its end


IMAGENET = {"rows": 1_280_000, "classes": 1000, "budget": 10_000}
BADGE = {"rows": 100_000, "classes": 1000, "dim": 512, "budget": 1000}
SOLVE = {"solve_rows": 1_000_000, "neighbors": 50, "classes": 10, "steps": 30}
DRAWN = {"passes": 20, "classes": 1000, "dim": 512}
LAID = ("solve", "laid out")
PHOTOGRAPHS, BESIDE = ("feeding", "loading", "photographs"), ("times_faster", "Pillow and torchvision")
RESNET, SMALL = "resnet18 at 224 px", "small at 28 px"
RESNET50, VIT = "resnet50 at 224 px", "vit_b_16 at 224 px"
OURS = ("all_seconds", "rondo")
SEARCH, SEARCHED, SEARCHED_GPU = ("search", "times_faster"), {"rows": 50_000, "dim": 512, "neighbors": 50}, {"rows": 1_280_000, "dim": 2048, "neighbors": 50}
KCENTER_GPU = {"rows": 1_280_000, "dim": 2048}
KCENTER = {"rows": 100_000, "dim": 2048, "budget": 1000}
GOALS = [
    Goal("`coreset`, 100k x 2048, 1000 picks, clustered: times the loop", at("kcenter", "emb", "loop_over_rondo", **KCENTER), 10),
    Goal("the same, Gaussian", at("kcenter", "gauss", "loop_over_rondo", **KCENTER), 5),
    Goal("the same, clustered and scaled to length 1", at("kcenter", "emb-unit", "loop_over_rondo", **KCENTER), 5),
    Goal("`coreset`, clustered: times google/active-learning", at("kcenter", "emb", "google_over_rondo", **KCENTER), 100),
    Goal("`coreset`, clustered: times JordanAsh/badge", at("kcenter", "emb", "JordanAsh_over_rondo", **KCENTER), 100),
    Goal("`coreset`, clustered: times LabelBench", at("kcenter-peers", "emb", "LabelBench_over_rondo", **KCENTER), 100),
    Goal("`coreset`, clustered: times DISTIL", at("kcenter-peers", "emb", "DISTIL_over_rondo", **KCENTER), 100),
    Goal("`coreset`, clustered: times DeepCore", at("kcenter-peers", "emb", "DeepCore_over_rondo", **KCENTER), 100),
    Goal("`coreset`, clustered: times patchcore's approximate sampler, which is not exact", at("kcenter-peers", "emb", "patchcore_over_rondo", **KCENTER), 2),
    Goal("the same of anomalib, which is not exact either", at("kcenter-anomalib", "emb", "anomalib_over_rondo", **KCENTER), 100),
    Goal("`coreset`, 100k x 512, 4000 picks: times the loop", at("kcenter", "growth, emb of 512 numbers", "100000 rows, 4000 picks", "loop_over_rondo"), 25),
    Goal(
        "`badge`, a sure model, 100k x 512, 1000 classes, 1000 picks: times faster than JordanAsh/badge",
        at("badge", "sure", "JordanAsh_over_rondo", **BADGE),
        12,
    ),
    Goal("the same, what was aimed at", at("badge", "sure", "JordanAsh_over_rondo", **BADGE), 50),
    Goal("`base`, 1.28M x 2048, 1000 classes: times the bare logits product", at("base", "dim 2048", "base_over_product", **IMAGENET), most=1.3),
    Goal("`mase`, the same", at("base", "dim 2048", "mase_over_product", **IMAGENET), most=1.3),
    Goal("`base`, 1.28M x 512: times the bare logits product", at("base", "dim 512", "base_over_product", **IMAGENET), most=1.5),
    Goal("`mase`, 2048 dimensions: times its authors' code", at("base", "dim 2048", "times_faster", "zeyademam/active_learning", **IMAGENET), 500),
    Goal("`mase`, 512 dimensions: times its authors' code", at("base", "dim 512", "times_faster", "zeyademam/active_learning", **IMAGENET), 100),
    Goal(
        "`bald` from draws of the head, 512 x 1000, 20 passes: times their products alone",
        at("bald", "drawn heads", "over_products", "bald", **DRAWN),
        most=1.3,
    ),
    Goal(
        "20 passes of `resnet18` at 64 px with dropout before its head: times faster than baal",
        at("mc_dropout", "passes", "times_faster_than", "baal", passes=20, size=64),
        18,
    ),
    Goal(
        "`diffusion`, solve over 1M rows, 50 neighbours, 10 classes, 30 steps: seconds",
        at("diffusion", "solve", "laid out", "all_seconds", "rondo", **SOLVE),
        most=10,
    ),
    Goal("the same: times SciPy's product", at("diffusion", *LAID, "times_faster", "scipy", **SOLVE), 2),
    Goal("neighbours by `hnsw`, 50,000 x 512, 50 of each: times faster than faiss's own", at("diffusion", *SEARCH, "faiss, hnsw", **SEARCHED), 1),
    Goal("the same: share of the true neighbours found", at("diffusion", "search", "recall", "rondo, hnsw", **SEARCHED), 0.95),
    Goal("every method, 10,000 picks out of 1M x 512: GiB beyond the mapped files", most_memory, most=4),
    Goal(
        "MNIST, 200 random labels, SimCLR and a linear head on a CPU: mean accuracy over 3 seeds, %",
        lambda results: 100 * at("encoders", "mnist", "accuracy", "mean", seeds=3)(results),
        95,
    ),
    Goal("the same: median minutes from the images to the metrics", lambda results: at("encoders", "mnist", "median_seconds", seeds=3)(results) / 60, most=15),
    Goal("loading 224 px out of a raw pack: times Pillow and torchvision on photographs", at(*PHOTOGRAPHS, "raw pack", *BESIDE, size=224), 5),
    Goal("the same, out of a JPEG pack", at(*PHOTOGRAPHS, "JPEG pack", *BESIDE, size=224), 5),
    Goal(
        "embedding with `resnet18` at 224 px out of a raw pack: times the model alone", at("feeding", "embedding", RESNET, "over_model", "raw pack"), most=1.25
    ),
    Goal("the same, out of a JPEG pack", at("feeding", "embedding", RESNET, "over_model", "JPEG pack"), most=1.25),
    Goal("embedding with `small` at 28 px out of a raw pack: times the model alone", at("feeding", "embedding", SMALL, "over_model", "raw pack"), most=1.25),
    Goal("embedding with ResNet-50 on an H200, bfloat16: images a second", at("feeding-gpu", "embedding", RESNET50, "images_a_second", "raw pack"), 10_000),
    Goal("the same, ViT-B/16", at("feeding-gpu", "embedding", VIT, "images_a_second", "raw pack"), 5000),
    Goal("`coreset`, clustered, 1.28M x 2048, 10,000 picks on an H200: seconds", at("kcenter-gpu", "emb", *OURS, **KCENTER_GPU, budget=10_000), most=0.5),
    Goal("the same, 100,000 picks", at("kcenter-many-gpu", "emb", *OURS, **KCENTER_GPU, budget=100_000), most=5),
    Goal("`badge`, a sure model, the same with 1000 classes, 10,000 picks: seconds", at("badge-gpu", "sure", *OURS, **IMAGENET, dim=2048), most=2),
    Goal("`base`, the same: seconds", at("base-gpu", "dim 2048", "all_seconds", "base", **IMAGENET), most=0.25),
    Goal("exact neighbours of the same, 50 of each: seconds", at("diffusion-gpu", "search", "all_seconds", "rondo, exact", **SEARCHED_GPU), most=20),
    Goal("`bald` from draws of the head there: times their products alone", at("bald-gpu", "drawn heads", "over_products", "bald", **DRAWN), most=1.3),
]


def load(folder: Path = RESULTS) -> Results:
    """What every benchmark wrote, by its name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def leaves(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number in nested dictionaries, with the keys that lead there."""
    if isinstance(found, dict):
        for key, each in found.items():
            yield from leaves(each, (*path, key))
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield path, float(found)


def ratios(results: Results) -> Iterator[tuple[str, str, str, float, bool]]:
    """Benchmark, circumstances, what is compared with what, ratio, and whether that is time saved beside a peer."""
    for name, result in results.items():
        for path, value in leaves(result):
            over = OVER.match(path[-1])
            inside = path[-2] if len(path) > 1 else ""
            if over and over[2] == "rondo":
                yield name, ", ".join(filter(None, [*path[:-1], over[3]])), over[1], value, True
            elif over:
                yield name, ", ".join(path[:-1]), f"{over[1]} over {over[2]}", value, False
            elif inside in ("times_faster", "times_faster_than"):
                yield name, ", ".join(path[:-2]), path[-1], value, True
            elif inside.startswith("over_"):
                yield name, ", ".join(path[:-2]), f"{path[-1]} over {inside[5:]}", value, False
            elif path[-1].startswith("ratio_to_"):
                yield name, ", ".join(path[:-1]), f"rondo over {path[-1][9:].replace('_', ' ')}", value, False


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """In Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def goals(results: Results) -> str:
    """What was to be reached, and what was."""
    return table(("goal", "wanted", "measured", ""), (goal.row(results) for goal in GOALS))


def peers(results: Results) -> str:
    """How many times less time than peers."""
    rows = [(name, where, peer, f"{value:.3g}") for name, where, peer, value, saved in ratios(results) if saved]
    return table(("benchmark", "circumstances", "peer", "times faster"), rows) + picture("peers", results) if rows else "Not measured.\n"


def floors(results: Results) -> str:
    """How many times what has to be done anyway."""
    rows = [(name, where, what, f"{value:.3g}") for name, where, what, value, saved in ratios(results) if not saved]
    return table(("benchmark", "circumstances", "ratio", "times"), rows) if rows else "Not measured.\n"


def growth(results: Results) -> str:
    """Seconds and megabytes of every method over sizes."""
    runs = results.get("scale", {}).get("methods", {})
    if not runs:
        return "Not measured.\n"
    sizes = list(dict.fromkeys((run["rows"], run["budget"]) for each in runs.values() for run in each))

    def cell(each: list[dict[str, Any]], size: tuple[int, int]) -> str:
        run = next((run for run in each if (run["rows"], run["budget"]) == size), {})
        if "seconds" not in run:
            return next((key for key in ("stopped", "failed") if key in run), "")
        return f"{run['seconds']:.3g} s ({run['cpu_seconds']:.3g} of CPU), {run['peak_megabytes']} MB"

    head = ["method", *(f"{rows:,} rows, {budget:,} picks" for rows, budget in sizes)]
    rows = [[f"`{name}`", *(cell(each, size) for size in sizes)] for name, each in sorted(runs.items())]
    return table(head, rows) + "".join(picture(name, results) for name in ("rows", "budgets", "memory"))


def own_growth(results: Results) -> str:
    """What the benchmarks of single methods measured over sizes."""
    lines = []
    for name, result in results.items():
        for path, entry in grown(result):
            if isinstance(entry, list):
                head = sorted(dict.fromkeys(key for each in entry for key in each), key=lambda key: key not in SIZES)
                lines += [f"\n{name}, {path}:\n\n", table(head, ([spelled(each.get(key, "")) for key in head] for each in entry))]
            else:
                head = sorted(dict.fromkeys(size for series in entry.values() for size in series), key=numbers)
                rows = [
                    [series, *(spelled(found.get(size, "")) for size in head)] for series, found in sorted(entry.items(), key=lambda each: numbers(each[0]))
                ]
                lines += [f"\n{name}, {path}, seconds:\n\n", table(["", *head], rows)]
    return "".join(lines).lstrip("\n") or "Not measured.\n"


def numbers(size: str) -> tuple[list[int], str]:
    """What sizes such as `1000 rows, 10 picks` are ordered by."""
    return [int(each) for each in re.findall(r"\d+", size)], size


def grown(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Tables below keys that begin with `growth`."""
    for key, each in found.items() if isinstance(found, dict) else ():
        here = f"{path}, {key}".removeprefix(", ")
        if "growth" in here and (is_list(each) or is_series(each)):
            yield here, each
        else:
            yield from grown(each, here)


def is_list(found: Any) -> bool:
    """A list of entries."""
    return isinstance(found, list) and bool(found) and all(isinstance(each, dict) for each in found)


def is_series(found: Any) -> bool:
    """Numbers by name, by name."""
    if not isinstance(found, dict) or not found:
        return False
    return all(isinstance(each, dict) and each and all(isinstance(one, float | int) for one in each.values()) for each in found.values())


def spelled(value: object) -> str:
    """A cell."""
    if isinstance(value, list):
        return " x ".join(f"{each:,}" for each in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def machines(results: Results) -> str:
    """Where each ran."""
    rows = []
    for name, result in results.items():
        found = result["machine"]
        libraries = ", ".join(f"{library} {version}" for library, version in found["libraries"].items() if library in ("torch", "numpy", "faiss-gpu"))
        device = result.get("device") or result.get("sizes", {}).get("device") or result.get("signals", {}).get("device") or "cpu"
        device = ", ".join(found.get("gpus", ())) if device != "cpu" else device
        rows.append((name, f"{found['cores']} cores of {found['processor']}, {found['memory_gib']} GiB", device, f"Python {found['python']}, {libraries}"))
    return table(("benchmark", "machine", "device", "software"), rows)


def benchmarks(_: Results) -> str:
    """How each is run, and what it says of itself."""
    rows = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        about = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if f"python -m benchmarks.{path.stem}" in about and path != Path(__file__):
            rows.append((f"`python -m benchmarks.{path.stem}`", about.partition("\n")[0].removesuffix(".")))
    return table(("benchmark", "compares"), rows)


def digits(results: Results) -> str:
    """Accuracy and time of each programme on MNIST."""
    runs = results["encoders"]["mnist"]["runs"]
    head = ("seed", "pretrained, linear head", "from scratch, same labels", "images to metrics, s", "of these pretraining, s", "from scratch, s")

    def row(run: dict[str, Any]) -> list[object]:
        seconds = run["seconds"], run["seconds_a_stage"]["pretrain"], run["seconds_from_scratch"]
        return [run["seed"], interval(run["accuracy"]), interval(run["from_scratch"]), *(f"{each:.0f}" for each in seconds)]

    return table(head, map(row, runs))


def clothes(results: Results) -> str:
    """Accuracy of linear heads on each kind of features, and what pretraining gains."""
    runs = results["encoders"]["clothing"]["runs"]
    kinds, gains = list(runs[0]["accuracy"]), list(runs[0]["gains"])
    rows = ([run["seed"], *(interval(run["accuracy"][kind]) for kind in kinds), *(interval(run["gains"][gain], sign="+") for gain in gains)] for run in runs)
    return table(("seed", *kinds, *(f"gain {gain}" for gain in gains)), rows)


def interval(found: dict[str, float], sign: str = "") -> str:
    """In percent, with its 95% interval."""
    value, low, high = (format(100 * found[key], f"{sign}.1f") for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


PARTS: dict[Path, dict[str, Callable[[Results], str]]] = {
    PAGE: {
        "goals": goals,
        "machines": machines,
        "peers": peers,
        "floors": floors,
        "growth": growth,
        "growth of single methods": own_growth,
        "benchmarks": benchmarks,
    },
    ENCODERS: {"digits": digits, "clothes": clothes},
}


def mark(name: str) -> tuple[str, str]:
    """The lines around a part of the page."""
    return f"<!-- {name}: made by `python -m benchmarks.plot` -->\n", f"<!-- end of {name} -->\n"


# ---- pictures --------------------------------------------------------------------------------------------------------------


def lines_over(axis: str, value: str) -> Callable[[Results], dict[str, Any]]:
    """A line a method: a value over rows at the budget that most runs have, or over budgets at the most common number of rows."""

    def data(results: Results) -> dict[str, Any]:
        runs = results.get("scale", {}).get("methods", {})
        fixed = "budget" if axis == "rows" else "rows"
        every = [run[fixed] for each in runs.values() for run in each]
        if not every:
            return {}
        middle = statistics.mode(every)
        lines = {name: sorted([run[axis], run[value]] for run in each if run[fixed] == middle and value in run) for name, each in sorted(runs.items())}
        return {"x": "rows" if axis == "rows" else "picks", "y": value.replace("_", " "), "title": f"{fixed}: {middle:,}", "lines": lines}

    return data


def bars(results: Results) -> dict[str, Any]:
    """A bar for each peer in each circumstance."""
    found = {f"{name}, {where}: {peer}": value for name, where, peer, value, saved in ratios(results) if saved}
    return {"x": "times faster than the peer", "bars": found} if found else {}


DATA: dict[str, tuple[str, Callable[[Results], dict[str, Any]]]] = {
    "peers": ("How many times faster than each peer", bars),
    "rows": ("Seconds of every method over the number of rows", lines_over("rows", "seconds")),
    "budgets": ("Seconds of every method over the number of picks", lines_over("budget", "seconds")),
    "memory": ("Megabytes of every method over the number of rows", lines_over("rows", "peak_megabytes")),
}


def picture(name: str, results: Results) -> str:
    """A picture's line on the page, where there is something to show."""
    about, data = DATA[name]
    return f"\n![{about}](performance/{name}.svg)\n" if data(results) else ""


def digest(data: dict[str, Any]) -> str:
    """What a picture carries, so that it can be told whether it is out of date."""
    return f"data {hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]}"


def draw(path: Path, about: str, data: dict[str, Any]) -> None:
    """Save a picture."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "rondo", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    import matplotlib.pyplot as plt

    if "bars" in data:
        figure, axes = plt.subplots(figsize=(9, 1 + 0.25 * len(data["bars"])), layout="constrained")
        names = list(reversed(data["bars"]))
        values = [data["bars"][name] for name in names]
        axes.barh(names, [value - 1 for value in values], left=1, color=["tab:blue" if value >= 1 else "tab:red" for value in values])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
    else:
        figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
        for number, (name, points) in enumerate(data["lines"].items()):
            if points:
                axes.plot(*zip(*points, strict=True), marker="osv^Dx"[number % 6], color=f"C{number % 10}", linewidth=1, markersize=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylabel(data["y"])
        axes.set_title(data["title"])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_xlabel(data["x"])
    figure.savefig(path, metadata={"Date": None, "Title": about, "Description": digest(data)})
    plt.close(figure)


def main() -> None:
    """Renew pages and pictures."""
    results = load()
    for path, parts in PARTS.items():
        page = path.read_text("utf-8")
        for name, make in parts.items():
            begin, end = mark(name)
            before, _, rest = page.partition(begin)
            _, _, after = rest.partition(end)
            page = before + begin + make(results) + end + after
        path.write_text(page, "utf-8")
    for name, (about, data) in DATA.items():
        path, found = PICTURES / f"{name}.svg", data(results)
        path.unlink(missing_ok=True)
        if found:
            PICTURES.mkdir(exist_ok=True)
            draw(path, about, found)


if __name__ == "__main__":
    main()
