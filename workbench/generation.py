"""Greedy generation from a prompt under a policy, token by token with a KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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


@torch.no_grad()
def walked(
    session: Session,
    ids: Tensor,
    *,
    forced: Sequence[int] = (),
    max_new_tokens: int = 0,
    stop: Sequence[int] = (),
) -> list[int]:
    """Return the tokens that follow `ids [1, tokens]`: those of `forced`, then greedy ones, `max_new_tokens` in all.

    Runs inside `session.under(…)`: the prompt is one prefill, each further token one decode call. With `forced` alone
    every step produces what it is told, so that runs under different policies stay aligned; the last token is
    produced, not fed. Greedy tokens end after one of `stop`.
    """
    wanted = max(len(forced), max_new_tokens)
    produced: list[int] = []
    fed, past = ids.to(session.device), None
    while len(produced) < wanted:
        state = session.model(input_ids=fed, past_key_values=past, use_cache=True, logits_to_keep=1)
        step = len(produced)
        token = forced[step] if step < len(forced) else int(state.logits[0, -1].argmax())
        produced.append(token)
        if step >= len(forced) and token in stop:
            break
        fed, past = torch.tensor([[token]], device=session.device), state.past_key_values
    return produced


def stop_tokens(session: Session) -> tuple[int, ...]:
    """Return the token ids that end a generation."""
    declared = session.model.generation_config.eos_token_id
    if declared is None:
        return ()
    return (declared,) if isinstance(declared, int) else tuple(declared)
