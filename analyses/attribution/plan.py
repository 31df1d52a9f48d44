"""What `analyse attribution` runs: its parameters, the prompts, and which of their tokens are replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.encoder import BOS, Encoder
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.prompt_set import is_call
from sparselens.workbench.prompt_set import parse as parse_prompts
from sparselens.workbench.session import Session

METHODS = ("ablation", "ig")
SPECIALS = ("eos", "bos", "pad", "unk")
FEWEST = 4
"""Fewer compared tokens than this give no rank correlation worth the name."""
_MARK = "SPARSELENSCONTENT"


@dataclass(frozen=True)
class Attribution:
    """`prompts`: a built-in set as a call, or a file; those whose answer the dense model predicts are used.

    `replacement`: what stands in a replaced token's place, for both methods: a text that is one token (with or without
    its leading space), or `eos`, `bos`, `pad`, `unk`. `steps` of the path integral, `batch` sequences at a time,
    `shuffles` of the control. `prompts_hash` is filled in where `prompts` is a file.
    """

    policy: str = "dense"
    kernel: str = "blocked"
    prompts: str = "needles(length=96,n=8,chat=False)"
    methods: tuple[str, ...] = METHODS
    replacement: str = " the"
    steps: int = 24
    batch: int = 8
    shuffles: int = 100
    bos: str = "default"
    seed: int = 0
    prompts_hash: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", str(parse_policy(self.policy)))
        object.__setattr__(self, "methods", tuple(name for name in METHODS if name in self.methods))
        if not self.methods:
            raise ValueError(f"attribution: methods are {', '.join(METHODS)}; none of them was given")
        if self.bos not in BOS:
            raise ValueError(f"bos is one of {', '.join(BOS)}, not {self.bos!r}")
        if self.steps < 2 or self.batch < 1 or self.shuffles < 1:
            raise ValueError("attribution: steps is at least 2, batch and shuffles at least 1")
        path = Path(self.prompts).expanduser()
        if is_call(self.prompts) and not path.exists():
            object.__setattr__(self, "prompts", str(parse_prompts(self.prompts)))
            object.__setattr__(self, "prompts_hash", "")
        elif path.is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            object.__setattr__(self, "prompts_hash", found)
        else:
            raise ValueError(
                f"attribution: prompts is a built-in set or a file that exists, not {self.prompts!r}"
            )


@dataclass(frozen=True)
class Case:
    """One question to the model: the tokens up to the row that predicts the answer, and what may be replaced.

    `ids` end with the target row's own token; `answer` is the first token of the answer. `replaced [tokens]`: False
    on the first token, special tokens, the chat template's words and the target row's own token, which stay as they
    are. (Along a path that moves the first token the sink comes and goes: on the default model and 17 tokens 128
    steps then miss 2 to 15 % of the integral, and 0.2 % with the first token kept.)
    """

    prompt: Prompt
    ids: tuple[int, ...]
    answer: int
    replaced: tuple[bool, ...]

    @property
    def cluster(self) -> str:
        """What the bootstrap draws as a whole: the prompt's group, else the prompt."""
        return self.prompt.group or self.prompt.id

    def with_replacement(self, token: int) -> tuple[int, ...]:
        """Return the ids with every replaced token taken for `token`: the baseline."""
        return tuple(
            token if replaced else own for own, replaced in zip(self.ids, self.replaced, strict=True)
        )


def cases(session: Session, chosen: Attribution) -> list[Case]:
    """Return a case a prompt; `ValueError` names a prompt without answer, or with too few tokens to compare."""
    bos = BOS[chosen.bos]
    encoder = Encoder(session.tokenizer, bos=bos, max_tokens=session.max_tokens)
    return [_case(prompt, encoder) for prompt in session.prompts(chosen.prompts, bos=bos)]


def _case(prompt: Prompt, encoder: Encoder) -> Case:
    if "answer" not in prompt.spans:
        raise ValueError(
            f"attribution: the prompt {prompt.name} has no answer; give the field `answer`, or another prompt set"
        )
    start = prompt.spans["answer"][0]
    kept = [
        special or own for special, own in zip(prompt.special, template_tokens(prompt, encoder), strict=True)
    ]
    replaced = tuple(0 < at < start - 1 and not kept[at] for at in range(start))
    if sum(replaced) < FEWEST:
        raise ValueError(
            f"attribution: the prompt {prompt.name} has {sum(replaced)} tokens to compare between its first and its"
            f" last; {FEWEST} are needed"
        )
    return Case(prompt, prompt.token_ids[:start], prompt.answer_ids[0], replaced)


def template_tokens(prompt: Prompt, encoder: Encoder) -> list[bool]:
    """Return which tokens lie whole within the words that the chat template puts around one user's message."""
    regions: list[tuple[int, int]] = []
    if prompt.template is not None and prompt.template == encoder.template:
        before, _, after = encoder.render([{"role": "user", "content": _MARK}]).partition(_MARK)
        text = prompt.text
        if text.startswith(before):
            regions.append((0, len(before)))
        if after and (at := text.rfind(after)) >= 0:
            regions.append((at, at + len(after)))
    found, at = [], 0
    for piece in prompt.pieces:
        end = at + len(piece)
        found.append(any(start <= at and end <= stop for start, stop in regions))
        at = end
    return found


def replacement_token(tokenizer: Any, replacement: str) -> int:
    """Return the id of the token that `replacement` names; `ValueError` where there is no such single token."""
    if replacement in SPECIALS:
        token = getattr(tokenizer, f"{replacement}_token_id")
        if token is None:
            there = [name for name in SPECIALS if getattr(tokenizer, f"{name}_token_id") is not None]
            raise ValueError(
                f"attribution: this tokenizer has no {replacement} token; it has {', '.join(there) or 'none'}"
            )
        return int(token)
    for text in (replacement, replacement.lstrip(" ")):
        ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            return int(ids[0])
    raise ValueError(
        f"attribution: replacement is one token's text or {', '.join(SPECIALS)}; {replacement!r} has {len(ids)} tokens"
    )
