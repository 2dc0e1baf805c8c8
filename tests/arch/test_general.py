"""general.*: taken from the model card, the config and the name; nothing in them can stop a conversion."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufround.arch.general import general, model_card
from ggufround.checkpoint.spec import Checkpoint
from ggufround.gguf_file import Field, Kind, array, string, u32

COUNTS = {"total": 8_030_000_000, "shared": 8_030_000_000, "expert": 0, "experts": 0}


def found(
    tmp_path: Path, name: str = "model", readme: str = "", generation: str = "", **config: object
) -> dict[str, Field]:
    root = tmp_path / name
    root.mkdir()
    files = {"README.md": readme, "generation_config.json": generation}
    for file, text in files.items():
        (root / file).write_text(text)
    return general(Checkpoint(str(root), root, {}, config, {file: root / file for file in files}), COUNTS)


def test_a_name_falls_apart_into_its_parts(tmp_path: Path) -> None:
    fields = found(tmp_path, "Meta-Llama-3.1-8B-Instruct-v2")
    assert {key: field.value for key, field in fields.items()} == {
        "general.name": "Meta Llama 3.1 8B Instruct v2",
        "general.version": "v2",
        "general.finetune": "Instruct",
        "general.basename": "Meta-Llama-3.1",
        "general.size_label": "8B",
    }


def test_the_name_in_the_config_counts_before_that_of_the_directory(tmp_path: Path) -> None:
    fields = found(tmp_path, "snapshot", _name_or_path="org/Tiny-7B-Chat")
    assert fields["general.name"] == string("Tiny 7B Chat")
    assert fields["general.organization"] == string("Org")


def test_a_hub_id_names_the_model_when_the_directory_is_a_cache() -> None:
    fields = general(Checkpoint("no-such-org/Tiny-7B-Chat", Path("/cache/0a1b"), {}, {}), COUNTS)
    assert fields["general.name"] == string("Tiny 7B Chat")
    assert fields["general.organization"] == string("No Such Org")


def test_the_size_label_counts_parameters_where_the_name_has_none(tmp_path: Path) -> None:
    assert found(tmp_path)["general.size_label"] == string("8.0B")
    mixture = {"total": 46_700_000_000, "shared": 1_600_000_000, "expert": 5_640_000_000, "experts": 8}
    fields = general(Checkpoint(str(tmp_path), tmp_path, {}, {}), mixture)
    assert fields["general.size_label"] == string("8x7.2B")


def test_the_card_gives_licence_languages_tags_and_ancestors(tmp_path: Path) -> None:
    card = (
        "---\nlicense: [mit, apache-2.0]\nlanguage:\n- no\n- en\nversion: 1.10\nbase_model: [org/A-1B, https://x.y/z]\n"
        "datasets: org/words\npipeline_tag: text-generation\nmodel-index:\n- name: x\n  results: [[[1]]]\n---\ntext"
    )
    fields = found(tmp_path, readme=card)
    assert fields["general.license"] == string("mit,apache-2.0")
    assert fields["general.languages"] == array(Kind.STRING, ["no", "en"])
    assert fields["general.version"] == string("1.10")
    assert fields["general.base_model.count"] == u32(2)
    assert fields["general.base_model.0.repo_url"] == string("https://huggingface.co/org/A-1B")
    assert fields["general.base_model.1.repo_url"] == string("https://x.y/z")
    assert fields["general.dataset.0.name"] == string("Words")
    assert fields["general.tags"] == array(Kind.STRING, ["text-generation"])


@pytest.mark.parametrize(
    "card",
    [
        "",
        "no front matter",
        "---\nnever closed",
        "---\nlicense: {a: [b\n---",
        "---\ntags: " + "[" * 5000 + "\n---",
        "---\ntags: &a [x, x]\nlanguage: {a: *a}\nname: {}\nbase_model: {x: y}\n---",
        '---\nname: "\\ud800"\n---',
        "---\n- a list\n---",
        "\x00\xff---",
    ],
)
def test_a_card_that_makes_no_sense_is_ignored(tmp_path: Path, card: str) -> None:
    fields = found(tmp_path, readme=card)
    for field in fields.values():
        for text in field.value if field.kind == Kind.ARRAY else [field.value]:
            str(text).encode()
    assert fields["general.size_label"] == string("8.0B")


def test_megabytes_of_results_in_a_card_are_not_parsed() -> None:
    results = "".join(f"  - {{task: t{k}, value: {k}}}\n" for k in range(20000))
    assert model_card(f"---\nmodel-index:\n{results}license: mit\n---\n") == {"license": "mit"}


def test_sampling_comes_from_the_generation_config(tmp_path: Path) -> None:
    text = '{"temperature": 0.7, "top_k": 20, "top_p": 1, "repetition_penalty": 1.1, "do_sample": true}'
    fields = found(tmp_path, generation=text)
    assert fields["general.sampling.temp"] == Field(Kind.F32, 0.7)
    assert fields["general.sampling.top_k"] == Field(Kind.I32, 20)
    assert fields["general.sampling.top_p"] == Field(Kind.F32, 1)
    assert fields["general.sampling.penalty_repeat"] == Field(Kind.F32, 1.1)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"temperature": "hot"}', '{"top_k": 1e99}', '{"top_k": true}', '{"temperature": NaN}']
)
def test_a_generation_config_that_makes_no_sense_is_ignored(tmp_path: Path, text: str) -> None:
    assert not any("sampling" in key for key in found(tmp_path, generation=text))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="Ab0179-_. /xkKMBTvqI٣é", max_size=24))
def test_no_name_stops_a_conversion(name: str) -> None:
    fields = general(Checkpoint(".", Path(), {}, {"_name_or_path": name}), COUNTS)
    assert fields["general.size_label"].value
