"""How often a checkpointing job saves."""

from __future__ import annotations

import pytest

from runtime.planning.saving import mean_between_losses_s, save_is_due, young_interval_s


def expected_loss_s(every_s: float, write_s: float, between_s: float) -> float:
    """What a second of training costs: its share of a write, and half an interval for each loss."""
    return write_s / every_s + every_s / 2 / between_s


@pytest.mark.parametrize(("write_s", "between_s"), [(0.1, 20.0), (5.0, 600.0), (40.0, 3600.0)])
def test_youngs_interval_loses_the_least(write_s: float, between_s: float) -> None:
    """No interval nearby is better."""
    best_s = young_interval_s(write_s, between_s)
    loss_s = expected_loss_s(best_s, write_s, between_s)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert expected_loss_s(factor * best_s, write_s, between_s) > loss_s


def test_a_fixed_distance_is_kept_whatever_was_measured() -> None:
    """Every ten steps: due with the tenth, not before."""
    due = [steps for steps in range(1, 12) if save_is_due(steps, 0.1, 10, 9.0, 100.0, 3)]
    assert due == [10, 11]


def test_by_youngs_rule_more_losses_mean_more_saves() -> None:
    """The first save is due at once; later ones come sooner where losses are dense."""
    assert save_is_due(1, 0.0, 0, 0.0, 0.0, 0)
    calm = [s for s in range(1, 60) if save_is_due(s, float(s), 0, 1.0, 400.0, 1)]
    rough = [s for s in range(1, 60) if save_is_due(s, float(s), 0, 1.0, 400.0, 16)]
    assert calm[0] == 29 and rough[0] == 8  # sqrt(2 * 400), sqrt(2 * 25)
    assert not save_is_due(0, 1e9, 0, 1.0, 400.0, 1)
    assert mean_between_losses_s(400.0, 0) == 400.0
