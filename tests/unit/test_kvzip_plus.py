"""KVzip+: scores are its definition's, from a stock model's own attention and modules."""

import pytest
import torch
from tiny import tiny_model
from torch.testing import assert_close

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.budget import SINKS
from kvbudget.policies import repetition as reconstruction
from kvbudget.policies.repetition import reconstruct, repetitions
from kvbudget.sources.random import byte_tokenizer

TOKENIZER = byte_tokenizer()
CONTEXT = TOKENIZER.encode("In the beginning God created the heaven and the earth.")
BUDGET, GROUP, HEAD_DIM = 16, 2, 16


def model_of(kind: str, seed: int = 1) -> torch.nn.Module:
    model = tiny_model(kind)
    torch.manual_seed(seed)
    model.resize_token_embeddings(len(TOKENIZER), mean_resizing=False)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):  # of all ones, what attention is given has one length
            torch.nn.init.normal_(weight, std=0.5)
    return model.requires_grad_(False)


def read(model, method: str = "kvzip-plus", **options):
    cache = make_cache(model, method, BUDGET, **options)
    model(torch.tensor([CONTEXT]), past_key_values=cache)
    return cache


def kept(cache) -> list[list[int]]:
    return [own.tolist() for layer in cache.budgeted for own in layer.kept_positions()]


def by_definition(model, layers: list[int]) -> torch.Tensor:
    """Scores `(layers, kv_heads, tokens)` from eager attention of a stock model: its weights shared
    out anew among the sinks, the chunk and the repetition, and norms by the modules themselves."""
    model.set_attn_implementation("eager")
    blocks = [model.base_model.layers[layer].self_attn for layer in layers]
    seen: dict[int, list] = {}
    hooks = []
    for index, block in enumerate(blocks):
        for name in ("qkv_proj", "q_proj", "v_proj"):
            if hasattr(block, name):
                own = getattr(block, name)
                hooks.append(own.register_forward_hook(watch(seen.setdefault(index, []))))
    scores = torch.zeros(len(layers), 3, len(CONTEXT))
    for part, repetition in repetitions(TOKENIZER, CONTEXT):
        for each in seen.values():
            each.clear()
        ids = torch.tensor([CONTEXT + repetition])
        attentions = model(ids, output_attentions=True).attentions
        columns = [*range(min(SINKS, part.start)), *range(part.start, part.stop)]
        columns += range(len(CONTEXT), ids.shape[1])
        for index, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
            weights = attentions[layer][0, :, len(CONTEXT) :]
            weights = weights / weights[..., columns].sum(dim=-1, keepdim=True)
            given = seen[index][0][0][0].norm(dim=-1)[len(CONTEXT) :]
            values = seen[index][-1][1][0][:, -3 * HEAD_DIM :].unflatten(1, (3, HEAD_DIM))
            for head in range(3 * GROUP):
                alone = torch.zeros(ids.shape[1], 3 * GROUP, HEAD_DIM)
                alone[:, head] = values[:, head // GROUP]
                outputs = block.o_proj(alone.flatten(1)).norm(dim=-1)
                own = weights[head] * outputs / given[:, None]
                most = scores[index, head // GROUP, part]
                torch.maximum(most, own.amax(dim=0)[part], out=most)
    for hook in hooks:
        hook.remove()
    return scores


def watched_until_compressed(cache) -> list[torch.Tensor]:
    """The scores of each layer just before it is compressed."""
    found, compress = [], cache.compress

    def watched() -> None:
        for layer in cache.budgeted:
            (held,) = layer.store.slots.tokens()
            found.append(held.signals["repetition"][0].clone())
        compress()

    cache.compress = watched
    return found


def watch(calls: list):
    return lambda module, args, output: calls.append((args[0], output))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("chunk", [2048, 20])
def test_scores_and_what_is_kept_are_those_of_the_definition(monkeypatch, kind, chunk):
    monkeypatch.setattr(reconstruction, "CHUNK", chunk)
    model = model_of(kind)
    layers = [1, 3] if kind.startswith("gemma") else [0, 1, 2, 3]
    wanted = by_definition(model, layers)
    attach(model)
    cache = read(model, bounded="context")
    found = watched_until_compressed(cache)
    reconstruct(model, TOKENIZER, cache, CONTEXT)
    assert_close(torch.stack(found), wanted, rtol=1e-4, atol=1e-6)
    best = wanted.clone()
    best[..., :SINKS] = torch.inf
    places = best.flatten().topk(BUDGET * 3 * len(layers)).indices
    chosen = torch.zeros(best.numel()).index_fill(0, places, 1).view_as(best)
    for index, layer in enumerate(cache.budgeted):
        for tokens in layer.store.slots.tokens():
            for i, head in enumerate(tokens.heads):
                positions = tokens.positions[0, i].long()
                assert torch.equal(positions, chosen[index, head].nonzero()[:, 0])


def test_norms_change_what_is_kept():
    model = attach(model_of("llama"))
    caches = [read(model, method) for method in ("kvzip", "kvzip-plus")]
    for cache in caches:
        reconstruct(model, TOKENIZER, cache, CONTEXT)
    plain, plus = map(kept, caches)
    assert plain != plus
    assert sum(map(len, plain)) == sum(map(len, plus)) == BUDGET * 12


@pytest.mark.parametrize(("bits", "near"), [(8, 0.02), (4, 0.3)])
def test_few_bits_are_seen_in_the_basis_of_the_model(bits, near):
    """Norms of turned values would be others: the projection has not been turned."""
    model = model_of("llama")
    wanted = by_definition(model, [0, 1, 2, 3])
    attach(model)
    cache = read(model, bits=bits)
    found = watched_until_compressed(cache)
    reconstruct(model, TOKENIZER, cache, CONTEXT)
    off = (torch.stack(found) - wanted).norm() / wanted.norm()
    assert off < near
    assert sum(map(len, kept(cache))) == cache.plan.codec.slots(BUDGET, numbers=1) * 12


def test_the_model_is_left_as_it_was():
    model = attach(model_of("llama"))
    blocks = [layer.self_attn for layer in model.base_model.layers]
    reconstruct(model, TOKENIZER, read(model), CONTEXT)
    assert not any(block._forward_pre_hooks for block in blocks)
    cache = read(model)
    hook = model.model.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reconstruct(model, TOKENIZER, cache, CONTEXT)
    hook.remove()
    assert not any(block._forward_pre_hooks for block in blocks)


def test_attention_without_an_output_projection_of_that_name_is_refused():
    model = attach(model_of("llama"))
    cache = read(model)
    del model.base_model.layers[2].self_attn.o_proj
    with pytest.raises(UserError, match="LlamaForCausalLM has no output projection o_proj"):
        reconstruct(model, TOKENIZER, cache, CONTEXT)
