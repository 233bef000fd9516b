"""A few numbers of each parameter, by which models are told apart without reading them whole."""

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

#: Numbers of each parameter that are looked at.
COUNT = 64


def samples(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The name of each parameter, the parameter, and `COUNT` evenly spaced numbers of it."""
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().reshape(-1)
        step = max(1, len(numbers) // COUNT) | 1  # odd, or it might stay in one column
        yield name, parameter, numbers[::step][:COUNT].cpu().contiguous()
