"""Measured and estimated step times, and what does not fit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from parcae_cli.catalogue import load_model
from parcae_cli.replay_inputs import read_profile
from runtime.planning.artifact_costs import ArtifactCosts, artifact_costs
from runtime.planning.costs import Change, measured_costs
from runtime.planning.errors import InputError
from runtime.planning.profile import all_layouts, estimated_profile, measured_profile
from runtime.planning.types import Layout, MigrationKind
from tests.planning.fixtures import tables

MODELS = ("gpt3-6b", "gpt2-1.5b", "bert-large", "resnet152", "vgg19")
ARTIFACT, SOURCE = read_profile("artifact.json")


def test_a_measured_profile_has_exactly_its_rows() -> None:
    """Ten for GPT-3, and nothing invented."""
    profile, _ = tables("gpt3-6b", "artifact", 32)
    assert len(profile.iteration_s) == 10
    assert profile.samples_per_s(Layout(2, 12)) == pytest.approx(11.095, abs=1e-3)
    assert profile.samples_per_s(Layout(1, 18)) == 0
    assert (profile.fewest_nodes, profile.best(11)) == (12, None)
    assert "needs at least 12 nodes (1x12), 11 here" in profile.why_nothing_fits(11)


def test_estimates_fill_what_was_not_measured() -> None:
    """The measured rows stay as they are, and every layout that fits in memory gets a row beside them."""
    measured, _ = tables("gpt3-6b", "artifact", 32)
    filled, _ = tables("gpt3-6b", "measured", 32)
    assert {layout: filled.iteration_s[layout] for layout in measured.iteration_s} == measured.iteration_s
    assert Layout(1, 18) in filled.iteration_s
    everything = set(all_layouts(load_model("gpt3-6b"), 32))
    assert everything == set(filled.iteration_s) | set(filled.refused)


def test_a_layout_that_does_not_fit_in_memory_says_the_arithmetic() -> None:
    """Which stage, how many bytes, of how many."""
    profile = estimated_profile(load_model("gpt-tiny"), 8)
    assert "1x1: stage 0 needs 0.00539 GB for 336,896 parameters" in profile.refused[Layout(1, 1)]
    assert profile.fewest_nodes == 2


def test_the_tiny_model_changes_its_layout_with_its_nodes() -> None:
    """From two nodes to eight, so that a small fleet sees every kind of migration."""
    profile = estimated_profile(load_model("gpt-tiny"), 8)
    best = [profile.best(nodes) for nodes in range(2, 9)]
    assert best[0] == Layout(1, 2) and best[1] == Layout(1, 3) and best[-1] == Layout(4, 2)
    assert len({layout.stages for layout in best if layout}) >= 2


def test_what_a_job_sees_corrects_its_profile() -> None:
    """Seen layouts take what was seen; the others are scaled alike."""
    profile, _ = tables("gpt-tiny", "measured", 8)
    seen = {Layout(4, 2): profile.iteration_s[Layout(4, 2)] * 3}
    corrected = profile.corrected(seen)
    assert corrected.iteration_s[Layout(1, 2)] == pytest.approx(profile.iteration_s[Layout(1, 2)] * 3)
    assert profile.corrected({}) is profile


@pytest.mark.parametrize("model", MODELS)
def test_stages_add_up_to_the_model(model: str) -> None:
    """Whatever the cut, all bytes are somewhere."""
    profile, _ = tables(model, "artifact", 32)
    for stages in {layout.stages for layout in profile.layouts}:
        assert sum(profile.stage_bytes(stages)) == profile.total_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("iteration_ms", [[1, 12, -5]]), r"iteration_ms\[0\]: must be a number above 0, not -5"),
        (("iteration_ms", [[1, 12]]), r"iteration_ms\[0\]: must be \[pipelines, stages, milliseconds\]"),
        (("iteration_ms", [[1, 99, 5]]), "a row has 99 stages, but there are 38 layers"),
        (("mini_batch", None), "mini_batch: is missing"),
        (("layers", [{"count": 3}]), r"layers\[0\].params: is missing"),
    ],
)
def test_a_bad_profile_is_refused_by_file_and_key(change: tuple[str, object], message: str) -> None:
    """Negative times, missing keys, rows that cannot be."""
    table = copy.deepcopy(ARTIFACT)
    key, value = change
    if value is None:
        del table["models"]["gpt-6.7b"][key]
    else:
        table["models"]["gpt-6.7b"][key] = value
    with pytest.raises(InputError, match=message):
        measured_profile(load_model("gpt3-6b"), table, "artifact.json")


def test_bad_costs_are_refused_by_file_and_key() -> None:
    """So are bad constants."""
    table = copy.deepcopy(ARTIFACT)
    table["models"]["bert"]["process_init_ms"] = -1
    with pytest.raises(InputError, match=r"x\.json: models\.bert\.process_init_ms"):
        artifact_costs(table, "bert", "x.json")
    with pytest.raises(InputError, match=r"x\.json: groups_s: must be a number"):
        measured_costs({}, "x.json", 1e9)
    with pytest.raises(InputError, match="no profile 'none'"):
        measured_profile(replace(load_model("gpt3-6b"), artifact="none"), ARTIFACT, SOURCE)


def test_transfers_follow_the_measured_table() -> None:
    """Linear between rows, proportional beyond a GiB."""
    _, costs = tables("gpt3-6b", "artifact", 32)
    assert isinstance(costs, ArtifactCosts)
    assert costs.transfer_s(1 << 30) == pytest.approx(1.1982559)
    assert costs.transfer_s(4 << 30) == pytest.approx(4 * 1.1982559)
    assert costs.transfer_s(3 << 19) == pytest.approx((0.001428108 + 0.003006771) / 2)
    assert costs.transfer_s(0) == 0


def test_the_artifacts_costs_by_hand() -> None:
    """GPT-3 at 2x12: 36 groups and the others at 115.6 ms to shrink; everything to grow."""
    profile, costs = tables("gpt3-6b", "artifact", 32)
    intra = Change(MigrationKind.INTRA_STAGE, Layout(3, 12), Layout(2, 12), lost_positions=1)
    assert costs.cost(profile, intra).stall_s == pytest.approx(0.035 + 39 * 0.1156 + 0.24)
    start = Change(MigrationKind.START, None, Layout(2, 12), fresh_nodes=24)
    assert costs.cost(profile, start).stall_s == pytest.approx(0.035 + 39 * 0.5 + 0.24 + 7.961 + 6.6 + 2.0)
    assert costs.cost(profile, Change(MigrationKind.INTRA_STAGE, Layout(2, 12), Layout(2, 12))).stall_s == 0


def test_a_prepared_change_only_pauses_for_the_switch() -> None:
    """With our own runtime's costs the copy is made while training goes on; a surprise pays for it."""
    profile, costs = tables("gpt-tiny", "measured", 8)
    change = Change(MigrationKind.INTER_STAGE, Layout(2, 2), Layout(2, 2), 1, 1, missing_bytes=2e6)
    noticed = costs.cost(profile, replace(change, noticed=True))
    surprise = costs.cost(profile, change)
    assert noticed.pause_s < surprise.pause_s and noticed.prepare_s > 0
    assert surprise.redo_s == pytest.approx(profile.iteration_s[Layout(2, 2)] / 2)
