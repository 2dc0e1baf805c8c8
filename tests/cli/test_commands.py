"""The commands as a user types them: what they print, what they exit with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ggufround import planning
from ggufround.cli.values import size
from ggufround.errors import UsageError
from ggufround.version import __version__


def test_convert_inspect_verify_in_one_walk(run: Any, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = run("convert", llama, out, "--type", "q4_0", "--json").json
    assert done["bytes"] == out.stat().st_size
    shown = run("inspect", out, "--json").json
    assert shown["metadata"]["ggufround.mix"] == "Q4_0"
    assert {t["dtype"] for t in shown["tensors"]} == {"F32", "Q4_0", "Q6_K", "Q8_0"} & {
        t["dtype"] for t in shown["tensors"]
    }
    checked = run("verify", out, "--source", llama, "--json").json
    assert (checked["data"], checked["source"], checked["sound"]) == ("ok", "ok", True)
    assert all(0 < e["relative"] < 0.2 for e in checked["errors"])


def test_plain_output_names_the_file_and_the_memory(run: Any, llama: Path, tmp_path: Path) -> None:
    ran = run("convert", llama, tmp_path / "x.gguf", "--type", "q8_0")
    assert ran.code == 0
    assert str(tmp_path / "x.gguf") in ran.out
    assert "peak memory" in ran.out


@pytest.mark.parametrize("mix", ["q8_0", "q4_k_m", "bf16"])
def test_plan_is_exact_to_the_byte(run: Any, llama: Path, tmp_path: Path, mix: str) -> None:
    planned = run("plan", llama, "--type", mix, "--json").json["targets"][0]
    run("convert", llama, tmp_path / "out.gguf", "--type", mix)
    assert planned["files"][0]["bytes"] == (tmp_path / "out.gguf").stat().st_size


def test_a_dry_run_writes_nothing(run: Any, llama: Path, tmp_path: Path) -> None:
    ran = run("convert", llama, tmp_path / "x.gguf", "--dry-run")
    assert ran.code == 0
    assert "bits per weight" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_tensor_types_can_be_chosen_by_either_name(run: Any, llama: Path, tmp_path: Path) -> None:
    words = tmp_path / "types.txt"
    words.write_text("attn_k=q5_1\nattn_v=q5_1")
    made = run(
        "plan", llama, "--type", "q4_0", "--tensor-type", "ffn_down=q8_0", "--layer", "mlp.up_proj=q5_0",
        "--tensor-type-file", words, "--output-tensor-type", "f16", "--token-embedding-type", "q8_0", "--json",
    ).json["targets"][0]["tensors"]  # fmt: skip
    types = {t["name"]: t["type"] for t in made}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.1.ffn_up.weight"] == "Q5_0"
    assert types["blk.0.attn_v.weight"] == types["blk.0.attn_k.weight"] == "Q5_1"
    assert types["blk.0.attn_q.weight"] == "Q4_0"
    assert types["output.weight"] == "F16"
    assert types["token_embd.weight"] == "Q8_0"


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "an unknown type": (("--type", "q4_k_x"), "Q4_K_M"),
    "an unknown recipe": (("--recipe", "rnt"), "rtn"),
    "an unknown tensor type": (("--tensor-type", "ffn=q9_9"), "q9_9"),
    "a pattern without a type": (("--tensor-type", "ffn"), "PATTERN=TYPE"),
    "a pattern that is none": (("--tensor-type", "(=q8_0"), "regular expression"),
    "a size that is none": (("--max-ram", "lots"), "4.2GB"),
    "an unknown pre-tokenizer": (("--arch", "Qwen2ForCausalLM", "--pre", "gtp-2"), ""),
    "an unknown architecture": (("--arch", "lama"), "llama"),
    "an imatrix that is absent": (("--imatrix", "absent.gguf"), "absent.gguf"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_refused_with_the_way_out(run: Any, llama: Path, tmp_path: Path, case: str) -> None:
    flags, hint = BAD[case]
    ran = run("convert", llama, tmp_path / "x.gguf", *flags)
    assert ran.code == 2
    assert hint in ran.err
    assert ran.err.startswith("error:")
    assert list(tmp_path.iterdir()) == []


def test_a_mix_that_needs_a_type_not_written_yet_is_refused_by_name(
    run: Any, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    written = {name: kind for name, kind in planning.QUANT_TYPES.items() if name != "Q4_0"}
    monkeypatch.setattr(planning, "QUANT_TYPES", written)
    ran = run("plan", llama, "--type", "q4_0")
    assert ran.code == 2
    assert "Q4_0 needs Q4_0, which ggufround cannot write yet" in ran.err


def test_an_unknown_architecture_in_the_config_is_named_with_its_neighbours(
    run: Any, llama: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LamaForCausalLM"]}))
    ran = run("convert", model, tmp_path / "x.gguf")
    assert ran.code == 2
    assert "LlamaForCausalLM" in ran.err
    assert not (tmp_path / "x.gguf").exists()


def test_verify_finds_a_flipped_byte_and_exits_with_1(run: Any, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    run("convert", llama, out, "--type", "q8_0")
    raw = bytearray(out.read_bytes())
    raw[-40] ^= 1
    out.write_bytes(raw)
    ran = run("verify", out, "--json")
    assert ran.code == 1
    assert ran.json["data"] == "differs"


def test_verify_checks_all_parts_of_a_split_file(run: Any, llama: Path, tmp_path: Path) -> None:
    done = run("convert", llama, tmp_path / "x.gguf", "--type", "q8_0", "--split-max-size", "80K", "--json").json
    assert run("verify", done["files"][0], "--json").json["data"] == "ok"
    Path(done["files"][1]).unlink()
    ran = run("verify", done["files"][0])
    assert ran.code == 2
    assert "missing" in ran.err


@pytest.mark.parametrize("what", ["types", "mixes", "formats", "recipes", "architectures"])
def test_everything_can_be_listed(run: Any, what: str) -> None:
    assert run("list", what).code == 0
    assert len(run("list", what, "--json").json) > 0


def test_the_version_is_told(run: Any) -> None:
    ran = run("--version")
    assert (ran.code, ran.out.strip()) == (0, f"ggufround {__version__}")


def test_listing_something_unknown_is_a_usage_error(run: Any) -> None:
    assert run("list", "models").code == 2


def test_nothing_heavy_is_imported_for_a_torch_free_command(llama: Path, tmp_path: Path) -> None:
    script = (
        f"import sys; sys.argv = ['ggufround', 'plan', {str(llama)!r}]\n"
        "from ggufround.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('heavy:', [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize(
    ("text", "bytes_"), [("500M", 500_000_000), ("4.2GB", 4_200_000_000), ("2GiB", 2**31), ("17", 17), ("1.5k", 1500)]
)
def test_sizes_are_decimal_unless_they_say_otherwise(text: str, bytes_: int) -> None:
    assert size(text, "--max-ram") == bytes_


@pytest.mark.parametrize("text", ["", "5X", "-3G", "0", "G"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-ram"):
        size(text, "--max-ram")
