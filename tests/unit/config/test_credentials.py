"""A credential in a config is refused before it is read, and never repeated."""

import subprocess
import sys

import pytest
from support import ROOT
from support.launches import environment

from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.config.credentials import SECRET_NAME
from spectral_mup.config.parse import keys
from spectral_mup.config.schema import Config

CANARY = "c0ffee" * 6 + "abcd"
REFUSED = [
    f"+wandb.api_key={CANARY}", f"wandb.api_key={CANARY}", f"+wandb.apikey={CANARY}", f"++HF_TOKEN={CANARY}",
    f"WANDB_API_KEY={CANARY}", f"+data.Password={CANARY}", f"+train.secret.value={CANARY}", f"+a.password_file={CANARY}",
    f"+optimizer.algorithms.adamw.args.auth_token={CANARY}",
    f"+optimizer.algorithms.adamw.args.more={{api-key: {CANARY}}}",
    f"+optimizer.algorithms.adamw.args={{'x':1,'token':{CANARY}}}",
    f"+wandb.api_key={CANARY}[", f"+x={{token: {CANARY}[", f"wandb.api_key:{CANARY}",
    f"wandb.project={CANARY}", f"wandb.mode={CANARY}", "wandb.project=wandb_v1_" + CANARY,
    "+optimizer.algorithms.adamw.args.note=${oc.env:WANDB_API_KEY}",
    f"+cluster.extra={{export: 'ALL,WANDB_API_KEY={CANARY}'}}", f"+cluster.extra.comment='password = {CANARY}'",
    f"prepare.input=https://me:{CANARY}@host/text", f"cluster.constraint=HF_TOKEN={CANARY}",
]  # fmt: skip


@pytest.mark.parametrize("override", REFUSED)
def test_a_credential_on_the_command_line_is_refused_and_not_repeated(override, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    with pytest.raises(ConfigError, match=r"must not be in a config.*the environment .*~/\.netrc") as error:
        load_config([override])
    assert CANARY not in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(override.lstrip("+").replace(":", "=").partition("=")[0] + ":")


@pytest.mark.parametrize(
    "text", ["wandb:\n  api_key: {}", "optimizer:\n  algorithms:\n    adamw:\n      args:\n        deep: [{{my_secret: {}}}]"]
)
def test_a_credential_in_a_yaml_file_is_refused(tmp_path, monkeypatch, text):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(text.format(CANARY) + "\n")
    monkeypatch.setenv("SPECTRAL_MUP_PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"(wandb\.api_key|args\.deep\.my_secret): a credential must not") as error:
        load_config(["sweep=mine"])
    assert CANARY not in str(error.value)
    assert load_config([]).sweep.name == "default"


def test_our_own_keys_and_ordinary_values_pass():
    """Of the config's keys none looks like a credential, and a commit's hash is one in wandb.* alone."""
    assert "prepare.shard_tokens" in list(keys(Config)) and not [k for k in keys(Config) if SECRET_NAME.search(k)]
    config = load_config([
        "prepare.shard_tokens=5", "prepare.tokenizer=bpe", f"prepare.input=hf:someone/texts@{CANARY}", "wandb.project=secrets",
        "cluster=slurm", "+cluster.extra.export='ALL,WANDB_API_KEY'", "+cluster.extra.comment='max_tokens=3'",
        "+optimizer.algorithms.adamw.args.keys=2", "+optimizer.algorithms.adamw.args.tokens_per_step={max_tokens: 3}",
    ])  # fmt: skip
    assert config.prepare.shard_tokens == 5 and config.optimizer.algorithms["adamw"].args["tokens_per_step"] == {
        "max_tokens": 3
    }


@pytest.mark.parametrize("script", ["launch.py", "analyze.py"])
def test_the_commands_refuse_it_in_one_line_and_write_nothing(tmp_path, script):
    said = subprocess.run(
        [sys.executable, str(ROOT / script), f"+optimizer.algorithms.adamw.args.api_key={CANARY}", "data=pydoc"],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.count("\n") == 1 and CANARY not in said.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
