"""What Gemma 4 has beside a Llama's tokenizer.json: `Gemma4Model.set_vocab` in conversion/gemma.py."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ggufround.tokenizer import load_vocab
from tiny_tokenizers import CASES, token

KEY = "tokenizer.ggml."


def test_its_merges_are_written_and_marks_of_tools_stay_visible(tmp_path: Path) -> None:
    case = CASES["gemma 3 from tokenizer.json alone"]
    document = json.loads(case.files["tokenizer.json"])
    number = max(row["id"] for row in document["added_tokens"]) + 1
    document["added_tokens"] += [
        token("<|tool_call>") | {"id": number},
        token("<unused9>") | {"id": number + 1},
    ]
    files = {**case.files, "tokenizer.json": json.dumps(document).encode()}
    vocab = load_vocab(replace(case, files=files).checkpoint(tmp_path), ("gemma4", "gemma"))
    found = {key.removeprefix(KEY): field.value for key, field in vocab.metadata.items()}
    assert list(found)[:5] == ["model", "tokens", "scores", "token_type", "merges"]
    assert found["model"] == "gemma4"
    assert "pre" not in found
    assert set(found["scores"]) == {-1000.0}
    merges = document["model"]["merges"]
    assert found["merges"] == [
        m if isinstance(m, str) else " ".join(p.replace(" ", "\u0120") for p in m) for m in merges
    ]
    normal, user_defined = 1, 4
    assert found["tokens"][number] == "<|tool_call>"
    assert found["token_type"][number] == user_defined
    assert found["token_type"][document["model"]["vocab"]["e"]] == normal
    assert (found["add_space_prefix"], found["add_bos_token"]) == (False, True)
