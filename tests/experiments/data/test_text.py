import re

import pytest
import torch

from sparsekern.experiments.data import BatchOrder, load_dataset
from sparsekern.experiments.errors import DataError, RecipeError

WORDS = "Größe, naïve café — the quick brown fox jumps over the lazy dog.\n" * 30


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "words.text"
    path.write_text(WORDS, encoding="utf-8")
    return path


def load(path, tokens="bytes", context=8):
    return load_dataset("text", path, tokens=tokens, context=context)


@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_all_of_the_text_is_there_in_order_the_last_tenth_to_test(file, tokens):
    text = load(file, tokens)
    numbers = torch.cat([text.train, text.test]).tolist()
    assert len(text.test) == len(numbers) // 10
    if tokens == "bytes":
        assert bytes(numbers) == WORDS.encode()
        assert (text.vocabulary, text.characters) == (256, None)
    else:
        assert text.characters == "".join(sorted(set(WORDS)))
        assert "".join(text.characters[number] for number in numbers) == WORDS
        assert text.vocabulary == len(set(WORDS))
    assert text.train.dtype == torch.uint8


def test_more_than_256_characters(tmp_path):
    words = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) * 2 + "\U0001f600"
    (tmp_path / "words.txt").write_text(words, encoding="utf-8")
    text = load(tmp_path, "characters")
    assert text.train.dtype == torch.int32
    assert "".join(text.characters[number] for number in torch.cat([text.train, text.test])) == words


def test_a_folder_is_its_txt_files_in_the_order_of_their_names(tmp_path, file):
    folder = tmp_path / "folder"
    folder.mkdir()
    # A character may not be cut in two by files, bytes may.
    for name, part in (("b.txt", WORDS[500:]), ("a.TXT", WORDS[:500]), ("c.md", "not this")):
        (folder / name).write_text(part, encoding="utf-8")
    (folder / "d.txt").mkdir()
    for tokens in ("bytes", "characters"):
        assert load(folder, tokens).fingerprint == load(file, tokens).fingerprint


def test_the_fingerprint_depends_on_text_and_tokens_and_not_on_the_context(file):
    first = load(file).fingerprint
    assert load(file, context=5).fingerprint == first
    characters = load(file, "characters").fingerprint
    # The same numbers, for another character.
    file.write_text(WORDS.replace("z", "{"), encoding="utf-8")
    assert len({first, characters, load(file).fingerprint, load(file, "characters").fingerprint}) == 4


def test_examples_are_blocks_and_labels_the_tokens_that_follow(file):
    text = load(file, context=7)
    for part in ("train", "test"):
        numbers, labels = getattr(text, part), getattr(text, f"{part}_labels")
        blocks = (len(numbers) - 1) // 7
        assert labels.shape == (blocks, 7)
        inputs, targets = getattr(text, f"{part}_examples")(torch.tensor([2, blocks - 1, 0]))
        assert inputs.dtype == targets.dtype == torch.int64
        for row, block in enumerate((2, blocks - 1, 0)):
            assert inputs[row].tolist() == numbers[7 * block : 7 * block + 7].tolist()
            assert targets[row].tolist() == numbers[7 * block + 1 : 7 * block + 8].tolist()


def test_test_batches_are_all_blocks_of_the_test_part(file, monkeypatch):
    monkeypatch.setattr("sparsekern.experiments.data.text._TEST_TOKENS", 40)
    text = load(file, context=9)
    batches = list(text.test_batches())
    assert len(batches[0][0]) == 4
    assert torch.equal(torch.cat([labels for _, labels in batches]), text.test_labels.long())
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), text.test_examples(slice(None))[0])


def test_a_batch_depends_on_the_seed_and_the_step_only(file):
    text = load(file, context=7)
    order = BatchOrder(len(text.train_labels), 50, seed=3)
    batches, again = text.train_batches(order), text.train_batches(order)
    steps = [batches(step) for step in range(60)]
    for step in (59, 0, 17):
        assert all(torch.equal(*pair) for pair in zip(again(step), steps[step]))
    assert not torch.equal(steps[0][0], steps[1][0])
    other = text.train_batches(BatchOrder(len(text.train_labels), 50, seed=4))(0)
    assert not torch.equal(other[0], steps[0][0])
    windows = {tuple(window) for window in text.train.long().unfold(0, 8, 1).tolist()}
    for inputs, labels in steps[:3]:
        for row, following in zip(inputs.tolist(), labels.tolist()):
            assert (*row, following[-1]) in windows
            assert row[1:] == following[:-1]


def test_blocks_begin_at_every_place_of_the_training_part(tmp_path):
    path = tmp_path / "rising"
    path.write_bytes(bytes(range(60)))
    text = load(path, context=4)  # 54 tokens to train: 50 places
    batches = text.train_batches(BatchOrder(13, 13, seed=0))
    begins = torch.cat([batches(step)[0][:, 0] for step in range(500)])
    counts = begins.bincount()
    assert len(counts) == 50
    assert (counts - 130).abs().max() < 4.5 * 130**0.5
    assert torch.cat([batches(step)[1][:, -1] for step in range(500)]).max() == 53


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="'text' needs --data-dir, a text file or a folder"):
        load_dataset("text")
    with pytest.raises(DataError, match=r"^--data-dir must be a text file or a folder of \.txt files, got /"):
        load(tmp_path / "nothing")
    (tmp_path / "words.md").write_text(WORDS)
    with pytest.raises(DataError, match=r": expected \.txt files, found none \(--data-dir may also be one f"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "tokens", "message"),
    [
        (b"", "bytes", "expected at least 90 bytes, for 10 blocks of context + 1 = 9, found 0"),
        (b"a" * 89, "bytes", "expected at least 90 bytes, for 10 blocks of context + 1 = 9, found 89"),
        (
            "ä".encode() * 89,
            "characters",
            "expected at least 90 characters, for 10 blocks of context + 1 = 9, found 89",
        ),
        (b"a" * 100 + b"\xff", "characters", "expected UTF-8, found 0xff at byte 100; --tokens bytes takes"),
    ],
    ids=["empty", "short", "short in characters", "not UTF-8"],
)
def test_a_text_that_does_not_do_is_refused(tmp_path, content, tokens, message):
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}: {message}')}"):
        load(path, tokens)


def test_the_shortest_text(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(bytes(range(90)))
    text = load(path)
    assert (len(text.train_labels), len(text.test_labels)) == (10, 1)
    assert text.test_examples(slice(None))[1].tolist() == [list(range(82, 90))]
    with pytest.raises(RecipeError, match="batch_size must be from 1 to the number of training examples, 10"):
        BatchOrder(len(text.train_labels), 11, 0)


@pytest.mark.parametrize(("option", "value"), [("tokens", "words"), ("context", 0)])
def test_a_wrong_option_is_named(file, option, value):
    with pytest.raises(ValueError, match=f"^{option} must be .*, got '?{value}"):
        load_dataset("text", file, **{option: value})
