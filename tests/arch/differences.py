"""Where our files differ from those of llama.cpp's converter on purpose, and why."""

from __future__ import annotations

from ggufround.gguf_file import Field, Kind

# Where we differ from the converter on purpose: (case, key): our value, why.
DIFFERENCES = {
    ("llama-yarn", "llama.rope.scaling.attn_factor"): (
        Field(Kind.F32, 0.96607375),
        "a stated attention_factor: the converter's key for it has no effect in llama.cpp",
    ),
    ("bert-classifier", "general.size_label"): (Field(Kind.STRING, "302K"), "the pooler counts, see MORE"),
    ("camembert", "general.size_label"): (Field(Kind.STRING, "285K"), "fewer positions"),
    ("camembert", "bert.context_length"): (Field(Kind.U32, 94), "positions begin behind the padding token's"),
    ("t5-encoder", "t5encoder.attention.causal"): (
        Field(Kind.BOOL, False),
        "llama.cpp's server takes the encoder for a decoder without it",
    ),
    ("t5-encoder", "t5encoder.pooling_type"): (Field(Kind.U32, 1), "llama.cpp reads it for every architecture"),
    ("modern-bert-masked", "general.size_label"): (Field(Kind.STRING, "739K"), "some tensors do not count, see LESS"),
    ("gptneox-sequential", "gptneox.rope.freq_base"): (
        Field(Kind.F32, 1000.0),
        "the converter leaves it out, and llama.cpp takes 10000",
    ),
    ("stablelm-parallel", "stablelm.rope.freq_base"): (
        Field(Kind.F32, 1000.0),
        "the converter leaves it out, and llama.cpp takes 10000",
    ),
    ("jamba-dense", "jamba.expert_used_count"): (
        Field(Kind.U32, 1),
        "one expert means none, yet two are used where config.json is silent; llama.cpp aborts on that",
    ),
    ("falcon-11b", "falcon.context_length"): (
        Field(Kind.U32, 8192),
        "the converter states the 2048 of the first models for all",
    ),
    ("falcon-11b", "falcon.rope.freq_base"): (
        Field(Kind.F32, 5000042.0),
        "the converter leaves it out, and llama.cpp takes 10000",
    ),
    ("phimoe", "phimoe.rope.scaling.attn_factor"): (
        Field(Kind.F32, 1.25),
        "long_mscale, which the converter does not read",
    ),
    ("exaone", "exaone.attention.layer_norm_rms_epsilon"): (
        Field(Kind.F32, 1e-5),
        "the converter writes it as layer_norm_epsilon only, and llama.cpp refuses its file",
    ),
    ("glm", "chatglm.context_length"): (Field(Kind.U32, 512), "the converter takes the hidden size"),
    ("glm", "chatglm.attention.layer_norm_rms_epsilon"): (Field(Kind.F32, 1.5625e-07), "the converter takes 1e-5"),
    ("glm", "chatglm.rope.freq_base"): (Field(Kind.F32, 50000.0), "the converter takes 10000"),
    ("minicpm3-longrope", "minicpm3.rope.freq_base"): (
        Field(Kind.F32, 50000.0),
        "the converter leaves it out, and llama.cpp then rotates with 10000",
    ),
    ("glm4moe-lite", "deepseek2.expert_gating_func"): (
        Field(Kind.U32, 2),
        "without the key llama.cpp takes a sigmoid for the one published vocabulary only, else a softmax",
    ),
    ("deepseek2-lite", "deepseek2.attention.q_lora_rank"): (
        Field(Kind.U32, 0),
        "without the key llama.cpp loads models of 26, 27 or 48 layers only",
    ),
}
# Tensors whose values or types differ from the converter's on purpose, and why.
OTHER_VALUES = {
    ("camembert", "position_embd.weight"): "without the rows that RoBERTa's kin does not use",
    ("t5", "dec.output_norm.weight"): "a tied output is divided by the root of the embedding's size",
    ("dbrx", "blk.*.ffn_gate_inp.weight"): "a router is small and kept in F32, as the converter does for all others",
    ("baichuan2", "output.weight"): "the model divides the rows by their lengths, and llama.cpp does not",
}
# Tensors that the converter leaves out, though llama.cpp has a place for them.
MORE = {
    "bert-classifier": {"cls.weight", "cls.bias"},  # BERT's pooler, without which a classifier sees other vectors
}
# Names of tensors that the converter gives another name: (case, our name): its name, why.
RENAMED = {
    ("llama4-vision", f"v.blk.{i}.ln2.{end}"): (
        f"v.blk.{i}.attn_post_norm.{end}",
        "the converter's table has the source name twice, and Gemma 4's entry wins: llama.cpp would apply the norm to "
        "what attention adds, and none before the feed-forward part",
    )
    for i in range(3)
    for end in ("weight", "bias")
}
# Tensors that our projectors have and the converter's lack, and why.
BESIDE = {
    ("mistral3-vision", "v.token_embd.img_break"): "see pixtral",
    ("pixtral", "v.token_embd.img_break"): "the converter looks for the embedding behind `language_model.`, whose "
    "tensors it has left out by then; with it llama.cpp computes what transformers does",
}
# Tensors that only the converter writes.
LESS = {
    "modern-bert-masked": {"cls.weight", "cls.norm.weight"},  # a part of the prediction of words, no classifier
}
# Keys that stand elsewhere in our file than in the converter's.
OTHER_PLACE = {
    "llama.rope.scaling.attn_factor": "see above",
    "nemotron.rope.scaling.type": "the converter writes linear scaling twice; the first place counts",
    "nemotron.rope.scaling.factor": "see above",
    "qwen35moe.rope.dimension_sections": "the converter writes one that the config leaves out last",
    "phimoe.rope.scaling.attn_factor": "as for phi3",
    "exaone.attention.layer_norm_rms_epsilon": "see above",
    **{
        f"xielu.{name}": "the converter writes it while it makes tensors, before general.*"
        for name in ("alpha_n", "alpha_p", "beta", "eps")
    },
    "deepseek2.attention.q_lora_rank": "see above",
    "minicpm3.rope.freq_base": "see above",
    "deepseek2.expert_gating_func": "see above",
    "deepseek2.attention.key_length": "the converter writes it earlier where the config class has a head_dim",
    "deepseek2.attention.value_length": "the same",
    "deepseek32.attention.key_length": "the same",
    "deepseek32.attention.value_length": "the same",
    "glm-dsa.attention.key_length": "the same",
    "glm-dsa.attention.value_length": "the same",
    "phi3.rope.scaling.attn_factor": "the converter writes it while it makes tensors, before general.*",
}
