"""Windows come from all of a recording and from nowhere else; mixtures mix signals and labels alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta

from train.batches import Mixup, Windows
from train.dataset import EcgData

CPU = torch.device("cpu")


def long_data(lengths: tuple[int, ...], window: int, leads: int = 2) -> EcgData:
    """Recordings of these lengths: sample t of lead l of recording r is r + l / 10 + t / 1000."""
    parts = [r + np.arange(leads)[:, None] / 10 + np.arange(length)[None, :] / 1000 for r, length in enumerate(lengths)]
    length = np.asarray(lengths, np.int64)
    labels = np.zeros((len(lengths), 1), np.float32)
    return EcgData(
        table="made up",
        record=np.arange(len(lengths)),
        samples=np.concatenate([part.ravel() for part in parts]).astype(np.float32),
        first=np.cumsum(leads * length) - leads * length,
        length=length,
        leads=leads,
        window_samples=window,
        hop_samples=1,
        targets=labels,
        statements=labels,
    )


def test_windows_are_drawn_from_all_of_a_recording_and_never_from_beyond_it() -> None:
    data = long_data((30, 50, 20), window=20)
    windows = Windows(data, CPU)
    generator = torch.Generator().manual_seed(0)
    for row, starts in ((0, 11), (1, 31), (2, 1)):
        rows = torch.full((600,), row)
        drawn = windows.cut(rows, windows.starts(rows, generator)).numpy()
        assert drawn.shape == (600, 2, 20)
        start = np.rint((drawn[:, 0, 0] - row) * 1000).astype(int)
        assert set(start.tolist()) == set(range(starts))
        assert np.bincount(start).max() < 2.2 * 600 / starts
        wanted = data.windows(np.full(600, row), start)
        np.testing.assert_array_equal(drawn, wanted)


def test_a_recording_shorter_than_a_window_holds_its_last_value() -> None:
    data = long_data((7, 30, 1), window=20)
    windows, rows = Windows(data, CPU), torch.tensor([0, 2])
    start = windows.starts(rows, torch.Generator().manual_seed(0))
    assert start.tolist() == [0, 0]
    drawn = windows.cut(rows, start).numpy()
    np.testing.assert_array_equal(drawn, data.windows(np.array([0, 2]), np.array([0, 0])))
    np.testing.assert_array_equal(drawn[0, 1, 6:], np.full(14, np.float32(0.106)))


def test_draws_of_windows_follow_their_generator() -> None:
    windows = Windows(long_data((300, 500), window=20), CPU)
    rows = torch.tensor([0, 1, 0, 1])
    first, again, other = (windows.starts(rows, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_mixes_signals_and_all_that_is_wanted_by_the_same_shares(alpha: float) -> None:
    rows = 2000
    signal = torch.arange(1.0, rows + 1)[:, None, None].expand(rows, 2, 3)
    wanted = {"labels": torch.eye(rows), "soft": torch.arange(1.0, rows + 1)}
    mixup = Mixup(alpha, CPU)
    mixture = mixup.draw(rows, torch.Generator().manual_seed(3))
    mixed, values = mixture(signal), {name: mixture(x) for name, x in wanted.items()}
    own = values["labels"].diagonal()
    assert ((own >= 0.5) & (own <= 1)).all()
    torch.testing.assert_close(values["labels"].sum(dim=1), torch.ones(rows))
    assert ((values["labels"] > 0).sum(dim=1) <= 2).all()
    # Each sample is its own share of itself, and the rest of one other: its labels say which.
    number = values["labels"] @ torch.arange(1.0, rows + 1)
    torch.testing.assert_close(values["soft"], number, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(mixed, number[:, None, None].expand(rows, 2, 3), rtol=1e-4, atol=1e-3)
    # Each is somebody's partner once, its own perhaps.
    assert ((values["labels"] - torch.diag(own)) > 0).sum(dim=0).max() == 1
    distribution = beta(alpha, alpha)
    share = distribution.expect(lambda x: np.maximum(x, 1 - x))
    partnered = own[own < 1].mean().item()
    assert partnered == pytest.approx(share, abs=0.02)
    again, other = (mixup.draw(rows, torch.Generator().manual_seed(seed))(signal) for seed in (3, 4))
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, other)
