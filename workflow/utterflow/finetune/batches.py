"""From encoded rows to batches: order, packing, padding.

A sequence is what the model sees as one item: a row, or several rows packed together. Rows of a packed sequence are
kept apart by position ids that begin at 0 with each row and by the absence of an attention mask: transformers makes a
block-diagonal mask from such positions (`masking_utils.find_packed_sequence_indices`), FlashAttention their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utterflow.errors import UserError
from utterflow.sft.tokenize import IGNORED, Prompt, read_part

Collate = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]
Media = Callable[[Sequence[Prompt]], dict[str, Tensor]]

MULTIPLE = 8  # lengths are padded to a multiple of it, as tensor cores want
BATCHES_TO_SORT = 50  # batches whose rows are sorted together


def epoch_order(lengths: Sequence[int], batch: int, *, grouped: bool, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a permutation of all sequences that depends on nothing but the arguments.

    With `grouped`, sequences of like length come together: a random permutation is cut into stretches of
    `BATCHES_TO_SORT` batches, each is sorted by length and cut into batches, and the batches are shuffled. The batch
    with the longest sequence comes first, so that too little memory shows at once; a smaller rest comes last.

    Args:
        batch: sequences of one forward pass over all processes.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if not grouped or len(lengths) <= batch:
        return order
    whole = len(order) - len(order) % batch
    rest = sorted(order[whole:], key=lambda index: -lengths[index])
    stretch = batch * BATCHES_TO_SORT
    batches: list[list[int]] = []
    for start in range(0, whole, stretch):
        ranked = sorted(order[start : min(start + stretch, whole)], key=lambda index: -lengths[index])
        batches += [ranked[place : place + batch] for place in range(0, len(ranked), batch)]
    batches = [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
    longest = max(range(len(batches)), key=lambda place: lengths[batches[place][0]])
    batches.insert(0, batches.pop(longest))
    return [index for group in batches for index in group] + rest


class EpochSampler(torch.utils.data.Sampler[int]):
    """Indices in the order of `epoch_order`; the same in all processes, and after a resume."""

    def __init__(self, lengths: Sequence[int], batch: int, *, grouped: bool, seed: int) -> None:
        self._lengths, self._batch, self._grouped, self._seed = lengths, batch, grouped, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self._lengths, self._batch, grouped=self._grouped, seed=self._seed, epoch=self.epoch))


def pack_rows(dataset: Any, max_length: int) -> Any:
    """Rows put together into sequences of at most `max_length` tokens (best-fit decreasing), none of them cut."""
    from trl.data_utils import pack_dataset

    return pack_dataset(dataset, max_length, "bfd")


def make_collator(pad_token: int, *, flatten: bool, media: Media | None = None) -> Collate:
    """A collator for plain and packed sequences.

    Args:
        flatten: a packed batch as one row, as FlashAttention wants it.
        media: makes what the model takes for the recordings of a batch, from the prompts; packed rows have none.
    """

    def collate(sequences: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        if "seq_lengths" not in sequences[0]:
            batch = pad_sequences(sequences, pad_token)
            if media is not None and "audio" in sequences[0]:
                batch |= media([_prompt(item) for item in sequences])
            return batch
        return pad_packed([join_sequences(sequences)] if flatten else sequences, pad_token)

    return collate


def _prompt(item: Mapping[str, Any]) -> Prompt:
    """A row's token ids and recordings; that the answer is among the former changes nothing."""
    return Prompt(tuple(item["input_ids"]), tuple(read_part(part) for part in item["audio"]))


def pad_sequences(sequences: Sequence[Mapping[str, Any]], pad_token: int) -> dict[str, Tensor]:
    """Rows of a batch, padded to its longest: `input_ids`, `labels`, `attention_mask` [rows, length]; `weights` [rows]
    where the rows have some."""
    length = padded_length(len(item["input_ids"]) for item in sequences)
    batch = {
        "input_ids": _filled([item["input_ids"] for item in sequences], length, pad_token),
        "labels": _filled([item["labels"] for item in sequences], length, IGNORED),
        "attention_mask": _filled([[1] * len(item["input_ids"]) for item in sequences], length, 0),
    }
    if "weight" in sequences[0]:
        batch["weights"] = torch.tensor([item["weight"] for item in sequences], dtype=torch.float32)
    return batch


def pad_packed(sequences: Sequence[Mapping[str, Any]], pad_token: int) -> dict[str, Tensor]:
    """Packed sequences, padded to the longest: `input_ids`, `labels`, `position_ids` [sequences, length].

    The padding counts as one more row, without loss.
    """
    length = padded_length(len(item["input_ids"]) for item in sequences)
    lengths = [[*item["seq_lengths"], length - len(item["input_ids"])] for item in sequences]
    return {
        "input_ids": _filled([item["input_ids"] for item in sequences], length, pad_token),
        "labels": _filled([item["labels"] for item in sequences], length, IGNORED),
        "position_ids": torch.stack([torch.cat([torch.arange(part) for part in parts]) for parts in lengths]),
    }


def join_sequences(sequences: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Packed sequences as one."""
    return {
        name: [value for item in sequences for value in item[name]] for name in ("input_ids", "labels", "seq_lengths")
    }


def padded_length(lengths: Iterator[int]) -> int:
    return -(-max(lengths) // MULTIPLE) * MULTIPLE


def _filled(rows: Sequence[Sequence[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=torch.long)


def padding_share(lengths: Sequence[int], order: Sequence[int], batch: int) -> float:
    """Share of padding among the tokens that the model sees in an epoch; `batch` sequences are padded together."""
    seen = sum(
        padded_length(lengths[index] for index in order[start : start + batch]) * len(order[start : start + batch])
        for start in range(0, len(order), batch)
    )
    return 1 - sum(lengths) / seen if seen else 0.0


def check_packing(model: Any, device: torch.device) -> None:
    """Two rows packed must give what each gives alone.

    Raises:
        UserError: the model lets rows of a packed sequence see each other.
    """
    vocabulary = int(model.config.get_text_config().vocab_size)
    first = torch.arange(7, device=device)[None] % vocabulary
    second = (torch.arange(9, device=device)[None] * 5 + 3) % vocabulary
    positions = torch.cat([torch.arange(7, device=device), torch.arange(9, device=device)])[None]
    training = model.training
    model.eval()
    with torch.no_grad():
        apart = torch.cat([model(input_ids=row, use_cache=False).logits for row in (first, second)], dim=1)
        packed = model(input_ids=torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
    model.train(training)
    tolerance = 1e-3 if packed.dtype == torch.float32 else 0.1
    if not torch.allclose(apart, packed, rtol=tolerance, atol=tolerance * float(apart.abs().max())):
        raise UserError(
            "this model does not keep the rows of a packed sequence apart",
            where="packing",
            fix="write `packing: false` for this training",
        )
