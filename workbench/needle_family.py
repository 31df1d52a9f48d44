"""Families of needles: a sentence that cannot be guessed, a question about it, and the answer's first words.

Heads found on one family should be tested on another, so families differ in wording, kind of answer and
number of answer tokens. The reply is begun for the model (`opening`), so that its next token is the answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_CITIES = ("Lisbon", "Oslo", "Nairobi", "Lima", "Dublin", "Havana", "Kyoto", "Cairo", "Denver", "Prague")
_PEOPLE = ("Sarah", "Robert", "Maria", "James", "Emily", "Daniel", "Laura", "Peter", "Alice", "Thomas")
_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black", "silver", "golden")
_ANIMALS = ("tiger", "falcon", "dolphin", "rabbit", "spider", "eagle", "turtle", "wolf", "horse", "lion")


@dataclass(frozen=True)
class Family:
    """Templates of one family; `{slot}` is drawn from `slots`, `{digits}` is a number of five digits."""

    name: str
    needle: str
    question: str
    opening: str
    answer: str
    slots: dict[str, tuple[str, ...]]

    def draw(self, rng: random.Random) -> Needle:
        """One needle with its slots filled, the same for the same state of `rng`."""
        values = {slot: rng.choice(choices) for slot, choices in sorted(self.slots.items())}
        values["digits"] = str(rng.randrange(10_000, 100_000))
        filled = [part.format(**values) for part in (self.needle, self.question, self.opening, self.answer)]
        return Needle(self.name, *filled)


@dataclass(frozen=True)
class Needle:
    """A filled family: the sentence to hide, the question, the reply's opening words and the answer."""

    family: str
    sentence: str
    question: str
    opening: str
    answer: str


_ALL = (
    Family(
        "magic_number",
        "One of the special magic numbers for {city} is: {digits}.",
        "What is the special magic number for {city} mentioned in the text?",
        "The special magic number for {city} mentioned in the text is:",
        " {digits}",
        {"city": _CITIES},
    ),
    Family(
        "passkey",
        "The pass key to the {room} is {digits}, so remember that {digits} is the pass key.",
        "What is the pass key to the {room}?",
        "The pass key to the {room} is",
        " {digits}",
        {"room": ("tower", "cellar", "library", "laboratory", "garage", "kitchen", "museum", "vault")},
    ),
    Family(
        "city_fact",
        "The best thing to do in {city} is to {verb} a {thing} and sit in {place} on a sunny day.",
        "What is the best thing to do in {city}?",
        "The best thing to do in {city} is to",
        " {verb} a {thing} and sit in {place}",
        {
            "city": _CITIES,
            "verb": ("eat", "buy", "share", "bring"),
            "thing": ("sandwich", "melon", "cake", "pizza", "salad", "pie"),
            "place": ("Dolores Park", "Queen Square", "the old harbour", "the rose garden"),
        },
    ),
    Family(
        "hidden_item",
        "{person} hid the {colour} {item} behind the {place}.",
        "Where did {person} hide the {colour} {item}?",
        "{person} hid the {colour} {item} behind the",
        " {place}",
        {
            "person": _PEOPLE,
            "colour": _COLOURS,
            "item": ("key", "letter", "ring", "lamp", "map", "coin"),
            "place": (
                "kitchen stove",
                "wooden piano",
                "garden wall",
                "church organ",
                "stone bridge",
                "barn door",
            ),
        },
    ),
    Family(
        "colour_code",
        'The secret code word for the {project} project is "{colour} {animal}".',
        "What is the secret code word for the {project} project?",
        'The secret code word for the {project} project is "',
        "{colour} {animal}",
        {
            "project": ("Orion", "Phoenix", "Atlas", "Mercury", "Apollo", "Titan"),
            "colour": _COLOURS,
            "animal": _ANIMALS,
        },
    ),
    Family(
        "meeting",
        "The {club} club will meet next {day} at the {place}.",
        "When and where will the {club} club meet?",
        "The {club} club will meet next",
        " {day} at the {place}",
        {
            "club": ("chess", "garden", "sailing", "poetry", "history", "film"),
            "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
            "place": (
                "train station",
                "public library",
                "city hall",
                "old theater",
                "fish market",
                "school gym",
            ),
        },
    ),
    Family(
        "ingredient",
        "The secret ingredient in {person}'s famous {dish} is a cup of {food}.",
        "What is the secret ingredient in {person}'s famous {dish}?",
        "The secret ingredient in {person}'s famous {dish} is a cup of",
        " {food}",
        {
            "person": _PEOPLE,
            "dish": ("soup", "stew", "bread", "sauce", "curry", "salad"),
            "food": (
                "coconut milk",
                "orange juice",
                "apple vinegar",
                "cherry syrup",
                "cold coffee",
                "green tea",
            ),
        },
    ),
    Family(
        "pet",
        "{person} has a {colour} {animal} that is called {pet}.",
        "What is the name of {person}'s {colour} {animal}?",
        "{person} has a {colour} {animal} that is called",
        " {pet}",
        {
            "person": _PEOPLE,
            "colour": _COLOURS,
            "animal": _ANIMALS,
            "pet": ("Captain Button", "Mister Pickle", "Lady Marble", "Doctor Biscuit", "Princess Thunder"),
        },
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
