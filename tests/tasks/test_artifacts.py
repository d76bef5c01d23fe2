from pathlib import Path

import pytest

from tasks.artifacts import Artifact, Line, Metrics, PretrainCurve
from tasks.errors import ArtifactError


def test_a_curve_comes_back_as_it_was(tmp_path: Path) -> None:
    more = {"spread": 0.5, "rank": 7.25, "head_spread": 0.9}
    lines = [Line(epoch=epoch, loss=1 / epoch, learning_rate=0.001, probe=None if epoch == 1 else 0.75, **more) for epoch in (1, 2, 3)]
    PretrainCurve(lines).save(tmp_path / "pretrain.jsonl")
    assert PretrainCurve.load(tmp_path / "pretrain.jsonl").lines == lines


@pytest.mark.parametrize("kind", [PretrainCurve, Metrics])
@pytest.mark.parametrize("content", [b'{"epoch": 1, "loss": "high"}\n', b"not JSON\n", b"\xff\n"])
def test_texts_that_git_holds_are_checked_at_the_border(tmp_path: Path, kind: type[Artifact], content: bytes) -> None:
    path = tmp_path / "text"
    with pytest.raises(ArtifactError) as caught:
        kind.load(path)
    assert str(caught.value) == f"{path} is missing; run the stage that writes it"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        kind.load(path)
    assert str(caught.value).startswith(f"{path} is not a {kind.__name__}: ")
    assert str(caught.value).endswith(f"; restore it with `git checkout {path}`")
