"""`params.yaml`: what is refused, in which words, and that the commented file says what the models say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import ParamsError
from tasks.params import Params, render
from tasks.starting import starting_params

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acquire: {budgett: 3}", "unknown key 'acquire.budgett'; did you mean 'budget'?"),
        ("aquire: {budget: 3}", "unknown key 'aquire'; did you mean 'acquire'?"),
        ("import-labels: {labeler: oracle}", "unknown key 'import-labels.labeler'; did you mean 'labeller'?"),
        ("ingest: {zzz: 1}", "unknown key 'ingest.zzz'; known here: cache, labels, max_pixels, shard_megabytes, source, test, workers"),
        ("acquire: {budget: '100'}", "acquire.budget is '100'; input should be a valid integer"),
        ("acquire: {budget: 0}", "acquire.budget is 0; input should be greater than or equal to 1"),
        ("seed: 1.5", "seed is 1.5; input should be a valid integer"),
        ("pretrain: {stem: tall}", "pretrain.stem is 'tall'; input should be 'standard' or 'cifar'"),
        ("classes: 2024-01-01", "Object of type date is not JSON serializable; put the value in quotes"),
        ("[1, 2]", "holds list, expected sections such as `acquire:`"),
        ("a: [", "is not YAML"),
        ("acquire: {budget: 3}\nseed: 1\nacquire: {control: 0.5}", "'acquire' is written twice; put both into one\n  in \"<unicode string>\", line 3"),
        ("acquire: {budget: 3, budget: 4}", "'budget' is written twice"),
        ("retrain: {l2: .inf}", "retrain.l2 is inf; input should be 'auto' or input should be a finite number"),
        ("pretrain: {learning_rate: .nan}", "pretrain.learning_rate is nan; input should be a finite number"),
    ],
)
def test_bad_params_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ParamsError) as caught:
        Params.load(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_params_say_how_to_make_a_workspace(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="is this a workspace"):
        Params.load(tmp_path / "params.yaml")


def test_several_problems_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: x\nacquire: {budget: y}", "utf-8")
    with pytest.raises(ParamsError, match=r"(?s)seed is 'x'.*acquire\.budget is 'y'"):
        Params.load(path)


@pytest.mark.parametrize("source", ["example://digits", "torchvision://CIFAR10", "photos"])
def test_rendered_params_read_back_as_they_were(tmp_path: Path, source: str) -> None:
    params = starting_params(source, labels="ignore", labeller="oracle", budget=7, programme=70, classes=["a: b", "yes", "null"])
    (tmp_path / "params.yaml").write_text(render(params), "utf-8")
    assert Params.load(tmp_path / "params.yaml") == params
    (tmp_path / "frozen.yaml").write_text(params.dump(), "utf-8")
    assert Params.load(tmp_path / "frozen.yaml") == params


def test_every_knob_has_a_comment() -> None:
    lines = [line for line in render(Params()).splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if "  # " not in line or line.endswith("# None")] == []


def test_root_params_are_the_examples() -> None:
    example = starting_params("example://digits", labels="ignore", labeller="oracle", programme=300)
    first = example.model_copy(update={"acquire": example.acquire.model_copy(update={"method": {"name": "coreset"}})})  # there is no model yet
    assert (ROOT / "params.yaml").read_text("utf-8") == render(first)
