"""The chunked encoder: what a frame sees, and what does not change it."""

from __future__ import annotations

import pytest
import torch
from simulated_recordings import tiny_encoder

from utterflow.signals.encoder import UNKNOWN_SESSION, Encoder, Sizes, attention_mask, chunk_mask, frames_of, smooth

SIZES = Sizes(channels=6, sessions=3, classes=11)


def make(**changes) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(tiny_encoder(**{"layers": 2, "dim": 24, **changes}), SIZES).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def features(bins: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, bins, SIZES.channels, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(encoder: Encoder, values: torch.Tensor, session: int = 0) -> torch.Tensor:
    found, frames = encoder(values, torch.tensor([values.shape[1]]), torch.tensor([session]))
    return found[0, : int(frames)]


def test_a_chunk_sees_itself_and_the_chunks_that_it_was_given():
    mask = chunk_mask(frames=7, chunk=2, left=1, right=0)
    assert [row.nonzero().flatten().tolist() for row in mask] == [
        [0, 1], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3], [2, 3, 4, 5], [2, 3, 4, 5], [4, 5, 6],
    ]  # fmt: skip
    assert chunk_mask(7, 2, None, 0)[6].all() and not chunk_mask(7, 2, None, 0)[5, 6]
    assert chunk_mask(6, 2, 0, 1)[0].tolist() == [True] * 4 + [False] * 2
    assert chunk_mask(5, None, 0, 0).all()


def test_padding_is_not_seen_and_no_row_is_empty():
    mask = attention_mask(chunk_mask(4, 2, 0, 0), torch.tensor([4, 1]))
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].equal(chunk_mask(4, 2, 0, 0))
    assert mask[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(("left", "right", "first", "last"), [(1, 0, 8, 16), (None, 0, 0, 16), (1, 1, 8, 20)])
def test_what_a_frame_does_not_see_does_not_change_its_output(left, right, first, last):
    """Chunks of 4 frames of 4 bins: frames 12 to 15, the fourth chunk, see those from `first` up to `last`."""
    encoder = make(
        layers=1, smoothing=0, patch_size=4, patch_stride=4, chunk_size=4, left_chunks=left, right_chunks=right
    )
    values = features(4 * 32)
    before = logits(encoder, values)[12:16]
    changed = values.clone()
    outside = torch.ones(values.shape[1], dtype=torch.bool)
    outside[4 * first : 4 * last] = False
    changed[:, outside] += 5.0
    torch.testing.assert_close(logits(encoder, changed)[12:16], before, atol=1e-6, rtol=0)
    for edge in (4 * first, 4 * last - 1):
        changed = values.clone()
        changed[:, edge] += 5.0
        assert (logits(encoder, changed)[12:16] - before).abs().max() > 1e-3


def test_chunks_of_the_past_are_enough_for_a_stream():
    """Without chunks to the right, more recording never changes the frames of finished chunks."""
    encoder = make(layers=2, smoothing=0, patch_size=4, patch_stride=4, chunk_size=3)
    values = features(4 * 30)
    whole, begun = logits(encoder, values), logits(encoder, values[:, : 4 * 15])
    torch.testing.assert_close(whole[:15], begun, atol=1e-5, rtol=0)
    unchunked = make(layers=2, smoothing=0, patch_size=4, patch_stride=4)
    assert (logits(unchunked, values)[:15] - logits(unchunked, values[:, : 4 * 15])).abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 3, "left_chunks": 1}, {"session_layer": False}, {"heads": 8}])
def test_neither_padding_nor_the_batch_change_a_trial(changes):
    encoder = make(**changes)
    trials = [features(bins, seed) for seed, bins in enumerate((90, 41, 5, 77))]
    padded = torch.full((4, 97, SIZES.channels), 50.0)
    for row, trial in enumerate(trials):
        padded[row, : trial.shape[1]] = trial[0]
    with torch.inference_mode():
        found, frames = encoder(padded, torch.tensor([90, 41, 5, 77]), torch.tensor([0, 1, 2, UNKNOWN_SESSION]))
    for row, (trial, session) in enumerate(zip(trials, (0, 1, 2, UNKNOWN_SESSION), strict=True)):
        assert frames[row] == frames_of(trial.shape[1], 4, 2)
        torch.testing.assert_close(found[row, : frames[row]], logits(encoder, trial, session), atol=1e-5, rtol=0)


def test_positions_matter_but_only_their_distances():
    """Rotary positions: a shift of the whole recording by whole frames shifts the output."""
    encoder = make(smoothing=0, patch_size=4, patch_stride=4, chunk_size=4, left_chunks=0)
    values = features(32)
    twice = torch.cat([values[:, :16], values[:, :16]], 1)
    found = logits(encoder, twice)
    torch.testing.assert_close(found[:4], found[4:], atol=1e-5, rtol=0)
    reversed_patches = torch.cat([values[:, 4 * place : 4 * place + 4] for place in (3, 2, 1, 0)], 1)
    assert (logits(encoder, reversed_patches).flip(0) - logits(encoder, values[:, :16])).abs().max() > 1e-4


def test_an_unknown_session_gets_the_mean_layer():
    encoder = make()
    values = features(40)
    with torch.no_grad():
        mean, bias = encoder.session.weight.mean(0), encoder.session.bias.mean(0)
        strange = logits(encoder, values, UNKNOWN_SESSION)
        encoder.session.weight[1], encoder.session.bias[1] = mean, bias
    torch.testing.assert_close(logits(encoder, values, 1), strange)
    assert (logits(encoder, values, 0) - strange).abs().max() > 1e-3


def test_smoothing_is_the_gaussian_of_scipy():
    from scipy.ndimage import gaussian_filter1d

    values = features(50)
    expected = gaussian_filter1d(values[0].double().numpy(), 2.0, axis=0, mode="constant", truncate=3)
    torch.testing.assert_close(smooth(values, 2.0)[0].double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_frames_are_the_whole_patches():
    assert [frames_of(bins, 4, 2) for bins in (0, 3, 4, 5, 6, 40)] == [0, 0, 1, 1, 2, 19]
