"""Text in pieces: what a stage makes of it must not depend on where it is cut."""

from itertools import pairwise


def cut(text, cuts):
    """`text` in pieces, cut at these places."""
    places = sorted({0, len(text), *(at % (len(text) + 1) for at in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def through(stage, pieces):
    """What comes out of a stage: all its text, and whether it ended the completion itself."""
    released = ""
    for piece in pieces:
        more, has_ended = stage.push(piece)
        released += more
        if has_ended:
            return released, True
    return released + stage.flush(), False
