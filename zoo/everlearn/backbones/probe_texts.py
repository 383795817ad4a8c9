"""Texts on which an encoder is checked and its feature scale fixed: short and long, of many subjects, some languages.

Written for this purpose; the same for ever, because feature scales follow from them.
"""

from __future__ import annotations

_STORY = (
    "The night shift began with an alarm from the cooling plant, and by the time the second engineer had found the "
    "drawings the pressure was already falling in both circuits. She closed the bypass by hand, wrote the time on the "
    "wall with chalk, and called the harbour office to ask whether the ferry could wait. "
)

PROBE_TEXTS: tuple[str, ...] = (
    "Hello.",
    "yes",
    "42",
    "Where is my parcel?",
    "The battery of the new phone lasts two days.",
    "I want my money back, this is the third time the screen has cracked!!!",
    "Please restart the router and tell me whether the green light comes back.",
    "Rain is expected in the north, with strong winds along the coast until Thursday morning.",
    "The committee raised interest rates by a quarter of a point, as most analysts had expected.",
    "Two goals in extra time sent the visitors into the final.",
    "Add the flour slowly, stir until smooth, and let the dough rest for an hour.",
    "Patients with a fever above 39 degrees should drink enough and see a doctor after two days.",
    "def area(radius): return 3.14159 * radius ** 2",
    "ERROR 2024-02-29 13:37:01 connection reset by peer (attempt 3 of 5)",
    "The mitochondrion makes most of the cell's supply of adenosine triphosphate.",
    "She had never seen the sea, and now it was all there was.",
    "Der Zug nach Freiburg fährt heute von Gleis sieben ab.",
    "Le musée est fermé le mardi, sauf pendant les vacances.",
    "El contrato se renueva cada año si nadie lo cancela.",
    "明日の会議は午後三時からです。",
    "Сервер не отвечает уже десять минут.",
    "😀 best. day. ever. #summer @friends https://example.org/a?b=c",
    "BUY NOW cheap watches 90% off limited offer click here",
    _STORY * 6,
)
