"""The study: finished runs are kept, and its table says what the records say."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

for module in ("PIL", "tokenizers", "tqdm", "tensorboard", "matplotlib", "filelock"):
    pytest.importorskip(module, reason="the study trains, which needs the extra 'train'")

from benchmarks.study import __main__ as command  # noqa: E402
from benchmarks.study import losses, maps, pace, page, plots, runs  # noqa: E402
from sparc_kernels.train.checkpoint import read_log  # noqa: E402
from sparc_kernels.train.config import LOSSES as TRAINED  # noqa: E402
from sparc_kernels.train.data_scenes import scene  # noqa: E402

SMALL = (("batch_size", 4), ("eval_pairs", 3), ("device", "cpu"))
SPARC = "sparc, sigma 0.5, local 5"
TINY = runs.Subject("scenes", "scenes", 3, (runs.CLIP, SPARC), SMALL)


def record(**results: float) -> dict[str, Any]:
    chances = {"chance_r1": 0.004, "chance_r5": 0.02, "chance": 0.132}
    config = {"steps": 5, "batch_size": 4, "preset": "tiny", "data": "scenes"}
    machine = {"device": "a machine", "torch": "2"}
    counts = {"parameters": 170_000, "train_pairs": 20, "heldout_pairs": 6, "seconds": 90.0}
    return {"config": config, "results": chances | results, "machine": machine, **counts}


@pytest.fixture
def made_up() -> page.Found:
    """Two losses that three seeds move alike, and one that only two seeds have."""
    values = {
        runs.CLIP: {0: 0.50, 1: 0.54, 2: 0.42},
        SPARC: {2: 0.51, 0: 0.60, 1: 0.63},
        "sparc, sigma 1/P, local 1": {0: 0.30, 2: 0.32},
    }
    found = page.Found("scenes", "")
    for loss, of_seeds in values.items():
        found.runs[loss] = {seed: record(pointing=x, iou=x / 2, image_to_text_r1=0.9) for seed, x in of_seeds.items()}
    return found


def test_a_run_that_was_stopped_goes_on_and_one_that_ended_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def terminated() -> Iterator[list[int]]:
        yield [signal.SIGTERM]

    with monkeypatch.context() as patched:
        patched.setattr(runs, "noted_signals", terminated)
        assert runs.train([TINY], [0], tmp_path) == signal.SIGTERM
    assert not list(runs.collect(TINY, [0], tmp_path))
    clip = Path(TINY.config(runs.CLIP, 0, tmp_path).out)
    first = read_log(clip / "log.csv")
    assert [row["step"] for row in first] == ["1"]

    assert runs.train([TINY], [0], tmp_path) == 0
    assert read_log(clip / "log.csv")[0] == first[0]  # not trained again
    found = command.gather(TINY, [0], tmp_path)
    assert list(found.runs) == [runs.CLIP, SPARC]
    ended = found.runs[SPARC][0]
    assert ended["config"]["steps"] == 3
    assert (ended["config"]["similarity_threshold"], ended["config"]["local_weight"]) == (0.5, 5.0)
    assert ended["results"]["words"] > 0

    monkeypatch.setattr(runs, "Trainer", None)  # calling it fails
    assert runs.train([TINY], [0], tmp_path) == 0
    longer = runs.Subject("scenes", "scenes", 4, (runs.CLIP,), SMALL)
    with pytest.raises(ValueError, match="steps: 3 -> 4"):
        runs.train([longer], [0], tmp_path)


def test_the_table_has_mean_spread_and_count(made_up: page.Found) -> None:
    lines = page.of_subject(made_up).splitlines()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert cells["%"] == ["chance", "clip (n = 3)", f"{SPARC} (n = 3)", "sparc, sigma 1/P, local 1 (n = 2)"]
    # 0.50, 0.54, 0.42: mean 0.4867, deviations 0.0133, 0.0533, -0.0667, so sqrt(0.007467 / 2) = 0.0611.
    pointing = "grounding, words whose strongest patch is right"
    assert cells[pointing] == ["13.2 ± 0.0", "48.7 ± 6.1", "58.0 ± 6.2", "31.0 ± 1.4"]
    # Seed by seed 0.10, 0.09, 0.09, far closer together than the seeds; -0.20 and -0.10.
    assert cells[f"gain over CLIP, {pointing}"] == ["", "", "+9.3 ± 0.6", "-15.0 ± 7.1"]
    assert not [name for name in cells if "text to image" in name]


def test_all_losses_stand_in_one_table_with_their_times(made_up: page.Found) -> None:
    for number, of_seeds in enumerate(made_up.runs.values()):
        for seed, run in of_seeds.items():
            for place, (name, _, _) in enumerate(page.GROUNDING):
                run["results"][name] = 0.5 + 0.1 * number + 0.01 * place + 0.001 * seed
            run["results"]["text_to_image_r1"] = 0.8
    made_up.runs["filip"] = {0: record(**made_up.runs[SPARC][0]["results"], own_image_to_text_r1=0.25)}
    made_up.runs["filip"][0]["results"]["own_text_to_image_r1"] = 0.125
    times = pace.Pace(
        {runs.CLIP: 1.0, "filip": 1.5},
        {runs.CLIP: 0.02, "filip": 0.254},
        7,
        0.25,
        {"device": "a machine", "torch": "2"},
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.compared(made_up, times).splitlines()]
    head = next(cells for cells in lines if cells[:1] == ["%"])
    rows = {cells[0]: dict(zip(head, cells)) for cells in lines if cells}
    assert list(rows)[2:] == ["chance", runs.CLIP, SPARC, "sparc, sigma 1/P, local 1", "filip"]
    assert (rows["chance"]["words"], rows["chance"]["R@1 to image"]) == ("13.2 ± 0.0", "0.4 ± 0.0")
    assert (rows[SPARC]["n"], rows[SPARC]["words"], rows[SPARC]["shape"]) == ("3", "60.1 ± 0.1", "64.1 ± 0.1")
    assert (rows[SPARC]["words, gain over CLIP"], rows[SPARC]["by products"]) == ("+10.0 ± 0.0", "58.0 ± 6.2")
    assert (rows["filip"]["R@1 by own scores"], rows["filip"]["step over CLIP's"]) == ("25.0; 12.5", "1.50")
    assert rows["filip"]["loss's share of it"] == "25"
    assert rows[SPARC]["R@1 by own scores"] == rows[SPARC]["step over CLIP's"] == ""


def test_every_loss_of_the_trainer_is_compared_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What CI runs of `make compare-losses`."""
    assert losses.main(["--small", "--out", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(runs.LOSSES)
    assert {settings.get("loss", "sparc") for settings in runs.LOSSES.values()} == set(TRAINED)
    assert (tmp_path / "study_losses.svg").stat().st_size > 1000
    kept = pace.kept(tmp_path)
    assert kept is not None
    assert kept.over_clip.keys() == runs.LOSSES.keys()
    assert losses.main(["--small", "--write"]) == 2
    assert "nothing to write" in capsys.readouterr().err


def test_a_record_without_the_newest_measures_is_made_again(tmp_path: Path) -> None:
    """From the checkpoint, without training."""
    subject = runs.Subject("scenes", "scenes", 1, (runs.CLIP,), SMALL)
    assert runs.train([subject], [0], tmp_path) == 0
    folder = Path(subject.config(runs.CLIP, 0, tmp_path).out)
    whole = json.loads((folder / runs.RESULTS).read_text())
    log = (folder / "log.csv").read_bytes()
    results = {name: value for name, value in whole["results"].items() if not name.startswith("cosine")}
    (folder / runs.RESULTS).write_text(json.dumps(whole | {"version": 1, "results": results}))
    assert not list(runs.collect(subject, [0], tmp_path))
    assert runs.train([subject], [0], tmp_path) == 0
    ((_, _, again),) = runs.collect(subject, [0], tmp_path)
    assert again["results"] == whole["results"]
    assert (folder / "log.csv").read_bytes() == log


def test_one_seed_has_no_spread_and_nothing_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert page.spread([0.5]) == "50.0"
    assert command.main(["--no-training", "--only", "scenes", "--out", str(tmp_path)]) == 2
    assert "no run has ended" in capsys.readouterr().err
    assert command.main(["--stamps", str(tmp_path / "none")]) == 2
    assert "tuxpaint-stamps-default" in capsys.readouterr().err


def test_the_budget_is_that_of_the_records(made_up: page.Found) -> None:
    made_up.what = page.budget(made_up)
    assert made_up.what.startswith("8 runs of 5 steps of 4 pairs, preset `tiny` with 0.17 M parameters; 20 pairs drawn")
    assert "Minutes of training each on a machine, torch 2." in made_up.what
    text = page.with_section(f"before\n{page.BEGIN}\nold\n{page.END}\nafter", [made_up])
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert made_up.what in text
    assert "old" not in text


def test_the_plot_has_a_dot_for_each_seed(made_up: page.Found, tmp_path: Path) -> None:
    plots.draw(made_up, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert SPARC in drawn
    assert len(drawn) < 200_000
    few = json.loads(json.dumps(made_up.runs))  # the same without a seed is another picture
    made_up.runs = {loss: dict(list(of.items())[1:]) for loss, of in few.items()}
    plots.draw(made_up, tmp_path / "fewer.svg")
    assert drawn.count("<use") > (tmp_path / "fewer.svg").read_text().count("<use")


@pytest.fixture(scope="module")
def shifted() -> maps.Embedded:
    """Words that know their shape, hidden under a larger share that all have and that points at the background."""
    drawn = [scene(0, "heldout", number, 64) for number in range(40)]
    drawn = [one for one in drawn if len(one.items) == 2 and all(item.texture != "plain" for item in one.items)]
    patches, said = [], []
    for number, one in enumerate(drawn):
        masks = torch.from_numpy(one.patch_masks(8)).float()
        masks[1] *= 1 - masks[0]
        patches.append(torch.stack([*masks, 1 - masks.amax(0)], 1))  # [P, 3]: first shape, second shape, neither
        said += [maps.Said(number, word, torch.eye(3)[word.item] + 5 * torch.eye(3)[2]) for word in one.words]
    return maps.Embedded(drawn, torch.stack(patches), said, 8)


def test_what_all_words_of_a_kind_share_can_be_taken_out(shifted: maps.Embedded) -> None:
    assert len(shifted.scenes) > 3
    assert maps.of_maps(shifted, centred=False)["pointing"] == 0
    assert maps.of_maps(shifted, centred=True)["pointing"] == 1


def test_words_for_area_are_told_from_words_for_shapes(shifted: maps.Embedded) -> None:
    for shape, mask, pointing, chosen, correlation in maps.of_shapes(shifted):
        assert 0.05 < mask < 0.25, shape
        assert pointing == 0
        assert chosen == 1
        assert correlation < -0.5  # similar to background, so to pictures with little on them
