"""Documents follow any series of edits, in every position encoding, with the protocol's line ends only."""

from hypothesis import given
from hypothesis import strategies as st

from starcoder.lsp.documents import Change, Document, Documents, Position

TEXT = st.text(st.sampled_from("ab é😀\n\r\f\u2028\x85"), max_size=30)
ENCODINGS = st.sampled_from(["utf-8", "utf-16", "utf-32"])


def lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


@given(TEXT, ENCODINGS, st.data())
def test_positions_and_offsets_are_inverse(text: str, encoding, data) -> None:
    document = Document("file:///a", text, 1)
    offset = data.draw(st.integers(0, len(text)))
    if text[offset - 1 : offset + 1] == "\r\n":
        return  # no position is inside a line end
    position = document.position(offset, encoding)
    assert position.line == len(lines(text[:offset])) - 1
    assert document.offset(position, encoding) == offset


@given(TEXT, st.lists(st.tuples(TEXT, st.integers(0, 30), st.integers(0, 30)), max_size=6), ENCODINGS)
def test_edits_give_what_string_slices_give(text: str, edits, encoding) -> None:
    document = Document("file:///a", text, 1)
    for new, first, last in edits:
        first, last = (min(x, len(text)) for x in sorted((first, last)))
        if any(text[x - 1 : x + 1] == "\r\n" for x in (first, last)):
            continue
        places = [document.position(x, encoding) for x in (first, last)]
        document.apply([Change(new, *places)], document.version + 1, encoding)
        text = text[:first] + new + text[last:]
        assert document.text == text


def test_units_before_an_emoji_are_counted_as_the_encoding_says() -> None:
    document = Document("file:///a", "x = '😀é' + y\n", 1)
    for encoding, units in (("utf-8", 11), ("utf-16", 8), ("utf-32", 7)):
        assert document.offset(Position(0, units), encoding) == 7
        assert document.position(7, encoding) == Position(0, units)


def test_positions_outside_of_the_text_are_moved_into_it() -> None:
    document = Document("file:///a", "ab\r\ncd", 1)
    assert document.offset(Position(0, 99), "utf-16") == 2
    assert document.offset(Position(9, 0), "utf-16") == 6
    assert document.offset(Position(-1, 3), "utf-16") == 0
    assert document.offset(Position(1, -2), "utf-16") == 4


def test_closing_an_unknown_document_is_no_error() -> None:
    documents = Documents()
    documents.close("file:///nowhere")
    assert list(documents) == []
