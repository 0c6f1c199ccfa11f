from __future__ import annotations

import pytest
import torch

from tasks.tiny import build_tiny
from tasks.training.shared_prompt import Layout, share_prompts

PAIRS = [([5, 6, 7, 8], [9, 10], [11, 12, 13]), ([5, 6], [7, 8, 9, 10, 11], [7, 12]), ([20], [21], [22, 23])]


def batch():
    rows = [prompt + first for prompt, first, _ in PAIRS] + [prompt + second for prompt, _, second in PAIRS]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_states_and_gradients_are_those_of_the_whole_rows(name):
    ids, mask = batch()
    weights = torch.randn(*ids.shape, 64, generator=torch.Generator().manual_seed(0)) * mask[:, :, None]
    found = []
    for shared in (False, True):
        model = build_tiny(name)[0].eval()
        if shared:
            share_prompts(model.base_model)
        states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        (states * weights).sum().backward()
        gradients = [parameter.grad for parameter in model.base_model.parameters()]
        found.append((states * mask[:, :, None], gradients))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_the_prompt_and_any_common_beginning_is_computed_once():
    layout = Layout(*(lambda ids, mask: (ids, mask.bool()))(*batch()))
    assert layout.shared.tolist() == [4, 3, 1]  # the second pair's completions begin alike
    assert layout.ids[0].tolist()[:9] == [5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert layout.positions[0].tolist()[:9] == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    sees = layout.allowed()[0]
    assert not sees[6, 4] and sees[6, 3] and sees[6, 6] and not sees[3, 4]
