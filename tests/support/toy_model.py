"""A transformer small enough to train in a test, whose attention goes through transformers' interfaces as any model's.

Learned positions are added to what queries and keys are made of, never to the residual stream: a head finds a place by
its position, but no value carries one. `ToyForCausalLM` runs under policies; `ReluToy` computes its attention itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from toy_tokenizer import toy_tokenizer
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparselens.workbench.models import wrap


class ToyConfig(PreTrainedConfig):
    """Sizes of a toy; `intermediate_size` 0 is attention only."""

    model_type = "toy"

    def __init__(
        self,
        vocab_size: int = 64,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 1,
        head_dim: int = 32,
        intermediate_size: int = 0,
        max_position_embeddings: int = 48,
        **rest: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = self.num_key_value_heads = num_attention_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        super().__init__(tie_word_embeddings=False, bos_token_id=0, **rest)


class ToyAttention(nn.Module):
    """Softmax attention as the config's attention implementation computes it."""

    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        self.num_key_value_groups, self.is_causal = 1, True
        width = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Any, cache: Cache | None) -> Tensor:
        """What the heads write `[batch, tokens, hidden]`."""
        placed = hidden + positions
        query, key, value = (
            projection(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, source in ((self.q_proj, placed), (self.k_proj, placed), (self.v_proj, hidden))
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        written: Tensor = self.o_proj(self.attend(query, key, value, mask).flatten(2))
        return written

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        """The heads' outputs `[batch, tokens, heads, head_dim]`."""
        attention = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output: Tensor = attention(self, query, key, value, mask, dropout=0.0, scaling=self.scaling)[0]
        return output


class ReluAttention(ToyAttention):
    """Attention without normalisation: weights are relu(score), so a row may attend to nothing at all.

    `window` and `sink` cut its map as `a_shape` would; `weights` is the last map `[batch, heads, tokens, tokens]`.
    """

    window: int | None = None
    sink: int = 0
    weights: Tensor | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
        """The heads' outputs `[batch, tokens, heads, head_dim]`."""
        del mask
        index = torch.arange(query.shape[2])
        distance = index[:, None] - index
        keep = distance >= 0
        if self.window is not None:
            keep &= (distance < self.window) | (index < self.sink)
        weights = torch.relu(query @ key.transpose(2, 3) * self.scaling) * keep
        self.weights = weights.detach()
        return (weights @ value).transpose(1, 2)


class ToyLayer(nn.Module):
    """Norm and attention, and norm and MLP where there is one."""

    attention: type[ToyAttention] = ToyAttention

    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.self_attn = self.attention(config, layer_idx)
        self.mlp = nn.Sequential()
        if config.intermediate_size:
            self.mlp = nn.Sequential(
                nn.LayerNorm(config.hidden_size),
                nn.Linear(config.hidden_size, config.intermediate_size),
                nn.GELU(),
                nn.Linear(config.intermediate_size, config.hidden_size),
            )

    def forward(self, hidden_states: Tensor, positions: Tensor, mask: Any, cache: Cache | None) -> Tensor:
        """The residual stream after the layer."""
        after = hidden_states + self.self_attn(self.attention_norm(hidden_states), positions, mask, cache)
        return after + self.mlp(after) if len(self.mlp) else after


class ReluLayer(ToyLayer):
    """A layer of `ReluAttention`."""

    attention = ReluAttention


class ToyPreTrained(PreTrainedModel):
    """What decoder and head have in common; weights stay as torch draws them."""

    config_class = ToyConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        pass


class ToyDecoder(ToyPreTrained):
    """Everything before the output head."""

    def __init__(self, config: ToyConfig, layer: type[ToyLayer] = ToyLayer) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([layer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """The final hidden states, and the cache where one is asked for."""
        hidden = self.embed_tokens(input_ids)
        cache = DynamicCache(config=self.config) if use_cache and past_key_values is None else past_key_values
        before = 0 if cache is None else cache.get_seq_length()
        places = torch.arange(before, before + input_ids.shape[1])[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=places,
        )
        for layer in self.layers:
            hidden = layer(hidden, self.positions(places), mask, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=cache)


class ToyForCausalLM(ToyPreTrained):
    """A toy with its output head."""

    layer: type[ToyLayer] = ToyLayer

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = ToyDecoder(config, self.layer)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self) -> ToyDecoder:
        """The decoder."""
        return self.model

    def get_output_embeddings(self) -> nn.Linear:
        """The output head."""
        return self.lm_head

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **options: Any) -> CausalLMOutputWithPast:
        """The logits `[batch, tokens, vocabulary]`, of the last `logits_to_keep` rows where that is given."""
        found = self.model(input_ids, **options)
        logits = self.lm_head(found.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values)


class ReluToy(ToyForCausalLM):
    """A toy that computes its attention itself: no policy can steer it."""

    layer = ReluLayer
    _supports_attention_backend = False


def toy_session(model: ToyForCausalLM, *, bos: bool = True) -> Any:
    """A session on a toy and a tokenizer of its vocabulary."""
    return wrap(model.eval(), toy_tokenizer(model.config.vocab_size, bos=bos))
