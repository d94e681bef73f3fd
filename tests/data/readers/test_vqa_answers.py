"""The official evaluation's spelling of answers, by examples whose outcome is known."""

import pytest

from dsvlp.data.readers.vqa_answers import normalised


@pytest.mark.parametrize(
    ("answer", "spelt"),
    [
        ("Yes.", "yes"),
        ("  2 \n", "2"),
        ("a red hat", "red hat"),
        ("the", ""),
        ("An apple and THE pear", "apple and pear"),
        ("two", "2"),
        ("Ten dogs", "10 dogs"),
        ("none", "0"),
        ("someone", "someone"),
        ("dont know", "don't know"),
        ("it's", "it's"),
        ("its", "its"),
        ("couldnt've", "couldn't've"),
        ("they'dve", "they'd've"),
        ("5 oclock", "5 o'clock"),
        ("Im", "im"),  # the official table knows it with a capital alone, which has gone by then
        ("t-shirt", "t shirt"),
        ("t -shirt", "t shirt"),
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("left,right", "left right"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("1.5", "1.5"),
        ("1. 5", "1 5"),
        ("st. john", "st john"),
        (".5", ".5"),
        ("what?!", "what"),
        ("(none)", "0"),
        ("", ""),
    ],
)
def test_an_answer_is_spelt_as_the_evaluation_spells_it(answer: str, spelt: str) -> None:
    assert normalised(answer) == spelt
    assert normalised(spelt) == spelt, "once is enough"
