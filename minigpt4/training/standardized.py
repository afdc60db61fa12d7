"""AdamW on a linear layer as if its inputs were standardized: the frozen features' mean and spread no longer matter.

    y = W x + b   is trained as   y = W' (x - mean) / std + OFFSET b'

and stays ONE Linear: W = W' / std, b = OFFSET b' - W mean.

A frozen tower's channels have large means and very different spreads. A step of Adam moves every weight by about the same
amount, so it mostly changes what all images share, by the sum of the channels' means, and hardly what distinguishes them.
In standardized coordinates (LeCun, Bottou, Orr, Mueller 1998, "Efficient BackProp"), only the bias changes what all images
share, at a speed set by OFFSET. Saved weights and the model's computation are unaffected.
"""

import torch
from torch.optim import AdamW

OFFSET = 150.0  # how many times faster the bias learns than a weight: it makes the LLM write captions at all


class StandardizedAdamW(AdamW):
    """AdamW for groups of parameters, one of which may be the `layer`'s weight and bias.

    Args:
        params: as `AdamW` takes them.
        layer: `nn.Linear`, whose updates are those of the standardized layer; without weight decay.
        features: [..., in_features], the layer's inputs over the training data.
        **arguments: arguments of `AdamW`.
    """

    def __init__(self, params, layer, features, **arguments):
        super().__init__(params, **arguments)
        features = features.flatten(0, -2)
        device, count = layer.weight.device, len(features)
        # In pieces: a copy of all features in double precision might not fit into memory.
        parts = features.split(4096)
        mean = sum(part.double().sum(0) for part in parts) / count
        variance = sum((part.double() - mean).square().sum(0) for part in parts) / count
        self.layer = layer
        self.mean = mean.float().to(device)
        self.std = variance.sqrt().clamp(min=1e-3).float().to(device)

    @torch.no_grad()
    def step(self, closure=None):
        """One step; see `AdamW.step`. The gradients of the layer are left in standardized coordinates."""
        weight, bias = self.layer.weight, self.layer.bias
        if weight.grad is None:
            return super().step(closure)
        before = weight.clone(), bias.clone()
        weight.grad.sub_(torch.outer(bias.grad, self.mean)).div_(self.std)
        bias.grad.mul_(OFFSET)
        loss = super().step(closure)
        moved = (weight - before[0]) / self.std
        bias.copy_(before[1] + OFFSET * (bias - before[1]) - moved @ self.mean)
        weight.copy_(before[0] + moved)
        return loss
