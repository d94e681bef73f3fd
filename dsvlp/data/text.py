"""Tokenizers: read from a Hugging Face folder, a vocabulary file or the hub, or trained on the data.

Only the `tokenizers` library is used: `transformers`' fast classes wrap it, and given a
`vocab_file=` they silently answer with five tokens (transformers 5.23).

Legend: T texts, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from dsvlp.errors import DataError

# Roles of the special tokens, with the names that BERT's and RoBERTa's vocabularies give them.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
BERT_SPECIALS = [names[0] for names in ROLES.values()]


class Tokenizer:
    """Turns texts into ids of a fixed length. Nothing changes after construction: threads may share it.

    Attributes:
        vocabulary: number of ids, the highest id plus one.
        pad_id, unk_id, cls_id, sep_id, mask_id: the special ids.
        fingerprint: 16 hexadecimal digits of the SHA-256 of everything that decides the ids.
    """

    def __init__(self, backend: Backend, source: str) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "[MASK]" written in a caption is text, not a mask
        ids = backend.get_vocab(with_added_tokens=True)
        special = {role: _special(ids, role, source) for role in ROLES}
        if len(ids) <= len(ROLES):
            raise DataError(
                f"the tokenizer {source} has {len(ids)} tokens",
                "a vocabulary",
                "Give the folder of its files",
            )
        self._backend, self.source = backend, source
        self._names = {number: token for token, number in ids.items()}
        self.vocabulary = max(ids.values()) + 1
        self.pad_id, self.unk_id, self.cls_id = special["pad"], special["unk"], special["cls"]
        self.sep_id, self.mask_id = special["sep"], special["mask"]
        content = json.dumps(json.loads(backend.to_str()), sort_keys=True)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, name: str | Path) -> "Tokenizer":
        """Returns the tokenizer of a folder, of a `tokenizer.json` or `vocab.txt`, or of a hub name.

        Raises:
            DataError: there is no such folder or name, or it does not hold a whole tokenizer.
        """
        path = Path(name)
        if path.is_dir():
            path = next(
                (path / file for file in ("tokenizer.json", "vocab.txt") if (path / file).is_file()), path
            )
        if path.is_file():
            backend = _from_vocabulary(path) if path.suffix == ".txt" else _from_json(path)
            return cls(backend, str(name))
        if path.is_dir() or path.is_absolute() or str(name).startswith("."):
            raise DataError(
                f"{name} holds no tokenizer", "a folder with tokenizer.json or vocab.txt", "Check the path"
            )
        return cls(_from_hub(str(name)), str(name))

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the ids of texts as [CLS] text [SEP], cut and padded to `max_length`.

        Returns:
            ids int64 [T, L]; mask bool [T, L], True at real tokens; special bool [T, L], True at [CLS],
            [SEP] and padding.
        """
        ids = np.full((len(texts), max_length), self.pad_id, np.int64)
        mask = np.zeros((len(texts), max_length), bool)
        special = np.ones((len(texts), max_length), bool)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        for row, encoding in enumerate(encodings):
            words = encoding.ids[: max_length - 2]
            end = len(words) + 2
            ids[row, :end] = [self.cls_id, *words, self.sep_id]
            mask[row, :end] = True
            special[row, 1 : end - 1] = False
        return ids, mask, special

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns the names of token ids; an id without a token is "?"."""
        return [self._names.get(int(number), "?") for number in ids]

    def check_fits(self, vocabulary: int) -> None:
        """Raises `DataError` where a model of `vocabulary` ids is too small for this tokenizer."""
        if self.vocabulary > vocabulary:
            raise DataError(
                f"the tokenizer {self.source} has {self.vocabulary} ids, the model takes {vocabulary}",
                "a model vocabulary at least as large",
                f"Set model.text.vocabulary={self.vocabulary}, or choose the model's own tokenizer",
            )

    def save(self, folder: Path) -> None:
        """Writes the tokenizer as a folder that `load` and transformers' `AutoTokenizer` read."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for role in ROLES:
            settings[f"{role}_token"] = self._names[getattr(self, f"{role}_id")]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def train_wordpiece(texts: Iterable[str], size: int) -> Tokenizer:
    """Returns a lower-casing WordPiece tokenizer with BERT's splitting, trained on texts.

    The same texts give the same vocabulary: the library numbers the characters by a random hash and
    breaks ties by these numbers, hence they are given to it in order, as if they were special tokens.

    Args:
        texts: the training texts; read twice, so a list or a table, not an iterator.
        size: most tokens, the five special ones among them; fewer where the texts give fewer.

    Raises:
        DataError: `size` does not hold the characters of the texts.
    """
    trained = _bert(models.WordPiece({}, unk_token="[UNK]"), lowercase=True)
    characters = _characters(trained, texts)
    if not characters or len(BERT_SPECIALS) + len(characters) > size:
        raise DataError(
            f"a vocabulary of {size} for texts of {len(characters)} characters (inside words apart)",
            f"at least {len(BERT_SPECIALS) + len(characters)}" if characters else "texts with words",
            "Raise the size of the vocabulary" if characters else "",
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=BERT_SPECIALS + characters, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    backend = _bert(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"), lowercase=True)
    backend.add_special_tokens(BERT_SPECIALS)
    return Tokenizer(backend, "the trained vocabulary")


def _characters(backend: Backend, texts: Iterable[str]) -> list[str]:
    """Returns the characters that begin a word and, as "##c", those that continue one, sorted."""
    found: set[str] = set()
    for text in texts:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            found.add(word[0])
            found.update("##" + character for character in word[1:])
    return sorted(found)


def _special(ids: dict[str, int], role: str, source: str) -> int:
    for name in ROLES[role]:
        if name in ids:
            return ids[name]
    raise DataError(
        f"the tokenizer {source} has no {role} token", " or ".join(ROLES[role]), "Choose another tokenizer"
    )


def _bert(model: models.Model, lowercase: bool) -> Backend:
    backend = Backend(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _from_vocabulary(path: Path) -> Backend:
    """Returns BERT's tokenizer of a `vocab.txt`; lower-casing unless the folder's configuration says no."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error}", "a WordPiece vocabulary, one token a line"
        ) from error
    words = [line.removesuffix("\r") for line in lines]
    while words and not words[-1]:
        words.pop()
    ids = {word: number for number, word in enumerate(words)}
    if len(ids) != len(words):
        twice = next(word for number, word in enumerate(words) if ids[word] != number)
        raise DataError(f"{path} has {len(words)} lines but {twice!r} stands there twice", "one token a line")
    settings = path.with_name("tokenizer_config.json")
    lowercase = True
    if settings.is_file():
        lowercase = bool(_json(settings).get("do_lower_case", True))
    backend = _bert(models.WordPiece(ids, unk_token="[UNK]"), lowercase)
    backend.add_special_tokens([token for token in BERT_SPECIALS if token in ids])
    return backend


def _from_json(path: Path) -> Backend:
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every damage of the file
        raise DataError(f"{path} is not a tokenizer: {error}", "a tokenizer.json of Hugging Face") from error


def _from_hub(name: str) -> Backend:
    try:
        return Backend.from_pretrained(name)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise _no_tokenizer(name, error) from error
    except Exception as error:  # the library raises bare Exception for an unreadable answer
        raise _no_tokenizer(name, error) from error


def _no_tokenizer(name: str, error: Exception) -> DataError:
    return DataError(
        f"{name!r} is neither a folder nor a tokenizer that the hub gives: {str(error).splitlines()[0]}",
        "a folder with tokenizer.json or vocab.txt, or a hub name",
        "Check the name; without a network give a folder",
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}", "a JSON object")
    return value
