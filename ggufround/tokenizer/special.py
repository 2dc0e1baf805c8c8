"""Special ids, add-bos flags, chat templates and normalizer flags: what gguf-py's SpecialVocab writes, in its order.

Ids come from tokenizer_config.json (looked up among tokenizer.json's added tokens), then from config.json; the flags
from tokenizer.json's post-processor, then from tokenizer_config.json. Templates are copied and never rendered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggufround.errors import InputError
from ggufround.gguf_file import Field, Kind, array, boolean, string, u32
from ggufround.tokenizer.files import Files, at, content, items, read_json, read_text, steps

TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # llama.cpp's spelling
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}  # llama.cpp reads no id of type cls
ADDS = ("bos", "eos", "sep")
TEMPLATE = "tokenizer.chat_template"
TOKEN_TYPES = "tokenizer.ggml.token_type_count"


def special_fields(
    files: Files,
    limit: int | None = None,
    preset: Mapping[str, int] | None = None,
    types: tuple[str, ...] = TYPES,
) -> dict[str, Field]:
    """Metadata fields for the special tokens of `types`; ids from `limit` on are left out, `preset` ids come after
    those of the files."""
    tokenizer, config = files.tokenizer, files.config
    adds: dict[str, bool] = {}
    if tokenizer:
        config, types, adds = _post_processor(tokenizer, config, types)
    ids: dict[str, int] = {}
    template = None
    if config:
        template = _template(files, config)
        by_text: dict[str, Any] = {}
        for token in items(tokenizer, "added_tokens"):
            by_text.setdefault(str(content(token)), at(token, "id"))
        for kind in types:
            flag = config.get(f"add_{kind}_token")
            if isinstance(flag, bool):
                adds.setdefault(kind, flag)
            if (text := content(config.get(f"{kind}_token"))) is not None:
                _set(ids, kind, by_text.get(text), limit)
    for kind in types:
        number = files.model.get(f"{kind}_token_id")
        _set(ids, kind, at(files.model, "text_config", f"{kind}_token_id") if number is None else number, limit)
    for kind, number in (preset or {}).items():
        _set(ids, kind, number, limit)
    fields = {ID_KEYS[kind]: u32(number) for kind, number in ids.items() if kind in ID_KEYS}
    fields |= {f"tokenizer.ggml.add_{kind}_token": boolean(flag) for kind, flag in adds.items() if kind in ADDS}
    return fields | _template_fields(template) | _normalizer_fields(at(tokenizer, "normalizer"))


def _set(ids: dict[str, int], kind: str, number: Any, limit: int | None) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        return
    if not 0 <= number < 1 << 32:
        raise InputError(f"the id of the {kind} token is {number}; a token id is at least 0")
    if limit is None or number < limit:
        ids.setdefault(kind, number)


def _post_processor(
    tokenizer: dict[str, Any], config: dict[str, Any] | None, types: tuple[str, ...]
) -> tuple[dict[str, Any] | None, tuple[str, ...], dict[str, bool]]:
    """tokenizer_config.json with the special tokens that the post-processor tells, more types where its end token is
    another than the config's, and the add flags."""
    config = dict(config) if config else None
    first = {kind: (config or {}).get(f"{kind}_token") for kind in ("bos", "cls", "eos", "sep")}

    def tell(kind: str, token: Any) -> None:
        first[kind] = token
        if config is not None:
            config[f"{kind}_token"] = token

    for kind, stand_in in (("bos", "cls"), ("eos", "sep")):
        if not first[kind] and first[stand_in] and config:
            tell(kind, first[stand_in])
    adds: dict[str, bool] = {}
    processor = at(tokenizer, "post_processor")
    for step in items(processor, "processors") or [processor]:
        kind = at(step, "type")
        if kind == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            adds |= {"bos": True, "eos": True, "sep": True}
            for name in ("cls", "sep"):
                if not first[name] and config is not None:
                    tell(name, at(step, name, 0) or first[{"cls": "bos", "sep": "eos"}[name]])
        elif kind == "TemplateProcessing":
            start, end = None, None
            single = items(step, "single")
            if len(single) > 1 and (start := at(single, 0, "SpecialToken", "id")):
                if config is None:
                    first["bos"] = start
                elif start not in (first["bos"], first["cls"]):  # an object never equals, as in gguf-py
                    for name in ("bos", "cls"):
                        if not first[name]:
                            tell(name, start)
                adds["bos"] = start in (first["bos"], first["cls"])
            if len(single) > 1 and (end := at(single, -1, "SpecialToken", "id")):
                if config is None:
                    first["eos"] = end
                elif end != first["eos"]:
                    spare = next((name for name in ("eot", "eom") if name not in types), None)
                    if spare:  # the config's end token lives on as end of turn
                        types = (*types, spare)
                        config[f"{spare}_token"] = first["eos"]
                    tell("eos", end)
                adds["eos"] = end == first["eos"]
            _separator(step, start, end, first, config, adds)
    return config, types, adds


def _separator(step: Any, start: Any, end: Any, first: dict[str, Any], config: dict[str, Any] | None,
               adds: dict[str, bool]) -> None:  # fmt: skip
    """add_sep from the template for pairs: A [sep] [eos] B."""
    pair = items(step, "pair")
    begin = 1 if start and at(pair, 0, "SpecialToken", "id") == start else 0
    stop = -1 if end and at(pair, -1, "SpecialToken", "id") == end else None
    pair = pair[begin:stop]
    middle = pair[1:-1]
    if at(pair, 0, "Sequence", "id") != "A" or at(pair, -1, "Sequence", "id") != "B" or not middle:
        return
    known = (first["sep"], first["eos"])
    token = at(middle, 0, "SpecialToken", "id")
    add = bool(token) and token in known and not end
    if len(middle) == 2 and (token := at(middle, 1, "SpecialToken", "id")) and token in known:
        add = True
    adds["sep"] = add
    if add and not first["sep"] and config:
        config["sep_token"] = first["eos"]


def _template(files: Files, config: dict[str, Any]) -> Any:
    """tokenizer_config.json's template, else chat_template.jinja with additional_chat_templates/, else
    chat_template.json's."""
    if "chat_template" in config:
        return config["chat_template"]
    if "chat_template.jinja" in files.paths:
        template = read_text(files.paths["chat_template.jinja"])
        named = sorted(path for name, path in files.paths.items() if name.startswith("additional_chat_templates/"))
        if not named:
            return template
        return [{"name": "default", "template": template}] + [
            {"name": path.stem, "template": read_text(path)} for path in named
        ]
    return at(read_json(files.paths, "chat_template.json"), "chat_template")


def _template_fields(template: Any) -> dict[str, Field]:
    if isinstance(template, str):
        return {TEMPLATE: string(template)}
    named = {}
    for choice in template if isinstance(template, list) else []:
        name, text = at(choice, "name"), at(choice, "template")
        if isinstance(name, str) and name and isinstance(text, str):
            named[re.sub(r"[^0-9A-Za-z]", "_", name)] = text
    default = named.pop("default", None)
    fields = {f"{TEMPLATE}.{name}": string(text) for name, text in named.items()}
    if named:
        fields["tokenizer.chat_templates"] = array(Kind.STRING, sorted(named))
    return fields if default is None else fields | {TEMPLATE: string(default)}


def _normalizer_fields(normalizer: Any) -> dict[str, Field]:
    flags: dict[str, bool] = {}
    for step in steps(normalizer, "normalizers"):
        kind = at(step, "type")
        if kind == "Lowercase":
            flags["lowercase"] = True
        elif kind == "StripAccents":
            flags["strip_accents"] = True
        elif kind == "BertNormalizer":
            flags |= {k: step[k] for k in ("lowercase", "strip_accents") if isinstance(step.get(k), bool)}
    return {f"tokenizer.ggml.normalizer.{k}": boolean(flags[k]) for k in ("lowercase", "strip_accents") if k in flags}
