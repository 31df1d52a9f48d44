"""Which tokens of a prompt a capture decodes one at a time: a number of last tokens, or those of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from sparselens.kernels.policy import Policy
from sparselens.workbench.prompt import Prompt

ANSWER = "answer"


def decode_option(text: str | int | None) -> int | str | None:
    """Return `answer`, the number that `text` says, or None; raises `ValueError` on anything else."""
    if text is None or text == ANSWER:
        return text
    if not str(text).isdigit() or int(text) < 1:
        raise ValueError(f"--decode takes a number of last tokens, 1 or more, or `{ANSWER}`; not {text!r}")
    return int(text)


def decoded_tokens(prompt: Prompt, decode: int | str | None) -> int:
    """Return how many of a prompt's last tokens come one at a time; 0 without `decode`.

    Raises `ValueError` where the prompt has no answer, or nothing would be left to prefill.
    """
    if decode is None:
        return 0
    count = len(prompt.answer_ids) if isinstance(decode, str) else decode
    if not count:
        raise ValueError(f"prompt {prompt.name!r} has no answer to decode: give a number of last tokens")
    if count >= len(prompt):
        raise ValueError(
            f"prompt {prompt.name!r} has {len(prompt)} tokens: {count} of them cannot be decoded after a prefill"
        )
    return count


def require_decode(policies: Sequence[Policy], prompts: Sequence[Prompt], decode: int | str | None) -> None:
    """Raise `ValueError` where a prompt cannot be decoded so, or a policy that only decodes is to prefill."""
    for prompt in prompts:
        decoded_tokens(prompt, decode)
    asleep = [str(policy) for policy in policies if decode is None and policy.decodes_only]
    if asleep:
        raise ValueError(
            f"a decode policy asked to prefill: {asleep[0]} keeps everything until a token is decoded; give --decode"
            f" N (the last N tokens of each prompt come one at a time) or --decode {ANSWER}, or say phase=both"
        )
