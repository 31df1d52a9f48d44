"""Greedy generation from a prompt under a policy, token by token with a KV cache."""

from __future__ import annotations

import torch

from sparselens.kernels.kernel import Kernel
from sparselens.kernels.policy import Policy
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session


def continue_greedily(
    session: Session, prompt: Prompt, policy: Policy, kernel: Kernel, *, max_new_tokens: int
) -> list[int]:
    """Return up to `max_new_tokens` token ids that follow the prompt without its teacher-forced answer.

    The prompt is prefilled by itself: a policy that looks ahead must not see the answer. Stops after an end-of-text
    token.
    """
    question = len(prompt.token_ids) - len(prompt.answer_ids)
    return session.generate(
        torch.tensor([prompt.token_ids[:question]]),
        max_new_tokens=max_new_tokens,
        policy=policy,
        kernel=kernel,
        stop=stop_tokens(session),
    )


def stop_tokens(session: Session) -> tuple[int, ...]:
    """Return the token ids that end a generation."""
    declared = session.model.generation_config.eos_token_id
    if declared is None:
        return ()
    return (declared,) if isinstance(declared, int) else tuple(declared)
