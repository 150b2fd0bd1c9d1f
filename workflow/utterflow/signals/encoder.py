"""A chunked transformer with a CTC head over neural features.

Per trial: features are smoothed over time, turned by an affine layer of their session with softsign (Willett et al.
2023), cut into patches, and pass pre-norm transformer layers with rotary positions (Su et al. 2021) whose attention is
limited to chunks. The output is one frame per patch.

Shapes: B trials, T bins, C channels, F frames, D width, H heads, V classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utterflow.config.signals import CtcEncoder

SMOOTHING_REACH = 3  # standard deviations
ROTARY_BASE = 10_000.0
UNKNOWN_SESSION = -1


@dataclass(frozen=True)
class Sizes:
    """What the data, not the configuration, say of an encoder."""

    channels: int
    sessions: int
    classes: int


class Encoder(nn.Module):
    """Features to logits; padding and other trials of the batch do not change a trial's output."""

    def __init__(self, cfg: CtcEncoder, sizes: Sizes) -> None:
        super().__init__()
        self.cfg = cfg
        self.session: SessionLayer | None = SessionLayer(sizes) if cfg.session_layer else None
        self.patch = nn.Linear(cfg.patch_size * sizes.channels, cfg.dim)
        self.patch_norm = nn.LayerNorm(cfg.dim)
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList(Layer(cfg.dim, cfg.heads, cfg.feedforward, cfg.dropout) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.dim)
        self.head = nn.Linear(cfg.dim, sizes.classes)

    def forward(self, features: Tensor, bins: Tensor, sessions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a batch.

        Args:
            features: [B, T, C], normalised; what is beyond a trial's bins does not matter.
            bins: [B], at least `patch_size` each.
            sessions: [B], places in the list of sessions; -1 stands for one that training has not seen.

        Returns:
            Logits [B, F, V], and frames [B].
        """
        inside = torch.arange(features.shape[1], device=features.device) < bins[:, None]
        values = features * inside[..., None]
        if self.cfg.smoothing:
            with torch.autocast(values.device.type, enabled=False):
                values = smooth(values, self.cfg.smoothing) * inside[..., None]
        if self.session is not None:
            values = self.session(values, sessions) * inside[..., None]
        patches = values.unfold(1, self.cfg.patch_size, self.cfg.patch_stride).transpose(2, 3).flatten(2)
        hidden = self.dropout(self.patch_norm(self.patch(patches)))
        frames = (bins - self.cfg.patch_size) // self.cfg.patch_stride + 1
        visible = chunk_mask(hidden.shape[1], self.cfg.chunk_size, self.cfg.left_chunks, self.cfg.right_chunks)
        mask = attention_mask(visible.to(hidden.device), frames)
        rotation = rotary_angles(hidden.shape[1], self.cfg.dim // self.cfg.heads, hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, mask, rotation)
        return self.head(self.norm(hidden)), frames


class SessionLayer(nn.Module):
    """An affine layer per session, then softsign; the mean of all for a session that training has not seen."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(sizes.channels).repeat(sizes.sessions, 1, 1))
        self.bias = nn.Parameter(torch.zeros(sizes.sessions, sizes.channels))

    def forward(self, values: Tensor, sessions: Tensor) -> Tensor:
        """[B, T, C] and [B] to [B, T, C]."""
        known = sessions.clamp(min=0)
        weight, bias = self.weight[known], self.bias[known]
        if not self.training:
            unknown = sessions == UNKNOWN_SESSION
            weight[unknown], bias[unknown] = self.weight.mean(0), self.bias.mean(0)
        return F.softsign(torch.baddbmm(bias[:, None], values, weight))


class Layer(nn.Module):
    """A pre-norm transformer layer with rotary positions."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, feedforward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feedforward, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """[B, F, D], mask [B, 1, F, F] (true: visible) and angles' cosine and sine [F, D/H/2] to [B, F, D]."""
        batch, frames, dim = hidden.shape
        projected = self.qkv(self.attention_norm(hidden)).view(batch, frames, 3, self.heads, dim // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        found: Tensor = F.scaled_dot_product_attention(
            rotate(query, rotation), rotate(key, rotation), value, attn_mask=mask, dropout_p=rate
        )
        hidden = hidden + self.dropout(self.out(found.transpose(1, 2).reshape(batch, frames, dim)))
        changed: Tensor = self.dropout(self.feedforward(self.feedforward_norm(hidden)))
        return hidden + changed


def frames_of(bins: int, patch_size: int, patch_stride: int) -> int:
    """Whole patches that fit into so many bins; 0 for fewer than a patch."""
    return (bins - patch_size) // patch_stride + 1 if bins >= patch_size else 0


def chunk_mask(frames: int, chunk: int | None, left: int | None, right: int) -> Tensor:
    """Which frames see which: [F, F], row sees column.

    A frame sees its own chunk of `chunk` frames, `left` chunks before it (None: all) and `right` after it. Through
    several layers it learns of frames that many times as far away. Without chunks every frame sees all.
    """
    if chunk is None:
        return torch.ones(frames, frames, dtype=torch.bool)
    number = torch.arange(frames) // chunk
    ahead = number[None, :] - number[:, None]
    return (ahead <= right) & (ahead >= (-frames if left is None else -left))


def attention_mask(visible: Tensor, frames: Tensor) -> Tensor:
    """[F, F] and [B] to [B, 1, F, F]: padding is not seen; a frame always sees itself, so that no row is empty."""
    places = torch.arange(visible.shape[0], device=visible.device)
    real = places < frames[:, None]
    itself = places[:, None] == places
    return ((visible & real[:, None, :]) | itself)[:, None]


def smooth(values: Tensor, deviation: float) -> Tensor:
    """Gaussian smoothing over time, [B, T, C] to the same; zeros stand before and after."""
    reach = math.ceil(SMOOTHING_REACH * deviation)
    places = torch.arange(-reach, reach + 1, device=values.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = (kernel / kernel.sum()).to(values.dtype)
    batch, bins, channels = values.shape
    rows = values.transpose(1, 2).reshape(batch * channels, 1, bins)
    return F.conv1d(rows, kernel[None, None], padding=reach).view(batch, channels, bins).transpose(1, 2)


def rotary_angles(frames: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each frame's angles, [F, width/2] each."""
    speeds = ROTARY_BASE ** (-torch.arange(0, width - 1, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * speeds
    return angles.cos(), angles.sin()


def rotate(values: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of a head's dimensions by its frame's angle: [B, H, F, D/H] to the same; an odd one stays."""
    cosine, sine = rotation
    pairs = cosine.shape[-1]
    first, second, rest = values.float().tensor_split((pairs, 2 * pairs), dim=-1)
    turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine, rest], dim=-1)
    return turned.to(values.dtype)
