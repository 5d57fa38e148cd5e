"""That a model is left as it was: its weights, and no hook on a module's inputs."""

import torch


def states(model):
    """A copy of everything in its state dict, by name."""
    return {name: each.clone() for name, each in model.network.state_dict().items()}


def assert_unchanged(model, before):
    """Weights are those of `before`, from `states`, to the bit."""
    after = model.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert not any(module._forward_pre_hooks for module in model.network.modules())
