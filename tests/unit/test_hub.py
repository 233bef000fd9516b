"""Downloads with the real client of the hub, from a hub on this machine that has faults."""

import json
import os
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from hub_server import COMMIT, REPO, serve

from kvbudget.errors import UserError
from kvbudget.sources import formats, modelscope
from kvbudget.sources.download import download
from kvbudget.sources.registry import Hub, ModelScope

SPEC = Hub(repo=REPO, revision=COMMIT)
FILES = {
    "config.json": b'{"max_position_embeddings": 4096}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 1024,
    "README.md": b"# A model",
    "pytorch_model.bin": b"a pickle",
    "onnx/config.json": b"{}",
}
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub():
    with serve(dict(FILES)) as hub:
        yield hub


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that the client and we have waited between attempts; nobody does wait."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def get(hub, waits, tmp_path, monkeypatch):
    """Download into a new directory of an empty cache."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def get(spec: Hub = SPEC) -> Path:
        download("tiny", spec, tmp_path / "tiny")
        return tmp_path / "tiny"

    return get


def refusal(get, spec: Hub = SPEC) -> str:
    with pytest.raises(UserError) as caught:
        get(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{spec.repo} at {spec.revision}: ")
    return message


def test_what_a_model_may_consist_of_and_nothing_else(hub, get):
    made = get()
    names = {"config.json", "tokenizer.json", "model.safetensors", "source.json"}
    assert {path.name for path in made.iterdir()} == names
    assert (made / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert json.loads((made / "source.json").read_text()) == {
        "source": "hub",
        "repo": REPO,
        "revision": COMMIT,
    }
    assert not hub.asked("GET", "pytorch_model") + hub.asked("GET", "onnx")
    # Text is looked at before weights are asked for.
    assert hub.requests[-1].path.endswith("model.safetensors")


def test_a_second_download_fetches_nothing(hub, get):
    get()
    before = len(hub.requests)
    get()
    assert len(hub.requests) == before


class TestAccess:
    def test_a_gated_model_without_a_token(self, hub, get):
        hub.token, hub.licensed = TOKEN, {TOKEN}
        assert f"gated; accept its licence at {hub.endpoint}/{REPO}" in refusal(get)
        assert "set HF_TOKEN" in refusal(get)

    def test_a_gated_model_with_a_token_that_has_no_licence(self, hub, get, monkeypatch):
        hub.token, hub.licensed = TOKEN, set()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert "gated; accept its licence" in refusal(get)

    def test_a_token_opens_it_and_goes_to_the_hub_alone(self, hub, get, monkeypatch):
        hub.token, hub.licensed = TOKEN, {TOKEN}
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert (get() / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        (elsewhere,) = hub.asked("GET", "/cdn/")
        assert elsewhere.token is None

    def test_a_private_or_absent_repository(self, hub, get):
        hub.token = TOKEN
        assert "no such repository, or it is private" in refusal(get)
        absent = Hub(repo="someone/else", revision=COMMIT)
        assert "correct `repo`" in refusal(get, absent)

    def test_a_wrong_token(self, hub, get, monkeypatch):
        hub.token = TOKEN
        monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
        message = refusal(get)
        assert "does not accept the token" in message
        assert "wrongwrong" not in message

    def test_an_absent_revision(self, get):
        assert "no such revision; correct `revision`" in refusal(
            get, Hub(repo=REPO, revision="f" * 40)
        )


class TestFaults:
    def test_a_connection_cut_inside_a_file_goes_on_there(self, hub, get):
        hub.cut("model.safetensors", after=100_000)
        assert (get() / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        first, second = hub.asked("GET", "/cdn/")
        assert first.range is None
        assert int(second.range.removeprefix("bytes=").rstrip("-")) > 90_000
        assert second.answered == 206

    def test_a_connection_that_is_reset(self, hub, get):
        hub.cut("model.safetensors", after=100_000, reset=True)
        assert (get() / "model.safetensors").read_bytes() == FILES["model.safetensors"]

    def test_a_connection_that_keeps_breaking(self, hub, get):
        hub.cut("model.safetensors", after=0, times=10**6)
        assert "the connection broke again and again; run it again" in refusal(get)

    def test_the_next_run_takes_up_what_has_arrived(self, hub, get):
        hub.answer("GET", "/cdn/", 503)
        refusal(get)
        hub.faults.clear()
        asked = len(hub.asked("GET", "config.json"))
        assert (get() / "model.safetensors").is_file()
        assert len(hub.asked("GET", "config.json")) == asked

    @pytest.mark.parametrize(("method", "part"), [("GET", "/tree/"), ("GET", "/cdn/")])
    def test_an_overloaded_hub_is_asked_again_later_and_later(self, hub, get, waits, method, part):
        hub.answer(method, part, 503, times=2)
        assert (get() / "model.safetensors").is_file()
        assert len(waits) == 2
        assert waits[0] < waits[1]

    @pytest.mark.parametrize(("method", "part"), [("GET", "/tree/"), ("GET", "/cdn/")])
    def test_a_hub_that_stays_overloaded(self, hub, get, method, part):
        hub.answer(method, part, 502)
        assert "fails (502); try again later, or name a mirror with HF_ENDPOINT" in refusal(get)

    @pytest.mark.parametrize("part", ["/tree/", "/cdn/"])
    def test_a_hub_that_says_how_long_to_wait(self, hub, get, waits, part):
        hub.answer("GET", part, 429, times=1, Retry_After="7")
        assert (get() / "model.safetensors").is_file()
        assert waits == [8]  # the client adds a second

    def test_a_hub_that_will_not_be_asked_at_all(self, hub, get):
        hub.answer("GET", "/tree/", 429)
        assert "asks to slow down (429)" in refusal(get)

    def test_a_hub_that_says_nothing(self, hub, get):
        hub.stall("GET", "/cdn/", seconds=0.4)
        message = refusal(get)
        assert "is too slow; run it again" in message
        assert "HF_HUB_DOWNLOAD_TIMEOUT" in message

    def test_no_hub_at_all(self, get, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://user:password@127.0.0.1:9")
        message = refusal(get)
        assert "http://127.0.0.1:9 cannot be reached" in message
        assert "HF_ENDPOINT" in message
        assert "password" not in message

    def test_a_cache_that_is_complete_stands_in_for_the_hub(self, hub, get):
        get()
        hub.answer("GET", "/tree/", 503)
        assert (get() / "model.safetensors").is_file()


class TestOffline:
    @pytest.fixture(autouse=True)
    def offline(self, get, monkeypatch, request):
        if "cached" in request.node.name:
            get()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def test_what_is_cached_is_taken(self, hub, get):
        before = len(hub.requests)
        assert (get() / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert len(hub.requests) == before

    def test_nothing_there(self, hub, get):
        assert "offline (HF_HUB_OFFLINE), and" in refusal(get)
        assert not hub.requests

    def test_a_cached_snapshot_with_a_file_missing(self, hub, get, tmp_path):
        (weights,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
        weights.unlink()
        assert "does not hold all of it; unset HF_HUB_OFFLINE" in refusal(get)


class TestWeights:
    """Of the files of a repository, those that transformers reads."""

    SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    COPIES = ("consolidated.safetensors", "original/consolidated.00.safetensors", "model-Q4.gguf")
    COPIES += ("original/model.safetensors", "onnx/model.onnx", "model.fp16.safetensors")

    def share(self, hub, **others: bytes) -> None:
        """The weights in two parts, and the same in other layouts."""
        content = hub.files.pop("model.safetensors")
        index = {"weight_map": dict(zip("ab", self.SHARDS, strict=True))}
        hub.files |= {name: content + name.encode() for name in self.SHARDS}
        hub.files |= {"model.safetensors.index.json": json.dumps(index).encode()}
        hub.files |= dict.fromkeys(self.COPIES, content) | others

    def fetched(self, hub) -> set[str]:
        return {request.path.rpartition("/")[2] for request in hub.asked("GET", "/cdn/")}

    def test_the_parts_that_the_index_names_and_no_other_layout(self, hub, get):
        self.share(hub)
        made = get()
        assert self.fetched(hub) == set(self.SHARDS)
        names = {path.name for path in made.iterdir() if path.suffix != ".json"}
        assert names == set(self.SHARDS)
        before = len(hub.requests)
        get()
        assert len(hub.requests) == before

    def test_modelscope_is_asked_for_the_same(self, hub, get, tmp_path, monkeypatch):
        """Its client is no part of the test's installation: a folder stands for its cache."""
        self.share(hub)
        asked = []

        def snapshot(repo: str, revision: str, patterns) -> Path:
            asked.extend(patterns)
            for name in hub.files:
                if any(fnmatch(name, pattern) for pattern in patterns):
                    (tmp_path / name).parent.mkdir(exist_ok=True)
                    (tmp_path / name).write_bytes(hub.files[name])
            return tmp_path

        monkeypatch.setattr(modelscope, "snapshot", snapshot)
        made = get(ModelScope(repo=REPO, revision="v1"))
        weights = {path.name for path in made.iterdir() if path.suffix == ".safetensors"}
        assert weights == set(self.SHARDS)
        assert not {*self.COPIES, *formats.ALLOWED[:1]} & set(asked)

    def test_a_whole_file_comes_before_the_index(self, hub, get):
        self.share(hub, **{"model.safetensors": b"whole"})
        get()
        assert self.fetched(hub) == {"model.safetensors"}

    def test_a_part_that_the_repository_lacks(self, hub, get):
        self.share(hub)
        del hub.files[self.SHARDS[1]]
        with pytest.raises(UserError, match=rf"tiny: {self.SHARDS[1]}, which .* names, is not"):
            get()

    def test_parts_without_an_index(self, hub, get):
        self.share(hub)
        del hub.files["model.safetensors.index.json"]
        with pytest.raises(UserError, match=r"and no model\.safetensors\.index\.json"):
            get()
        assert not self.fetched(hub)


class TestRefused:
    def test_weights_that_are_pickles(self, hub, get):
        del hub.files["model.safetensors"]
        with pytest.raises(UserError, match=r"no model\.safetensors, and no .*pickled weights"):
            get()
        assert not hub.asked("GET", "/cdn/")

    def test_code_of_its_own_before_the_weights_are_fetched(self, hub, get):
        hub.files["config.json"] = b'{"auto_map": {"AutoModelForCausalLM": "modeling.Tiny"}}'
        with pytest.raises(UserError, match=r"config\.json asks for code of its own \(auto_map\)"):
            get()
        assert not hub.asked("GET", "/cdn/")


def test_the_command_with_a_token_that_appears_nowhere(hub, tmp_path):
    """As the rule runs it: its own process, configured by the environment alone."""
    hub.token, hub.licensed = TOKEN, {TOKEN}
    spec = {"source": "hub", "repo": REPO, "revision": COMMIT}
    command = [sys.executable, "-m", "kvbudget", "fetch-model", "--model", "tiny"]
    command += ["--spec", json.dumps(spec), "--out", str(tmp_path / "tiny")]
    unset = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}

    def run(**more: str):
        return subprocess.run(command, env=environment | more, capture_output=True, text=True)

    refused = run()
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"error: {REPO} at {COMMIT}: gated; accept")
    assert "Traceback" not in refused.stderr
    done = run(HF_TOKEN=TOKEN, HF_DEBUG="1")
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
