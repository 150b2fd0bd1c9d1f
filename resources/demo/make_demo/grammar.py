"""A small home-assistant grammar: sentences with their intent and entity spans.

The grammar is a table of patterns. A pattern is plain text with slots in square brackets; a slot is filled
with a value drawn from `SLOTS` and becomes an entity of the sentence. Everything is lower case and spelt out,
as an assistant's speech recogniser would see it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
MINUTES = ["fifteen", "thirty", "forty five"]
HALVES = ["am", "pm"]
TENS = ["ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
COUNTS = ["two", "three", "five", "ten", "fifteen", "twenty", "thirty", "fifty"]

SLOTS: dict[str, list[str]] = {
    "time": (
        [f"{hour} {half}" for hour in HOURS for half in HALVES]
        + [f"{hour} {minute} {half}" for hour in HOURS for minute in MINUTES for half in HALVES]
        + ["noon", "midnight"]
    ),
    "date": [
        "today",
        "tomorrow",
        "tonight",
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "this weekend",
        "next week",
    ],
    "room": [
        "kitchen",
        "bedroom",
        "bathroom",
        "garage",
        "hallway",
        "office",
        "basement",
        "attic",
        "living room",
        "dining room",
    ],
    "genre": ["jazz", "rock", "pop", "blues", "folk", "metal", "disco", "reggae", "techno", "opera"],
    "artist": ["queen", "madonna", "prince", "mozart", "johnny cash", "bob dylan", "the beatles", "bach"],
    "playlist": ["morning", "workout", "dinner", "party", "sleep", "driving"],
    "person": [
        "mom",
        "dad",
        "anna",
        "john",
        "peter",
        "mary",
        "sarah",
        "david",
        "lucy",
        "tom",
        "emma",
        "paul",
    ],
    "city": ["london", "paris", "berlin", "boston", "madrid", "dublin", "chicago", "oslo", "rome", "vienna"],
    "temperature": [
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
        "twenty one",
        "twenty two",
        "sixty",
        "seventy",
    ],
    "percent": TENS,
    "duration": (
        [f"{count} {unit}" for count in COUNTS for unit in ("minutes", "seconds")]
        + ["one hour", "two hours", "three hours"]
    ),
    "color": ["red", "blue", "green", "yellow", "white", "purple", "orange", "pink"],
    "item": [
        "milk",
        "bread",
        "eggs",
        "butter",
        "cheese",
        "apples",
        "bananas",
        "coffee",
        "sugar",
        "rice",
        "salt",
        "soap",
        "paper",
    ],
    "list": ["shopping", "grocery", "to do"],
    "event": ["meeting", "dentist", "birthday", "lunch", "dinner", "training", "party", "doctor"],
    "topic": ["sports", "politics", "business", "science", "weather", "football"],
    "food": ["pizza", "sushi", "burgers", "noodles", "salad", "curry"],
    "radio": ["radio one", "radio four", "classic radio", "jazz radio"],
    "door": ["front door", "back door", "garage door", "window"],
}

# (scenario, action) -> patterns. Every scenario/action pair is drawn equally often.
PATTERNS: dict[tuple[str, str], list[str]] = {
    ("alarm", "set"): [
        "set an alarm for [time]",
        "wake me up at [time] [date]",
        "set an alarm for [time] on [date]",
        "set my alarm to [time]",
        "i need an alarm at [time]",
    ],
    ("alarm", "remove"): [
        "cancel my [time] alarm",
        "delete the alarm for [date]",
        "turn off the alarm at [time]",
    ],
    ("alarm", "query"): ["what alarms do i have for [date]", "is there an alarm at [time]"],
    ("play", "music"): [
        "play some [genre] music",
        "play [artist] in the [room]",
        "play the [playlist] playlist",
        "i want to hear [artist]",
        "play [genre] music in the [room]",
        "put on some [genre]",
    ],
    ("play", "radio"): ["turn on [radio]", "play [radio] in the [room]"],
    ("music", "stop"): ["stop the music", "pause the music in the [room]"],
    ("weather", "query"): [
        "what is the weather in [city]",
        "will it rain in [city] [date]",
        "how cold will it be [date]",
        "what is the weather like [date]",
        "do i need a coat [date]",
        "is it sunny in [city]",
    ],
    ("lights", "on"): [
        "turn on the lights in the [room]",
        "lights on in the [room]",
        "switch on the [room] lights",
    ],
    ("lights", "off"): ["turn off the lights in the [room]", "switch off the [room] lights", "lights off"],
    ("lights", "dim"): ["dim the [room] lights to [percent] percent", "set the lights to [percent] percent"],
    ("lights", "color"): ["make the [room] lights [color]", "change the light color to [color]"],
    ("heating", "set"): [
        "set the heating to [temperature] degrees",
        "make the [room] [temperature] degrees",
        "set the [room] to [temperature] degrees",
    ],
    ("timer", "set"): ["set a timer for [duration]", "start a [duration] timer", "remind me in [duration]"],
    ("calendar", "set"): [
        "add [event] to my calendar on [date]",
        "i have a [event] [date] at [time]",
        "schedule a [event] with [person] [date]",
    ],
    ("calendar", "query"): [
        "what is on my calendar [date]",
        "when is my [event] with [person]",
        "do i have a [event] [date]",
    ],
    ("lists", "add"): [
        "add [item] to my [list] list",
        "put [item] and [item] on my list",
        "we need more [item]",
    ],
    ("lists", "remove"): ["remove [item] from the [list] list", "take [item] off my list"],
    ("news", "query"): [
        "tell me the [topic] news",
        "what is new in [topic]",
        "read the news from [city]",
    ],
    ("call", "contact"): ["call [person]", "phone [person] at the office", "please call [person] back"],
    ("message", "send"): [
        "send a message to [person]",
        "text [person] that i am late",
        "email [person] about the [event]",
    ],
    ("volume", "set"): [
        "turn the volume up",
        "turn the volume down",
        "set the volume to [percent] percent",
    ],
    ("door", "lock"): ["lock the [door]", "is the [door] locked", "open the [door] at [time]"],
    ("takeaway", "order"): ["order some [food] for dinner", "order [food] from the place in [city]"],
    ("transport", "query"): [
        "book a taxi to [city]",
        "when is the next train to [city]",
        "book a taxi for [time]",
    ],
    ("coffee", "make"): ["make me a coffee", "make coffee at [time]"],
    ("cleaning", "start"): ["vacuum the [room]", "clean the [room] at [time]"],
}

POLITE_SHARE = 0.12
MAX_WORDS = 10


@dataclass(frozen=True)
class Entity:
    """One filled slot: its type, its words, and where they stand in the sentence."""

    kind: str
    filler: str
    span: tuple[int, ...]


@dataclass(frozen=True)
class Sentence:
    """A sentence of the grammar with its meaning."""

    text: str
    scenario: str
    action: str
    entities: tuple[Entity, ...]

    @property
    def words(self) -> list[str]:
        """The words of the sentence."""
        return self.text.split()

    @property
    def annotation(self) -> str:
        """The sentence with its entities marked SLURP's way: ``[type : words]``."""
        starts = {entity.span[0]: entity for entity in self.entities}
        inside = {index for entity in self.entities for index in entity.span[1:]}
        pieces = []
        for index, word in enumerate(self.words):
            if index in starts:
                pieces.append(f"[{starts[index].kind} : {starts[index].filler}]")
            elif index not in inside:
                pieces.append(word)
        return " ".join(pieces)


def fill_pattern(pattern: str, rng: random.Random) -> tuple[list[str], list[Entity]]:
    """Draw a value for each slot of a pattern; a slot named twice gets two different values."""
    words: list[str] = []
    entities: list[Entity] = []
    used: set[tuple[str, str]] = set()
    for piece in re.findall(r"\[\w+\]|[^\s\[\]]+", pattern):
        if not piece.startswith("["):
            words.append(piece)
            continue
        kind = piece[1:-1]
        filler = rng.choice([value for value in SLOTS[kind] if (kind, value) not in used])
        used.add((kind, filler))
        start = len(words)
        words.extend(filler.split())
        entities.append(Entity(kind, filler, tuple(range(start, len(words)))))
    return words, entities


def draw_sentence(rng: random.Random) -> Sentence:
    """Draw one sentence: a scenario/action pair, a pattern, its slots, now and then a polite word."""
    scenario, action = rng.choice(list(PATTERNS))
    words, entities = fill_pattern(rng.choice(PATTERNS[scenario, action]), rng)
    if rng.random() < POLITE_SHARE:
        opening = rng.choice(["please", "hey", None])
        if opening is None:
            words = [*words, "please"]
        else:
            words = [opening, *words]
            entities = [Entity(e.kind, e.filler, tuple(i + 1 for i in e.span)) for e in entities]
    return Sentence(" ".join(words), scenario, action, tuple(entities))


def unique_sentences(count: int, seed: int) -> list[Sentence]:
    """Draw until `count` different sentences of at most `MAX_WORDS` words are found, in drawing order."""
    rng = random.Random(seed)
    found: dict[str, Sentence] = {}
    for _ in range(1000 * count):
        sentence = draw_sentence(rng)
        if len(sentence.words) <= MAX_WORDS:
            found.setdefault(sentence.text, sentence)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"the grammar gave only {len(found)} different sentences, {count} were asked for")


def word_salad(sentences: list[Sentence], count: int, seed: int) -> list[str]:
    """Make `count` lines of 3 to 8 words without grammar: single words and fragments of one or two words."""
    rng = random.Random(seed)
    vocabulary = sorted({word for sentence in sentences for word in sentence.words})
    lines = []
    for _ in range(count):
        wanted = rng.randint(3, 7)
        words: list[str] = []
        while len(words) < wanted:
            if rng.random() < 0.6:
                words.append(rng.choice(vocabulary))
            else:
                source = rng.choice(sentences).words
                length = rng.randint(1, 2)
                start = rng.randrange(max(1, len(source) - length))
                words.extend(source[start : start + length])
        lines.append(" ".join(words))
    return lines
