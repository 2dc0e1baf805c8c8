"""Writes tests/tokenizer/goldens.json: what llama.cpp's converter makes of the tiny tokenizers.

    python tools/make_tokenizer_goldens.py LLAMA_CPP_CHECKOUT [CASE...]

Runs in an environment with this package, torch, transformers 4.57.6 (llama.cpp's pin), mistral-common and protobuf. The
converter's set_vocab is called as it is; only its refusal of an unknown fingerprint is replaced by writing the
fingerprint itself. Long values are kept as a digest.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "tests" / "tokenizer" / "goldens.json"


def digest(value: Any) -> Any:
    """The value itself while it is short, else a hash of its JSON."""
    if isinstance(value, (list, tuple)):
        value = [v.decode() if isinstance(v, bytes) else v for v in value]
    if isinstance(value, bytes):
        value = list(value)
    text = json.dumps(value)
    return value if len(text) < 200 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def golden(case: Any, folder: Path) -> dict[str, Any]:
    import conversion
    import gguf
    from conversion.base import ModelBase

    case.checkpoint(folder)
    conversion.load_all_models()
    classes: list[Any] = [ModelBase]
    for cls in classes:
        classes += cls.__subclasses__()
    cls = next(c for c in classes if c.__name__ == case.converter)

    def pre(self: Any, tokenizer: Any) -> str:
        text = (ROOT / "ggufround" / "tokenizer" / "pretokenizers_table.py").read_text()
        names: dict[str, Any] = {}
        exec(text, names)
        ids = tokenizer.encode(names["CHECK_TEXT"])
        return hashlib.sha256(str(ids).encode()).hexdigest()

    converter = object.__new__(type("Converter", (cls,), {"get_vocab_base_pre": pre, "model_arch": cls.model_arch}))
    converter.dir_model = folder
    converter.hparams = case.config
    converter.is_mistral_format = False
    converter.origin_hf_arch = None
    converter.gguf_writer = gguf.GGUFWriter(path=None, arch="llama")
    converter.gguf_writer.kv_data[0].clear()
    converter.set_vocab()
    if names := converter.gguf_writer.kv_data[0].get("tokenizer.chat_templates"):
        names.value.sort()  # the converter has them in the order of a set
    # what set_vocab writes for the architecture (BERT's number of token types) is left to tests/arch
    fields = {k: v for k, v in converter.gguf_writer.kv_data[0].items() if k.startswith("tokenizer.")}
    return {key: [int(field.type), digest(field.value)] for key, field in fields.items()}


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    checkout, names = Path(sys.argv[1]), sys.argv[2:]
    sys.path[:0] = [str(checkout / "gguf-py"), str(checkout), str(ROOT / "tests"), str(ROOT)]
    import tiny_tokenizers
    import tiny_vocabularies

    cases = {k: c for k, c in (tiny_tokenizers.CASES | tiny_vocabularies.CASES).items() if c.converter}
    goldens: dict[str, Any] = json.loads(TARGET.read_text()) if names else {}
    for name in names or cases:
        case = cases[name]
        with tempfile.TemporaryDirectory() as folder:
            try:
                goldens[name] = golden(case, Path(folder))
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    TARGET.write_text(json.dumps(goldens, indent=1) + "\n")
    print(f"wrote {len(goldens)} of {len(cases)} cases to {TARGET}")


if __name__ == "__main__":
    main()
