"""Metrics of predictions for speechocean762: scores, transcripts, mispronunciations.

docs/pronunciation-scores.md has the definitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from utterflow.evaluate.edits import Edits, count_edits, intern, rate, total_edits, word_edits
from utterflow.evaluate.normalize import normalizer
from utterflow.pronunciation.apa import ASPECTS, agreement
from utterflow.pronunciation.gold import Gold
from utterflow.pronunciation.intervals import Array, Sums, bootstrap, correlation, divide
from utterflow.pronunciation.mdd import ERRORS, OUTCOMES, Outcome, Position, count_outcomes, overlap, positions, ratios
from utterflow.pronunciation.parse import NOTHING, TRANSCRIPTS, Prediction
from utterflow.pronunciation.published import TABLE, compare
from utterflow.pronunciation.records import (
    Answered,
    AspectScores,
    Confusion,
    EditCounts,
    MddScores,
    OverlapCounts,
    PhoneScores,
    PronunciationScores,
    PublishedDifference,
)

NO_PHONE = "-"
RATIOS = ("precision", "recall", "f1", "far", "frr", "der")
# Squares are summed of scores minus this: the sums of small numbers lose fewer digits.
MIDDLE = 5.0

Unit = Literal["utterance", "speaker"]


class Compared(NamedTuple):
    """An utterance's transcripts against the reference; an unusable transcript is empty."""

    words: Edits
    phones: Edits
    shared: int
    positions: list[Position]


def compare_transcripts(gold: Gold, prediction: Prediction, normalize: Callable[[str], str]) -> Compared:
    """Edits in words and in phones as pronounced, shared phones, and positions of the three-way alignment."""
    phones = prediction.phones or ()
    return Compared(
        words=word_edits(normalize(gold.words), normalize(prediction.words or "")),
        phones=count_edits(*intern([gold.pronounced, phones])),
        shared=overlap(gold.pronounced, phones),
        positions=positions(gold.canonical, gold.pronounced, phones),
    )


def score(
    gold: Mapping[str, Gold],
    predictions: Mapping[str, Prediction],
    *,
    normalizer_name: str,
    samples: int,
    confidence: float,
    seed: int,
    unit: Unit,
    with_phones: bool,
) -> PronunciationScores:
    """All metrics over the gold utterances.

    An unusable score is left out of its aspect's correlation and error. An unusable transcript is an empty one. An
    utterance without a prediction is one with nothing usable. Metrics of a transcript that no row has are null.

    Args:
        gold: at least one utterance.
        predictions: by utterance, only of `gold`.
        samples: bootstrap resamples; 0: no intervals.
        unit: what is resampled; `speaker` needs the speaker of each gold utterance.
        with_phones: add outcomes and confusions of phones.
    """
    answers = [predictions.get(name, NOTHING) for name in gold]
    items = list(gold.values())
    normalize = normalizer(normalizer_name)
    compared = [compare_transcripts(*pair, normalize) for pair in zip(items, answers, strict=True)]
    has_words = any(answer.words is not None for answer in answers)
    has_phones = any(answer.phones is not None for answer in answers)
    apa = {name: _aspect(name, items, answers) for name in ASPECTS}
    found = [position for item in compared for position in item.positions]
    words = total_edits(item.words for item in compared) if has_words else None
    phones = total_edits(item.phones for item in compared) if has_phones else None
    mdd = mdd_scores(found) if has_phones else None
    shared = _overlap(compared) if has_phones else None
    values = _flat(apa, words, phones, shared, mdd)
    drawn = bootstrap(
        utterance_columns(items, answers, compared),
        metrics_of_sums,
        samples=samples,
        confidence=confidence,
        seed=seed,
        clusters=_numbers([item.speaker for item in items]) if unit == "speaker" else None,
    )
    return PronunciationScores(
        utterances=len(gold),
        predicted=len(predictions),
        missing=len(gold) - len(predictions),
        coverage=len(predictions) / len(gold),
        answered={name: _answered(name, answers) for name in (*ASPECTS, *TRANSCRIPTS)},
        apa=apa,
        **{name: values[name] for name in ("wer", "per", "paper_f1", "paper_precision", "paper_recall")},
        mdd=mdd,
        word_edits=_edits(words),
        phone_edits=_edits(phones),
        overlap=shared,
        normalizer=normalizer_name,
        confidence=confidence,
        bootstrap_unit=unit,
        bootstrap_samples=samples,
        intervals={name: drawn[name] if value is not None else None for name, value in values.items()},
        comparison={
            system: {name: PublishedDifference(**item._asdict()) for name, item in numbers.items()}
            for system, numbers in compare(values).items()
        },
        comparison_source=TABLE,
        phones=phone_scores(found) if with_phones and has_phones else None,
        confusions=confusions(found) if with_phones and has_phones else None,
    )


def mdd_scores(found: Iterable[Position]) -> MddScores:
    """Outcomes and ratios of positions."""
    by_kind: dict[str, Counter[Outcome]] = {kind: Counter() for kind in ("correct", *ERRORS)}
    for position in found:
        by_kind[position.kind][position.outcome] += 1
    counts: Counter[Outcome] = Counter()
    for part in by_kind.values():
        counts.update(part)
    kinds = {kind: _outcomes(by_kind[kind]) for kind in ERRORS}
    for outcomes in kinds.values():
        del outcomes["TA"]
    return MddScores(**_outcomes(counts), positions=counts.total(), **ratios(counts)._asdict(), kinds=kinds)


def phone_scores(found: Iterable[Position]) -> list[PhoneScores]:
    """Outcomes, and what was said and heard, by canonical phone, in alphabetical order."""
    by_phone: dict[str, list[Position]] = {}
    for position in found:
        if position.canonical is not None:
            by_phone.setdefault(position.canonical, []).append(position)
    return [
        PhoneScores(
            phone=phone,
            **_outcomes(count_outcomes(group)),
            spoken=_frequencies(position.human for position in group),
            heard=_frequencies(position.model for position in group),
        )
        for phone, group in sorted(by_phone.items())
    ]


def confusions(found: Iterable[Position]) -> list[Confusion]:
    """Positions at which something differs, most frequent first."""
    counts = Counter(
        (position.canonical, position.human, position.model) for position in found if position.outcome != "TA"
    )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], [phone or NO_PHONE for phone in item[0]]))
    return [Confusion(canonical=c, spoken=s, heard=h, count=count) for (c, s, h), count in ordered]


def metrics_of_sums(sums: Sums) -> dict[str, Array]:
    """The metrics, each [draws], from sums over utterances, each [draws]; NaN where undefined."""
    result: dict[str, Array] = {}
    for name in ASPECTS:
        result[f"{name}_pcc"] = correlation(sums, name)
        result[f"{name}_mae"] = divide(sums[f"{name}.error"], sums[f"{name}.n"])
    result["wer"] = divide(sums["word_edits"], sums["words"])
    result["per"] = divide(sums["phone_edits"], sums["phones"])
    result["paper_precision"] = divide(sums["shared"], sums["predicted"])
    result["paper_recall"] = divide(sums["shared"], sums["phones"])
    result["paper_f1"] = divide(2 * sums["shared"], sums["predicted"] + sums["phones"])
    accepted, false_rejected, false_accepted, right, wrong = (sums[name] for name in OUTCOMES)
    rejected = right + wrong
    result["mdd_precision"] = divide(rejected, rejected + false_rejected)
    result["mdd_recall"] = divide(rejected, rejected + false_accepted)
    result["mdd_f1"] = divide(2 * rejected, 2 * rejected + false_rejected + false_accepted)
    result["mdd_far"] = divide(false_accepted, false_accepted + rejected)
    result["mdd_frr"] = divide(false_rejected, accepted + false_rejected)
    result["mdd_der"] = divide(wrong, rejected)
    return result


def utterance_columns(
    gold: Sequence[Gold], answers: Sequence[Prediction], compared: Sequence[Compared]
) -> dict[str, Array]:
    """What the metrics sum, [utterances] each."""
    columns: dict[str, Array] = {}
    for name in ASPECTS:
        x = np.array([item.scores[name] for item in gold], dtype=np.float64) - MIDDLE
        y = np.array([item.scores[name] for item in answers], dtype=np.float64) - MIDDLE
        usable = ~np.isnan(y)
        x, y = np.where(usable, x, 0.0), np.where(usable, y, 0.0)
        parts = {"n": usable, "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y, "error": np.abs(x - y)}
        columns |= {f"{name}.{part}": np.asarray(values, dtype=np.float64) for part, values in parts.items()}
    counts = [count_outcomes(item.positions) for item in compared]
    whole: dict[str, list[int]] = {
        "word_edits": [item.words.edits for item in compared],
        "words": [item.words.reference_length for item in compared],
        "phone_edits": [item.phones.edits for item in compared],
        "phones": [item.phones.reference_length for item in compared],
        "predicted": [len(item.phones or ()) for item in answers],
        "shared": [item.shared for item in compared],
    }
    whole |= {name: [count[name] for count in counts] for name in OUTCOMES}
    return columns | {name: np.array(values, dtype=np.float64) for name, values in whole.items()}


def _flat(
    apa: Mapping[str, AspectScores],
    words: Edits | None,
    phones: Edits | None,
    shared: OverlapCounts | None,
    mdd: MddScores | None,
) -> dict[str, float | None]:
    """The metrics by the names that intervals and published numbers have."""
    flat: dict[str, float | None] = {}
    for name, item in apa.items():
        flat |= {f"{name}_pcc": item.pcc, f"{name}_mae": item.mae}
    for name, edits in (("wer", words), ("per", phones)):
        flat[name] = rate(edits.edits, edits.reference_length) if edits else None
    flat |= dict.fromkeys(("paper_precision", "paper_recall", "paper_f1"))
    if shared:
        flat["paper_precision"] = rate(shared.shared, shared.predicted)
        flat["paper_recall"] = rate(shared.shared, shared.reference)
        flat["paper_f1"] = rate(2 * shared.shared, shared.predicted + shared.reference)
    return flat | {f"mdd_{name}": getattr(mdd, name, None) for name in RATIOS}


def _aspect(name: str, gold: Sequence[Gold], answers: Sequence[Prediction]) -> AspectScores:
    pairs = [
        (item.scores[name], value)
        for item, answer in zip(gold, answers, strict=True)
        if (value := answer.scores[name]) is not None
    ]
    found = agreement([one for one, _ in pairs], [other for _, other in pairs])
    return AspectScores(n=len(pairs), **found._asdict())


def _edits(total: Edits | None) -> EditCounts | None:
    if total is None:
        return None
    return EditCounts(
        length=total.reference_length,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
    )


def _overlap(compared: Sequence[Compared]) -> OverlapCounts:
    total = total_edits(item.phones for item in compared)
    return OverlapCounts(
        shared=sum(item.shared for item in compared),
        predicted=total.hits + total.substitutions + total.insertions,
        reference=total.reference_length,
    )


def _answered(name: str, answers: Sequence[Prediction]) -> Answered:
    kinds = Counter(answer.problems[name].partition(":")[0] for answer in answers if name in answer.problems)
    return Answered(usable=len(answers) - kinds.total(), unusable=dict(sorted(kinds.items())))


def _outcomes(counts: Counter[Outcome]) -> dict[str, int]:
    return {
        "TA": counts["TA"],
        "FR": counts["FR"],
        "FA": counts["FA"],
        "TR": counts["CD"] + counts["DE"],
        "CD": counts["CD"],
        "DE": counts["DE"],
    }


def _frequencies(phones: Iterable[str | None]) -> dict[str, int]:
    counts = Counter(phone or NO_PHONE for phone in phones)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _numbers(names: Sequence[str | None]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.unique([str(name) for name in names], return_inverse=True)[1].astype(np.int64)
