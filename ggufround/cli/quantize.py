"""ggufround quantize: auto-round's command line over the same pipeline. Flags may be written with _ or -."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ggufround.api import AutoRound
from ggufround.cli import show
from ggufround.cli.values import size
from ggufround.errors import UsageError
from ggufround.recipes import recipe

IDLE = {  # auto-round's flags that change nothing here, and why
    "low_gpu_mem_usage": "one block at a time is on the device anyway",
    "low_cpu_mem_usage": "weights are streamed anyway",
    "enable_torch_compile": "there is nothing to compile",
    "disable_torch_compile": "there is nothing to compile",
    "disable_trust_remote_code": "no code of a model is ever run",
    "enable_alg_ext": "the search is always on, but for --disable_opt_rtn",
    "enable_opt_rtn": "the search is always on, but for --disable_opt_rtn",
    "enable_deterministic_algorithms": "runs repeat to the byte anyway",
    "enable_minmax_tuning": "scales are tuned anyway",
}
MIXED = "--layer_config, which mixes schemes by hand"
EVALUATED = ("tasks", "limit", "num_fewshot", "eval_bs", "eval_backend", "eval_task_by_task")
ELSEWHERE = {  # those that another flag or command serves
    "schemes": MIXED, "target_bits": MIXED, "avg_bits": MIXED, **dict.fromkeys(EVALUATED, "`ggufround eval`"),
}  # fmt: skip
UNSUPPORTED = """
    platform num_hidden_layers algorithm shared_layers static_kv_dtype static_kv_granularity static_attention_dtype
    static_attention_granularity add_bos_token ignore_scale_zp_bits disable_amp disable_model_free mllm model_dtype
    quant_nontext_module extra_data_dir template prompt_file prompt metrics data_type act_bits act_group_size act_asym
    act_data_type disable_act_dynamic super_bits super_group_size scale_dtype to_quant_block_names enable_neuqi
    minmax_lr momentum nblocks no_enable_minmax_tuning enable_norm_bias_tuning gradient_accumulate_steps rotation_type
    not_use_best_mse disable_quanted_input enable_adam enable_lfq
"""
STATED = {"allow_extra_args": True, "ignore_unknown_options": True}  # so that they can be refused by name


def _names(*names: str) -> list[str]:
    """Each with _ and with -."""
    return [f"--{spelled}" for name in names for spelled in dict.fromkeys((name, name.replace("_", "-")))]


def _flag(*names: str, help: str, **more: Any) -> Any:  # noqa: A002
    return typer.Option(*_names(*names), help=help, **more)


def quantize_command(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Directory or hub id.")] = None,
    model_name: Annotated[str | None, _flag("model", "model_name", "model_name_or_path", help="The same.")] = None,
    scheme: Annotated[str, _flag("scheme", help="W4A16, W2A16G64, MXFP4, GGUF:Q4_K_M, ...")] = "W4A16",
    bits: Annotated[int | None, _flag("bits", help="Bits of a weight.")] = None,
    group_size: Annotated[int | None, _flag("group_size", help="Weights that share a scale; -1: a row.")] = None,
    asym: Annotated[bool, _flag("asym", help="With zero points.")] = False,
    format_: Annotated[str, _flag("format", "formats", help="One or several, by commas.")] = "auto_round",
    output_dir: Annotated[Path, _flag("output_dir", help="Gets a folder for each format.")] = Path("tmp_autoround"),
    recipe_: Annotated[str, _flag("recipe", help="rtn, opt-rtn, light, base or best.")] = "base",
    iters: Annotated[int | None, _flag("iters", help="Steps of a block; 0: no tuning.")] = None,
    nsamples: Annotated[int | None, _flag("nsamples", "nsample", help="Calibration sequences.")] = None,
    seqlen: Annotated[int | None, _flag("seqlen", "seq_len", help="Tokens of a sequence.")] = None,
    batch_size: Annotated[int | None, _flag("batch_size", "train_bs", "bs", help="Sequences of a step.")] = None,
    lr: Annotated[float | None, _flag("lr", help="First step, in codes; default 1/iters.")] = None,
    dataset: Annotated[str | None, _flag("dataset", help="Calibration text; default: a built-in one.")] = None,
    seed: Annotated[int, _flag("seed", help="Of the sequences' order.")] = 42,
    device_map: Annotated[str | None, _flag("device_map", "device", "devices", help="cpu, cuda, xpu, auto.")] = None,
    layer_config: Annotated[str | None, _flag("layer_config", help="Such as '{down_proj: {bits: 8}}'.")] = None,
    ignore_layers: Annotated[str, _flag("ignore_layers", "fp_layers", help="Kept in 16 bits; by commas.")] = "",
    quant_lm_head: Annotated[bool, _flag("quant_lm_head", help="Quantise the head too.")] = False,
    disable_opt_rtn: Annotated[bool, _flag("disable_opt_rtn", help="Plain rounding, with --iters 0.")] = False,
    model_free: Annotated[bool, _flag("model_free", help="Without running the model: as --iters 0.")] = False,
    max_shard_size: Annotated[str | None, _flag("max_shard_size", help="Such as 5GB.")] = None,
    max_ram: Annotated[str | None, _flag("max_ram", metavar="SIZE", help="Memory budget.")] = None,
    threads: Annotated[int | None, _flag("threads", help="Worker threads; default: one a core.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Quantise to auto_round, auto_gptq, auto_awq, llm_compressor, mlx or gguf: auto-round's flags, our pipeline."""
    words = [*([model] if model and model.startswith("-") else []), *context.args]
    model = None if model and model.startswith("-") else model  # an unknown flag may be taken for it
    idle = _refuse_unknown(words)
    if not (model or model_name):
        raise UsageError("no model was given; name a directory or hub id, or use --model")
    named = recipe(recipe_)
    steps = 0 if model_free else named.iterations if iters is None else iters
    with show.progress(quiet=json) as update:
        job = AutoRound(
            model or model_name, None, scheme, bits=bits, group_size=group_size, sym=False if asym else None,
            layer_config=_layer_config(layer_config), dataset=dataset, iters=steps, nsamples=nsamples or named.samples,
            seqlen=seqlen, batch_size=batch_size, lr=lr, device_map=device_map, seed=seed, ignore_layers=ignore_layers,
            quant_lm_head=quant_lm_head, disable_opt_rtn=disable_opt_rtn or named.name == "rtn",
            max_ram=size(max_ram, "--max-ram"), threads=threads, progress=update,
        )  # fmt: skip
        try:
            _, folders = job.quantize_and_save(output_dir, format_, size(max_shard_size, "--max_shard_size"))
        except KeyboardInterrupt:
            show.complain("interrupted; the same command goes on from here")
            raise typer.Exit(1) from None
    report = job.report
    assert report is not None
    if json:
        show.dump({
            "folders": [str(folder) for folder in folders], "bytes": report.size, "weights": report.weights,
            "seconds": round(report.seconds, 3), "cpu_seconds": round(report.cpu_seconds, 3),
            "peak_memory": report.peak_memory, "notes": list(report.notes),
        })  # fmt: skip
        return
    for line in (*(f"--{name} changes nothing: {IDLE[name]}" for name in idle), *report.notes):
        show.note(line)
    for folder in folders:
        show.say(str(folder))
    show.say(
        f"{show.human(report.size)}, {report.seconds:.1f} s, peak memory {show.human(report.peak_memory)}, checked"
    )


def _refuse_unknown(words: list[str]) -> list[str]:
    """Of flags that are none of ours: those that change nothing. Raises UsageError for the first other one."""
    idle = []
    for word in words:
        if not word.startswith("-"):
            raise UsageError(f"{word!r} belongs to no flag; is there one model too many?")
        name = word.lstrip("-").partition("=")[0]
        plain = name.replace("-", "_")
        if plain in IDLE:
            idle.append(plain)
        elif plain in ELSEWHERE:
            raise UsageError(f"--{name} is not a flag of ggufround quantize; use {ELSEWHERE[plain]}")
        elif plain in UNSUPPORTED.split():
            raise UsageError(f"--{name} of auto-round is not supported")
        else:
            raise UsageError(f"no such flag: {word}; `ggufround quantize --help` shows them")
    return idle


def _layer_config(text: str | None) -> dict[str, Any] | None:
    """auto-round's notation: JSON, or the same without quotes. Raises UsageError."""
    if text is None:
        return None
    try:
        found = yaml.safe_load(re.sub(r":(?=[^\s/])", ": ", text))
    except yaml.YAMLError as error:
        raise UsageError(f"--layer_config {text!r} cannot be read; write '{{down_proj: {{bits: 8}}}}'") from error
    if not isinstance(found, dict) or not all(isinstance(value, dict | str) for value in found.values()):
        raise UsageError(f"--layer_config {text!r} is no table of layers; write '{{down_proj: {{bits: 8}}}}'")
    return found
