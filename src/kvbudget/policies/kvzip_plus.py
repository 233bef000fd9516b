"""KVzip+ (Jégou and Jeblick, 2026, arXiv 2601.07891): KVzip by what attention adds to the model.

KVzip's weight of a token is multiplied by the norm of the token's value once the output projection
has had it, and divided by the norm of what the attention block is given for the querying token, as
the authors' code does (`kvzap/data.py` of github.com/NVIDIA/kvpress): s_i = max_t a_ti ‖W_o v_i‖ /
‖h_t‖, over the query heads of a KV head, too. Biases and norms after the projection are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvbudget.cache.budget import SINKS
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.inputs import attention_modules, given_to
from kvbudget.cache.signals import Reading
from kvbudget.policies.kvzip import KVzip, Repetition


class Block:
    """The attention block of one layer, watched while it is run.

    Args:
        module: has its output projection as `o_proj`, `(hidden, query_heads · head_dim)`.
        kv_heads, query_heads: of the layer.

    Attributes:
        given: norm of what the block was last given, `(batch, new)` float32.
    """

    given: Tensor

    def __init__(self, module: nn.Module, kv_heads: int, query_heads: int) -> None:
        shape = (kv_heads, query_heads // kv_heads, -1)
        projection = module.o_proj.weight.detach().float().unflatten(1, shape).permute(1, 2, 0, 3)
        # W = QR, and Q keeps norms: ‖W v‖ = ‖R v‖, which is as small as a head is.
        self._projection = torch.linalg.qr(projection, mode="r").R
        self._hook = module.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.given = given_to(args, kwargs).float().norm(dim=-1)

    def output_norms(self, values: Tensor, heads: list[int]) -> Tensor:
        """Norms of values `(batch, len(heads), tokens, head_dim)` after the output projection,
        `(batch, len(heads), group, tokens)`: each query head has its own part of it."""
        return (values.unsqueeze(2) @ self._projection[heads].mT).norm(dim=-1)

    def leave(self) -> None:
        """Watch no longer."""
        self._hook.remove()


class Contribution(Repetition):
    """KVzip's signal, each weight times the norms.

    Args:
        policy: knows the block while the context is repeated.
        layer: index among the full-attention layers.
    """

    def __init__(self, policy: "KVzipPlus", layer: int) -> None:
        self._policy, self._layer = policy, layer

    def observe(self, reading: Reading, numbers: Tensor) -> Tensor:
        block, part = self._policy.blocks[self._layer], reading.repeated
        norms = block.output_norms(reading.values[:, :, part], list(reading.tokens.heads))
        most = reading.most_received(SINKS, worth=1 / block.given)
        numbers[:, :, part] = (most * norms).amax(dim=2)
        return numbers


class KVzipPlus(KVzip):
    """KVzip by norms.

    Attributes:
        blocks: of each full-attention layer, while the context is repeated.
    """

    def __init__(self, floor: float) -> None:
        super().__init__(floor)
        self.blocks: list[Block] = []

    def signals(self, layer: int) -> list[Contribution]:
        return [Contribution(self, layer)]

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        geometry = geometry_of(model)
        heads = geometry.kv_heads, geometry.query_heads
        modules = attention_modules(model, geometry.layers)
        self.blocks = [Block(module, *heads) for module in modules]
        try:
            yield
        finally:
            for block in self.blocks:
                block.leave()
            self.blocks = []
