"""Tokenizers: loaded, trained, checked; ids, masks and special tokens."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from dsvlp.data.text import BERT_SPECIALS, Tokenizer, train_wordpiece
from dsvlp.errors import DataError
from tests.data.raw_files import real

TEXTS = [
    "A red circle, left of a blue square!",
    "two big circles",
    "the Café's squares are blue",
    "red " * 40,
]


def vocabulary() -> Path:
    return real("vocab", "bert-base-uncased-vocab.txt")


def captions() -> list[str]:
    value = json.loads(real("coco_mini", "annotations", "captions_val2017.json").read_text())
    return [record["caption"] for record in value["annotations"]]


def test_berts_vocabulary_gives_the_ids_that_transformers_gives() -> None:
    tokenizer = Tokenizer.load(vocabulary())
    assert tokenizer.vocabulary == 30522
    theirs = BertTokenizerFast(vocab=str(vocabulary()))
    texts = [*captions(), *TEXTS, ""]
    ids, mask, special = tokenizer.encode(texts, 20)
    right = theirs(
        texts, padding="max_length", truncation=True, max_length=20, return_special_tokens_mask=True
    )
    np.testing.assert_array_equal(ids, right["input_ids"])
    np.testing.assert_array_equal(mask, np.array(right["attention_mask"], bool))
    np.testing.assert_array_equal(special, np.array(right["special_tokens_mask"], bool))


def test_special_tokens_written_in_a_text_are_text() -> None:
    tokenizer = Tokenizer.load(vocabulary())
    ids, _, special = tokenizer.encode(["a [MASK] and [SEP] b"], 24)
    words = ids[0][~special[0]]
    assert not np.isin(words, [tokenizer.mask_id, tokenizer.sep_id, tokenizer.cls_id, tokenizer.pad_id]).any()
    assert (ids[0] == tokenizer.sep_id).sum() == 1


def test_training_is_reproducible_and_lower_cases() -> None:
    one, two = train_wordpiece(TEXTS, 60), train_wordpiece(list(TEXTS), 60)
    assert one.fingerprint == two.fingerprint
    assert one.vocabulary <= 60
    assert one.tokens(range(5)) == BERT_SPECIALS
    np.testing.assert_array_equal(one.encode(["Red CAFÉ"], 12)[0], one.encode(["red cafe"], 12)[0])
    assert train_wordpiece(TEXTS[:2], 60).fingerprint != one.fingerprint


def test_a_trained_tokenizer_comes_back_from_its_folder_here_and_in_transformers(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(TEXTS, 60)
    tokenizer.save(tmp_path / "tokenizer")
    again, theirs = (
        Tokenizer.load(tmp_path / "tokenizer"),
        AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
    )
    assert again.fingerprint == tokenizer.fingerprint
    assert len(theirs) == tokenizer.vocabulary and theirs.mask_token_id == tokenizer.mask_id
    ids, _, special = again.encode(TEXTS, 16)
    assert ids[0][~special[0]].tolist() == theirs(TEXTS[0], add_special_tokens=False).input_ids[:14]


def test_a_trained_tokenizer_loses_no_word_it_was_trained_on() -> None:
    texts = captions() if real("coco_mini").exists() else TEXTS
    tokenizer = train_wordpiece(texts, 400)
    assert not (tokenizer.encode(texts, 64)[0] == tokenizer.unk_id).any()


def test_a_folder_with_a_bare_vocabulary_and_its_case_setting_is_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT_SPECIALS, "red", "Red"]) + "\n")
    lower = Tokenizer.load(tmp_path)
    assert lower.tokens(lower.encode(["Red"], 3)[0][0]) == ["[CLS]", "red", "[SEP]"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Tokenizer.load(tmp_path)
    assert cased.tokens(cased.encode(["Red"], 3)[0][0]) == ["[CLS]", "Red", "[SEP]"]
    assert cased.fingerprint != lower.fingerprint


def test_a_tokenizer_that_does_not_fit_the_model_is_refused() -> None:
    tokenizer = train_wordpiece(TEXTS, 60)
    tokenizer.check_fits(tokenizer.vocabulary)
    with pytest.raises(DataError, match=rf"{tokenizer.vocabulary} ids.*model\.text\.vocabulary="):
        tokenizer.check_fits(tokenizer.vocabulary - 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("red\nblue\n", "no pad token"),
        ("\n".join(BERT_SPECIALS), "5 tokens"),
        ("\n".join([*BERT_SPECIALS, "red", "red"]), "'red' stands there twice"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        Tokenizer.load(path)


def test_absent_and_damaged_tokenizers_are_refused(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="holds no tokenizer"):
            Tokenizer.load(name)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("texts", [[""], ["abcdefghijklmnopqrstuvwxyz"]])
def test_a_vocabulary_too_small_for_the_characters_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="a vocabulary of 20"):
        train_wordpiece(texts, 20)


def test_threads_share_a_tokenizer() -> None:
    tokenizer = train_wordpiece(TEXTS, 60)
    right = {length: tokenizer.encode(TEXTS, length)[0] for length in range(4, 24)}
    with ThreadPoolExecutor(4) as pool:
        for length, found in zip(
            right, pool.map(lambda n: tokenizer.encode(TEXTS, n)[0], right), strict=True
        ):
            np.testing.assert_array_equal(found, right[length])
