"""Labelled texts: sentences written for these tests, and what scipy says of its own functions."""

from __future__ import annotations

import importlib
import inspect

import numpy as np

TOPICS = {
    "weather": (
        "Heavy rain is expected over the hills tonight.",
        "The first snow of the year fell before dawn.",
        "A cold front brings gusts of up to ninety kilometres an hour.",
        "Fog will clear by noon, then long spells of sunshine.",
        "Thunderstorms are moving in from the south-west.",
        "It has not rained for six weeks and the wells are dry.",
        "Frost may damage the blossoms in low valleys.",
        "The hurricane lost strength over the open sea.",
        "Temperatures will climb above thirty degrees by Friday.",
        "Hail the size of walnuts dented cars in the village.",
        "Clouds gather in the afternoon, with a few light showers.",
        "A mild breeze and clear skies for the whole weekend.",
    ),
    "sport": (
        "Two goals in extra time sent the visitors into the final.",
        "She broke the record in the hundred metres by a tenth.",
        "The coach left his captain on the bench again.",
        "After five sets the champion was out in the first round.",
        "The striker missed a penalty in the last minute.",
        "Our relay team won silver at the games.",
        "He lapped half of the field before the tyres gave up.",
        "The referee showed a second yellow card.",
        "They trained on the track twice a day for the marathon.",
        "A late basket from behind the line decided the match.",
        "The cyclist attacked on the steepest climb of the stage.",
        "The goalkeeper saved three shots in a row.",
    ),
    "cooking": (
        "Add the flour slowly and stir until the batter is smooth.",
        "Let the dough rest for an hour under a damp cloth.",
        "Fry the onions in butter until they are golden.",
        "Season the soup with salt, pepper and a little nutmeg.",
        "Bake at two hundred degrees for forty minutes.",
        "Whisk the egg whites and fold them in gently.",
        "Simmer the sauce over a low flame and do not cover it.",
        "Chop the parsley and sprinkle it over the roast.",
        "Soak the beans overnight in plenty of cold water.",
        "Drizzle the salad with olive oil and lemon juice.",
        "Knead the pasta until it no longer sticks to your hands.",
        "Melt the chocolate in a bowl over steaming water.",
    ),
    "finance": (
        "The central bank raised interest rates by a quarter of a point.",
        "Shares fell after the company cut its forecast for the year.",
        "Investors moved their savings from bonds into gold.",
        "Inflation slowed to two per cent in March.",
        "The merger was blocked by the competition authority.",
        "Her mortgage is due to be renewed next spring.",
        "Quarterly profits rose on strong exports.",
        "The fund charges a fee of one per cent a year.",
        "A weaker currency makes imports more expensive.",
        "The start-up raised ten million from private investors.",
        "Creditors agreed to write off half of the debt.",
        "The treasury plans to sell new bonds in autumn.",
    ),
}
"""Twelve sentences a topic."""

_MODULES = ("stats", "signal", "linalg", "optimize", "special", "ndimage", "sparse", "spatial")


def sentences(first: int, last: int) -> tuple[list[str], list[str]]:
    """Sentences first..last-1 of each topic with their labels, topics taking turns."""
    pairs = [(TOPICS[topic][index], topic) for index in range(first, last) for topic in TOPICS]
    return [text for text, _ in pairs], [topic for _, topic in pairs]


def scipy_summaries() -> tuple[list[str], list[str]]:
    """About 1,100 one-line descriptions of scipy's functions and classes, and the module each is in; in random order.

    Written by many people for their own purpose; classes from 19 to 338. The same for one version of scipy.
    """
    found: dict[str, str] = {}
    for name in _MODULES:
        module = importlib.import_module(f"scipy.{name}")
        for member in sorted(dir(module)):
            thing = getattr(module, member)
            if member.startswith("_") or inspect.ismodule(thing):
                continue
            parts = [part.strip().replace("\n", " ") for part in (inspect.getdoc(thing) or "").split("\n\n")]
            summary = next((p for p in parts if len(p) > 25 and not p.startswith(f"{member}(")), "Parameters")
            if "Parameters" not in summary:
                found.setdefault(summary, name)
    pairs = list(found.items())
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]
