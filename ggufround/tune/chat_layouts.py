"""How a conversation is written out: a row for each set of markers, and plain "role: content" where none is known.

A model's own template is a program, and nothing of a model is run. What it does to an ordinary conversation is one of
a few layouts, and which one shows in the special tokens that the tokenizer has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Turn = tuple[str, str]  # role, content
Conversation = tuple[Turn, ...]


@dataclass(frozen=True)
class ChatLayout:
    """`turns` has the text around "{}" by role. A role that is not there joins the user's next turn ("system") or
    counts as the user's ("tool")."""

    name: str
    markers: tuple[str, ...]  # the special tokens that give it away; all of them must be in the tokenizer
    turns: Mapping[str, str]


def _alike(turn: str, **names: str) -> dict[str, str]:
    """One form for all roles, ROLE standing for the role, or for what `names` calls it."""
    return {role: turn.replace("ROLE", names.get(role, role)) for role in ("system", "user", "assistant", "tool")}


LAYOUTS = (  # the first that fits is taken: one whose markers are among another's comes after it
    ChatLayout(
        "Phi-4",
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        _alike("<|im_start|>ROLE<|im_sep|>{}<|im_end|>"),
    ),
    ChatLayout("ChatML", ("<|im_start|>", "<|im_end|>"), _alike("<|im_start|>ROLE\n{}<|im_end|>\n")),
    ChatLayout(
        "Llama 3",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _alike("<|start_header_id|>ROLE<|end_header_id|>\n\n{}<|eot_id|>", tool="ipython"),
    ),
    ChatLayout(
        "Llama 4",
        ("<|header_start|>", "<|header_end|>", "<|eot|>"),
        _alike("<|header_start|>ROLE<|header_end|>\n\n{}<|eot|>", tool="ipython"),
    ),
    ChatLayout(
        "Gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        {
            "user": "<start_of_turn>user\n{}<end_of_turn>\n",
            "assistant": "<start_of_turn>model\n{}<end_of_turn>\n",
        },
    ),
    ChatLayout(
        "Granite",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        _alike("<|start_of_role|>ROLE<|end_of_role|>{}<|end_of_text|>\n"),
    ),
    ChatLayout(
        "Harmony",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        {
            "system": "<|start|>system<|message|>{}<|end|>",
            "user": "<|start|>user<|message|>{}<|end|>",
            "assistant": "<|start|>assistant<|channel|>final<|message|>{}<|end|>",
        },
    ),
    ChatLayout(
        "Command R",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        {
            "system": "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
            "user": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
            "assistant": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        },
    ),
    ChatLayout(
        "DeepSeek",
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        {
            "user": "<\uff5cUser\uff5c>{}",
            "assistant": "<\uff5cAssistant\uff5c>{}<\uff5cend\u2581of\u2581sentence\uff5c>",
        },
    ),
    ChatLayout(
        "GLM",
        ("[gMASK]", "<|user|>", "<|assistant|>"),
        _alike("<|ROLE|>\n{}", tool="observation"),
    ),
    ChatLayout("Phi-3", ("<|user|>", "<|assistant|>", "<|end|>"), _alike("<|ROLE|>\n{}<|end|>\n", tool="user")),
    ChatLayout("Mistral", ("[INST]", "[/INST]", "</s>"), {"user": "[INST] {}[/INST]", "assistant": " {}</s>"}),
)  # fmt: skip
PLAIN = ChatLayout("plain", (), _alike("ROLE: {}\n"))
_ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "developer": "system",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
}


def find_layout(has: Callable[[str], bool], template: str) -> ChatLayout | None:
    """The layout whose markers the tokenizer `has` as tokens, one that the model's chat template mentions before
    others; None where none is known. The template is searched, never run."""
    known = [layout for layout in LAYOUTS if all(map(has, layout.markers))]
    named = [layout for layout in known if all(marker in template for marker in layout.markers)]
    return next(iter(named or known), None)


def render(turns: Sequence[Turn], layout: ChatLayout) -> str:
    """The conversation as one text. Any role is taken; one that nobody knows counts as the user."""
    out, waiting = [], ""
    for role, content in turns:
        role = _ALIASES.get(role.lower(), role.lower())
        if role == "system" and role not in layout.turns:
            waiting += content + "\n\n"
            continue
        if role not in layout.turns:
            role = "user"
        if role == "user":
            content, waiting = waiting + content, ""
        before, after = layout.turns[role].split("{}")
        out.append(before + content + after)
    if waiting:
        before, after = layout.turns["user"].split("{}")
        out.append(before + waiting.rstrip("\n") + after)
    return "".join(out)
