"""TOVA: what goes, by a stock model's eager attention, and that all heads of a layer agree."""

import pytest
import torch
from oracle import Oracle
from tiny import VOCABULARY, tiny_model
from torch.testing import assert_close

from kvbudget import attach, make_cache

BUDGET = 16


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("llama"))


def kept(cache) -> list[list[int]]:
    """Positions that all heads of each layer keep alike."""
    found = [[own.tolist() for own in layer.kept_positions()] for layer in cache.budgeted]
    assert all(own == layer[0] for layer in found for own in layer)
    return [layer[0] for layer in found]


def test_a_prompt_keeps_what_its_last_token_attends_to(model):
    ids = tokens(60)
    cache = make_cache(model, "tova", BUDGET)
    model(ids, past_key_values=cache)
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    for positions, attention in zip(
        kept(cache), stock(ids, output_attentions=True).attentions, strict=True
    ):
        last = attention[0, :, -1, :-1].mean(dim=0)
        assert positions == [*sorted(last.topk(BUDGET - 1).indices.tolist()), 59]


class Lists:
    """TOVA of one decode step, layer by layer, over a stock model whose cache is cut by hand."""

    def __init__(self, ids: torch.Tensor, positions: list[list[int]]) -> None:
        self.model, self.seen = tiny_model("llama"), ids.shape[1]
        self.model.set_attn_implementation("eager")
        self.cache = self.model(ids).past_key_values
        self.positions = positions
        self.cut([torch.tensor(own) for own in positions])

    def cut(self, kept: list[torch.Tensor]) -> None:
        for layer, own in zip(self.cache.layers, kept, strict=True):
            layer.keys, layer.values = layer.keys[:, :, own], layer.values[:, :, own]

    def step(self, token: torch.Tensor) -> torch.Tensor:
        out = self.model(
            token,
            position_ids=torch.tensor([[self.seen]]),
            past_key_values=self.cache,
            output_attentions=True,
        )
        left = []
        for own, attention in zip(self.positions, out.attentions, strict=True):
            own.append(self.seen)
            worst = int(attention[0, :, 0, :-1].mean(dim=0).argmin())
            left.append(torch.tensor([i for i in range(len(own)) if i != worst]))
            del own[worst]
        self.cut(left)
        self.seen += 1
        return out.logits


def test_each_step_evicts_what_the_newest_token_attends_to_least(model):
    ids = tokens(40)
    cache = make_cache(model, "tova", BUDGET)
    model(ids, past_key_values=cache)
    lists = Lists(ids, kept(cache))
    for seed in range(20):
        expected = lists.step(tokens(1, seed))
        logits = model(tokens(1, seed), past_key_values=cache).logits
        assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert kept(cache) == lists.positions


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"prefill_chunk": 13}])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_it_equals_the_masked_oracle(kind, options):
    model = attach(tiny_model(kind))
    ours, oracle = make_cache(model, "tova", BUDGET, **options), Oracle(model)
    ids = tokens(70)
    for piece in ids.split([13, 7, *[1] * 20, 9, *[1] * 21], dim=1):
        expected = oracle.forward(piece, ours)
        assert_close(model(piece, past_key_values=ours).logits, expected, atol=1e-5, rtol=1e-5)
        kept(ours)


def test_a_left_padded_batch_keeps_what_batches_of_one_keep(model):
    short, long = tokens(33, seed=1), tokens(40, seed=2)
    ids = torch.cat((torch.cat((torch.zeros(1, 7, dtype=torch.long), short), dim=1), long))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    cache = make_cache(model, "tova", BUDGET)
    together = model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
    for row, alone in enumerate((short, long)):
        single = make_cache(model, "tova", BUDGET)
        expected = model.generate(alone, past_key_values=single, **options)
        assert torch.equal(together[row, -10:], expected[0, -10:])
