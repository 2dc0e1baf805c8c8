"""`general.*`: name, version, size, licence, ancestry, and recommended sampling.

Sources, the first that says something counting: the front matter of README.md, `_name_or_path` in config.json, the
name of the directory or hub repository; generation_config.json for sampling. How a name falls apart into base name,
size, fine-tune and version is the business of the `gguf` package (`Metadata.apply_metadata_heuristic`), as in
llama.cpp's converter; files are read here, in bounded size, and nothing in them can stop a conversion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from gguf import Metadata
from gguf.utility import size_label

from ggufround.checkpoint.spec import Checkpoint
from ggufround.gguf_file import Field, Kind, array, string, u32

README_BYTES = 1 << 20
GENERATION_BYTES = 1 << 20
CARD_CHARACTERS = 1 << 17  # of the keys that are read; hundreds are usual
CARD_ITEMS = 500  # of a list
CARD_BRACKETS = 500  # nesting costs the YAML scanner quadratic time

# generation_config.json's keys (the first that is there) for each general.sampling.* key.
SAMPLING = (
    ("sequence", Kind.STRING, ("sequence",)),
    ("top_k", Kind.I32, ("top_k",)),
    ("top_p", Kind.F32, ("top_p",)),
    ("min_p", Kind.F32, ("min_p",)),
    ("xtc_probability", Kind.F32, ("xtc_probability",)),
    ("xtc_threshold", Kind.F32, ("xtc_threshold",)),
    ("temp", Kind.F32, ("temperature",)),
    ("penalty_last_n", Kind.I32, ("penalty_last_n",)),
    ("penalty_repeat", Kind.F32, ("penalty_repeat", "repetition_penalty")),
    ("mirostat", Kind.I32, ("mirostat",)),
    ("mirostat_tau", Kind.F32, ("mirostat_tau",)),
    ("mirostat_eta", Kind.F32, ("mirostat_eta",)),
)
# (attribute of gguf.Metadata, key below `general.`) in the order in which they are written around size_label.
BEFORE_SIZE = ("name", "author", "version", "organization", "finetune", "basename", "description", "quantized_by")
AFTER_SIZE = (
    ("license", "license"),
    ("license_name", "license.name"),
    ("license_link", "license.link"),
    ("url", "url"),
    ("doi", "doi"),
    ("uuid", "uuid"),
    ("repo_url", "repo_url"),
    ("source_url", "source.url"),
    ("source_doi", "source.doi"),
    ("source_uuid", "source.uuid"),
    ("source_repo_url", "source.repo_url"),
)
ANCESTOR = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")

# The keys of a model card that are read; the rest (evaluation results can be megabytes) is not even parsed.
CARD_LISTS = (
    *("tags", "pipeline_tag", "languages", "language"),
    *("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources"),
)
CARD_TEXTS = (
    *("name", "author", "version", "organization", "description", "finetune", "basename", "size_label"),
    *("url", "doi", "uuid", "repo_url", "license", "license_name", "license_link", "model_creator", "model_type"),
    *("model_name", "model_author", "model_version", "model_organization", "model_description", "model_finetune"),
    *("model_basename", "model_size_label", "model_url", "model_doi", "model_uuid", "model_repo_url"),
)


def general(checkpoint: Checkpoint, parameters: Mapping[str, int]) -> dict[str, Field]:
    """`general.*` fields but architecture and type, from small files and names; `parameters` are the counts of
    `metadata.parameter_count`."""
    hub = not Path(checkpoint.source).exists()
    path = Path(checkpoint.source) if hub else checkpoint.root.absolute()
    config = {"_name_or_path": checkpoint.source} if hub else {}
    if isinstance(name := checkpoint.config.get("_name_or_path"), str):
        config["_name_or_path"] = name
    card = model_card(_text(checkpoint.files.get("README.md"), README_BYTES))
    found = Metadata.apply_metadata_heuristic(Metadata(), card, config, path, parameters["total"])
    label = found.size_label or size_label(
        parameters["total"], parameters["shared"], parameters["expert"], parameters["experts"]
    )
    fields = dict(_sampling(_text(checkpoint.files.get("generation_config.json"), GENERATION_BYTES)))
    texts = [(key, getattr(found, key)) for key in BEFORE_SIZE] + [("size_label", label)]
    texts += [(key, getattr(found, attribute)) for attribute, key in AFTER_SIZE]
    fields |= {f"general.{key}": string(_encodable(text)) for key, text in texts if text is not None}
    for kind, entries in (("base_model", found.base_models), ("dataset", found.datasets)):
        fields |= dict(_ancestors(kind, entries))
    for key in ("tags", "languages"):
        if values := getattr(found, key):
            fields[f"general.{key}"] = array(Kind.STRING, [_encodable(value) for value in values])
    return fields


def _ancestors(kind: str, entries: list[dict[str, str]] | None) -> Iterator[tuple[str, Field]]:
    if entries is None:
        return
    yield f"general.{kind}.count", u32(len(entries))
    for index, entry in enumerate(entries):
        for key in ANCESTOR:
            if key in entry:
                yield f"general.{kind}.{index}.{key}", string(_encodable(entry[key]))


def _text(path: Path | None, limit: int) -> str:
    """The beginning of a small text file; nothing where it cannot be read."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def model_card(readme: str) -> dict[str, Any]:
    """The keys that matter of a model card's YAML front matter, as strings and lists of strings."""
    lines = readme.splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    wanted: list[str] = []
    keep = False
    for line in lines[1 : lines.index("---", 1)]:
        if key := re.match(r"([A-Za-z_]+)\s*:", line):
            keep = key[1] in CARD_LISTS or key[1] in CARD_TEXTS
        if keep:
            wanted.append(line.replace("\t", "  "))
    text = "\n".join(wanted)
    if len(text) > CARD_CHARACTERS or sum(map(text.count, "[{")) > CARD_BRACKETS:
        return {}
    try:
        # BaseLoader makes strings of all scalars: no Norway problem, no dates, no floats for versions.
        card = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    cleaned = {key: _strings(value) for key, value in card.items()} if isinstance(card, dict) else {}
    lists = {key: cleaned[key] for key in CARD_LISTS if cleaned.get(key)}
    return lists | {key: ",".join(cleaned[key]) for key in CARD_TEXTS if cleaned.get(key)}


def _encodable(text: str) -> str:
    """Escapes in JSON and YAML, and names of directories, can hold halves of surrogate pairs, which UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _strings(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str) and item not in ("", "~", "null")][:CARD_ITEMS]


def _sampling(text: str) -> Iterator[tuple[str, Field]]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(config, dict):
        return
    for name, kind, keys in SAMPLING:
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if kind == Kind.STRING and isinstance(value, str):
            yield f"general.sampling.{name}", string(_encodable(value))
        elif kind != Kind.STRING and _fits(kind, value):
            yield f"general.sampling.{name}", Field(kind, value)


def _fits(kind: Kind, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind == Kind.I32:
        return isinstance(value, int) and -(2**31) <= value < 2**31
    return isfinite(value) and abs(value) < 3e38
