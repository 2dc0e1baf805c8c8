"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import bailing, deepseek, ernie, first, glm, hunyuan, minicpm, qwen_moe

MODULES = (first, qwen_moe, deepseek, glm, ernie, hunyuan, minicpm, bailing)
