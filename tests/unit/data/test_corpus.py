"""Laws of the corpora: what a split holds, what a fingerprint knows, and how each mistake is answered."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.texts import LINES, shard

from spectral_mup import data
from spectral_mup.data import DataError, content, corpus, sources
from spectral_mup.errors import ConfigError

# --- shakespeare


def leaked(train: np.ndarray, val: np.ndarray, length: int) -> bool:
    """Whether a passage of 2 * length bytes is in both: blocks of one against all windows of the other."""
    text, other = train.tobytes(), val.tobytes()
    blocks = {text[i : i + length] for i in range(0, len(text) - length, length)}
    return any(other[i : i + length] in blocks for i in range(len(other) - length))


def test_shakespeare_is_what_it_was():
    loaded = data.load("shakespeare", None, None)
    assert loaded.sha256 == "42367b545e866a3e4a7d81207fce7959361fab99afa3c65b6c31e1b64f435ae8"
    assert loaded.vocab_size == 256 and not loaded.note
    assert len(loaded.train) + len(loaded.val) == 5_318_858
    assert len(loaded.val) / 5_318_858 == pytest.approx(0.1, abs=0.001)
    # the split itself: a change here changes every loss ever measured, so SPLIT must change with it
    assert hashlib.sha256(loaded.val[:].tobytes()).hexdigest()[:16] == VAL_HASH


VAL_HASH = "7a35cc2985d6dec6"


def test_no_validation_text_is_in_training():
    loaded = data.load("shakespeare", None, None)
    assert not leaked(loaded.train[:], loaded.val[:], 96)
    assert leaked(loaded.train[:], np.concatenate([loaded.val[:], loaded.train[1000:1192]]), 96)  # it can fail


def test_every_play_is_cut_once_at_a_line_end():
    loaded = data.load("shakespeare", None, None)
    train, val = loaded.train[:].tobytes(), loaded.val[:].tobytes()
    for text in sources.plays().values():
        head = len(os.path.commonprefix([train[: len(text)], text]))
        assert val.startswith(text[head:]) and text[head - 1 : head] == b"\n"
        assert 0.89 < head / len(text) <= 0.9
        train, val = train[head:], val[len(text) - head :]
    assert not train and not val  # no byte lost, none twice


def test_the_plays_are_those_of_the_hash_that_is_recorded():
    lines = [f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in sorted(sources.plays().items())]
    assert len(lines) == 38
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == data.load("shakespeare", None, None).sha256
    assert data.fingerprint("shakespeare", None, None) == FINGERPRINT


FINGERPRINT = "f23be10ec003a3a30e24600d29858a918eddbd1117801a996e19082e75683203"  # part of the id of every run on this text


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1] + b"\1", lambda raw: None])
def test_damaged_plays_are_refused(damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, copy = sources.PLAYS.read_bytes(), tmp_path / "shakespeare.zip"
    monkeypatch.setattr(sources, "PLAYS", copy)
    copy.write_bytes(whole)
    assert data.load("shakespeare", None, None).vocab_size == 256  # an intact copy is accepted
    copy.unlink()
    if (damaged := damage(whole)) is not None:
        copy.write_bytes(damaged)
    sources.plays.cache_clear()
    for call in (data.load, data.fingerprint):
        with pytest.raises(DataError, match=r"data=shakespeare: .*missing or damaged.*data=text"):
            call("shakespeare", None, None)


def test_the_plays_are_unpacked_once_in_a_process():
    sources.plays.cache_clear()
    for _ in range(3):
        data.load("shakespeare", None, None)
    assert sources.plays.cache_info().misses == 1


def test_loading_imports_no_torch():
    code = (
        "import sys; from spectral_mup import data; data.load('shakespeare', None, None); "
        "print(sorted({'torch', 'pandas', 'pydantic', 'filelock', 'numpy'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy']"


# --- the other sources


def test_text_is_taken_as_it_is(tmp_path: Path):
    raw = b"\xef\xbb\xbfnot \xff utf-8\r\n" * 50 + LINES
    (tmp_path / "a.txt").write_bytes(raw)
    loaded = data.load("text", str(tmp_path / "a.txt"), None)
    assert isinstance(loaded.train, np.memmap) and loaded.train.dtype == np.uint8
    assert loaded.train[:].tobytes() + loaded.val[:].tobytes() == raw
    assert loaded.train[:].tobytes().endswith(b"\n")
    assert loaded.sha256 == hashlib.sha256(raw).hexdigest()
    assert loaded.name == "text:a.txt"


def test_a_folder_is_split_file_by_file(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    texts = {"b.txt": LINES.upper(), "a.txt": LINES, "deep/c.txt": b"one line " * 100, "no.md": b"#" * 1000}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    loaded = data.load("text", str(tmp_path), None)
    cut = LINES.rfind(b"\n", 0, len(LINES) * 9 // 10) + 1
    line = texts["deep/c.txt"]  # has no line end: cut at 90 %
    assert loaded.train[:].tobytes() == LINES[:cut] + LINES[:cut].upper() + line[:810]
    assert loaded.val[:].tobytes() == LINES[cut:] + LINES[cut:].upper() + line[810:]


def test_pydoc_warns():
    loaded = data.load("pydoc", None, None)
    assert "not for results" in loaded.note and len(loaded.train) > 100_000 and len(loaded.val) > 10_000


def test_nanogpt_files_are_mapped_and_the_pickle_is_left_alone(nanogpt: Path):
    (nanogpt / "meta.pkl").write_bytes(b"cos\nabort\n.")  # would end the process if it were unpickled
    loaded = data.load("nanogpt", str(nanogpt), 900)
    assert isinstance(loaded.train, np.memmap) and isinstance(loaded.val, np.memmap)
    assert len(loaded.train) == 900 and len(loaded.val) == 100 and loaded.vocab_size == 900
    x, y = data.batch(loaded.train, seed=0, step=0, batch_size=4, context=8)
    assert (y == x + 1).all() and type(x) is np.ndarray


def test_llmc_validation_is_the_file_named_val_else_the_first(shards: Path):
    first = data.load("llmc", str(shards), 407)
    assert first.val[:].tolist() == list(range(100)) and first.train[:].tolist() == list(range(100, 407))
    assert isinstance(first.train, data.Shards)
    assert data.load("llmc", str(shards / "part_*.bin"), 407).sha256 == first.sha256
    (shards / "part_1.bin").rename(shards / "text_val_000.bin")
    (shards / "part_2.bin").rename(shards / "interval_2.bin")  # a word with val in it is not the word val
    named = data.load("llmc", str(shards), 407)
    assert named.val[:].tolist() == list(range(100, 107))
    assert sorted(named.train[:].tolist()) == [*range(100), *range(107, 407)]


def test_llama3_shards_keep_their_large_ids(tmp_path: Path):
    for i in range(2):
        shard(tmp_path / f"{i}.bin", [128255, 7, 100000], "u4")
    loaded = data.load("llmc", str(tmp_path), 128256)
    x, _ = data.batch(loaded.train, seed=0, step=0, batch_size=1, context=2)
    assert loaded.train.dtype == np.uint32 and set(x.ravel().tolist()) == {128255, 7}


def test_configs_name_the_arguments_of_load():
    folder = Path(__file__).parents[3] / "conf" / "data"
    files = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    own = files.pop("batches")
    assert own.keys() == {"path", "vocab_size", "target"} and own["target"] == "???"
    assert set(files) == set(data.SOURCES)
    for name, config in files.items():
        assert config.keys() - {"source"} == {"path", "vocab_size"} and config.get("source", name) == name
        assert config["path"] == ("???" if data.SOURCES[name].needs_path else None)


MY_SOURCE = """
from spectral_mup.data import Source
from spectral_mup.data.split import split_documents


class Counting(Source):
    needs_path = False

    def read(self):
        return split_documents([b"".join(b"%d\\n" % i for i in range(1000))])

    def content_hash(self):
        return "counting to 1000"
"""


def test_a_source_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_texts.py").write_text(MY_SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = data.load("my_texts.Counting", None, None)
    assert (loaded.train[:].tobytes() + loaded.val[:].tobytes()).startswith(b"0\n1\n2\n") and loaded.vocab_size == 256
    prints = [data.fingerprint("my_texts.Counting", None, size) for size in (None, 256, 300)]
    assert prints[0] == prints[1] != prints[2]


# --- mistakes


@pytest.mark.parametrize("call", [data.load, data.fingerprint])
@pytest.mark.parametrize(
    ("source", "path", "vocab_size", "message"),
    [
        ("wikipedia", None, None, r"data\.source=wikipedia: .*shakespeare, text"),
        ("json.Wikipedia", None, None, r"data\.source=json\.Wikipedia: cannot be imported"),
        ("shakespeare", "a.txt", None, r"data\.path: data=shakespeare reads no path"),
        ("pydoc", "a.txt", None, r"data\.path: data=pydoc reads no path"),
        ("text", None, None, r"data\.path: data=text needs it"),
        ("text", "/nowhere/a.txt", None, r"data\.path: /nowhere/a.txt does not exist"),
        ("nanogpt", "/nowhere", 50257, r"data\.path: /nowhere does not exist"),
        ("llmc", "/nowhere/*.bin", 50257, r"data\.path: /nowhere/\*\.bin does not exist"),
        ("nanogpt", "/", None, r"data\.vocab_size: data=nanogpt needs it"),
        ("llmc", "/", None, r"data\.vocab_size: data=llmc needs it"),
        ("pydoc", None, 0, r"data\.vocab_size=0: must be at least 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(call, source, path, vocab_size, message):
    with pytest.raises(ConfigError, match=message) as error:
        call(source, path, vocab_size)
    assert "\n" not in str(error.value)


def test_empty_texts_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.path: no \.txt file"):
        data.load("text", str(tmp_path), None)
    (tmp_path / "a.txt").touch()
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(DataError, match=r"data\.path: .* is empty"):
            data.load("text", str(path), None)
    (tmp_path / "a.txt").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"data\.path: 1 tokens are left for validation"):
        data.load("text", str(tmp_path), None)


def test_damaged_nanogpt_files_are_refused(nanogpt: Path):
    whole = (nanogpt / "train.bin").read_bytes()
    for damaged, message in ((b"", "train.bin is empty"), (whole[:-1], "1799 bytes, odd")):
        (nanogpt / "train.bin").write_bytes(damaged)
        with pytest.raises(DataError, match=rf"data\.path: .*{message}"):
            data.load("nanogpt", str(nanogpt), 900)
    (nanogpt / "train.bin").unlink()
    with pytest.raises(DataError, match=r"data\.path: no train\.bin"):
        data.load("nanogpt", str(nanogpt), 900)


def test_damaged_shards_are_refused(shards: Path):
    path = shards / "part_2.bin"
    whole = path.read_bytes()
    ints = np.frombuffer(whole, "<i4", count=256)
    for damaged, message in (
        (whole[:-2], "part_2.bin is truncated .* 300 tokens, 600 bytes, but it has 598"),
        (whole + b"\0\0", "part_2.bin is truncated or damaged"),
        (whole[1024:], "part_2.bin is not an llm.c shard: the file is shorter"),
        (b"\1\0\0\0" + whole[4:], "not an llm.c shard: its first int32 is 1, not 20240520 or 20240801"),
        (np.array([20240520, 2, 300], "<i4").tobytes() + whole[12:], "version 2; only its version 1"),
        (np.where(np.arange(256) == 2, 0, ints).astype("<i4").tobytes(), "contains no tokens"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"data\.path: .*{message}"):
            data.load("llmc", str(shards), 407)
    path.write_bytes(whole)
    data.load("llmc", str(shards), 407)


def test_one_shard_is_not_enough(tmp_path: Path):
    with pytest.raises(DataError, match="0 shards for validation and none for training"):
        data.load("llmc", str(tmp_path), 100)
    shard(tmp_path / "only.bin", np.arange(50))
    for path in (tmp_path, tmp_path / "only.bin"):
        with pytest.raises(DataError, match="none for training"):
            data.load("llmc", str(path), 100)


def test_ids_outside_the_vocabulary_are_refused(nanogpt: Path, shards: Path, monkeypatch: pytest.MonkeyPatch):
    data.load("nanogpt", str(nanogpt), 900)
    with pytest.raises(DataError, match=r"data\.vocab_size: the text has token id 899, so 899 is too small"):
        data.load("nanogpt", str(nanogpt), 899)
    with pytest.raises(DataError, match="token id 406"):
        data.load("llmc", str(shards / "part_*.bin"), 406)
    with pytest.raises(DataError, match="so 64 is too small"):
        data.load("pydoc", None, 64)
    monkeypatch.setattr(content, "SMALL", 16)  # from here on these files are big: only samples are looked at,
    monkeypatch.setattr(content, "MB", 32)
    data.load("nanogpt", str(nanogpt), 900)
    with pytest.raises(DataError, match="token id 899"):  # the last token among them
        data.load("nanogpt", str(nanogpt), 899)


# --- fingerprints


def test_a_fingerprint_knows_the_text_and_not_the_place(tmp_path: Path):
    places = [tmp_path / name for name in ("here", "there", "changed")]
    for place in places:
        place.mkdir()
        for name in ("a.txt", "b.txt"):
            (place / name).write_bytes(LINES)
    (tmp_path / "changed/b.txt").write_bytes(LINES[:-5] + b"T" + LINES[-4:])
    here, there, changed = (data.fingerprint("text", str(place), None) for place in places)
    assert here == there != changed and len(here) == 64
    assert data.fingerprint("text", str(places[0]), 512) != here  # another vocabulary
    assert data.fingerprint("text", str(places[0]), 256) == here  # what null means


def test_a_fingerprint_knows_the_split(shards: Path, monkeypatch: pytest.MonkeyPatch):
    (shards / "part_2.bin").rename(shards / "part_2_val.bin")
    before = data.fingerprint("llmc", str(shards), 407)
    (shards / "part_1.bin").rename(shards / "part_1_val.bin")  # the same files in the same order
    assert data.fingerprint("llmc", str(shards), 407) != before
    shakespeare = data.fingerprint("shakespeare", None, None)
    monkeypatch.setattr(corpus, "SPLIT", "another rule")
    assert data.fingerprint("shakespeare", None, None) != shakespeare


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(LINES)
    before, misses = data.fingerprint("text", str(path), None), content.hash_blocks.cache_info().misses
    assert data.fingerprint("text", str(path), None) == before
    assert content.hash_blocks.cache_info().misses == misses
    path.write_bytes(LINES.upper())
    os.utime(path, ns=(1, 1))  # a clock too coarse to see the change would make this test a matter of luck
    assert data.fingerprint("text", str(path), None) != before


def test_a_big_file_is_sampled_at_both_ends_and_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(content, "SMALL", 1000)
    monkeypatch.setattr(content, "MB", 10)
    seen = content.spread(len(LINES), content.SAMPLES, content.MB)
    assert seen[0] == 0 and seen[-1] == len(LINES) - 10 and len(seen) == 16

    def of(text: bytes) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"  # a new file every time
        path.write_bytes(text)
        return data.fingerprint("text", str(path), None)

    def changed(at: int) -> bytes:
        return LINES[:at] + b"?" + LINES[at + 1 :]

    whole = of(LINES)
    assert all(of(changed(at + 3)) != whole for at in seen)
    assert of(b"\n" * 5000) != of(b"\n" * 5001)  # the samples are the same, the size tells
    assert of(changed(seen[1] - 1)) == whole  # the price: a change between the samples is not seen
    assert data.load("text", str(tmp_path / "0.txt"), None).sha256.startswith("sampled:")


def test_the_vocabulary_is_that_of_the_loaded_corpus(tmp_path: Path, nanogpt: Path):
    (tmp_path / "book.txt").write_text("A line.\n" * 100)
    for given in (("pydoc", None, None), ("text", str(tmp_path / "book.txt"), 300), ("nanogpt", str(nanogpt), 70000)):
        assert data.vocabulary(*given) == data.load(*given).vocab_size
    with pytest.raises(DataError, match="data.vocab_size"):
        data.vocabulary("nanogpt", str(nanogpt), None)
