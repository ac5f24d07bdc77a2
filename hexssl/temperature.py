"""A temperature that is learned on a logarithmic scale."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn

from hexssl import dtypes, validation


class LogTemperature(nn.Module):
    """A learned temperature, in the parametrisation of CLIP: the parameter is ``log(1 / temperature)``.

    A step of the optimizer multiplies the temperature, which so stays positive, and it never falls below `minimum`.
    The bound is kept as CLIP keeps it, on the parameter: a forward pass in training (training mode, gradients on) first
    brings a parameter beyond the bound back to it, in place. The gradient is that of the bounded value and is never
    cut off, so that the temperature can leave the bound again with the first gradient that points away from it.

    Give the parameter no weight decay: that would pull the temperature towards 1. A group of its own does it::

        decayed = [p for name, p in model.named_parameters() if not name.endswith("logit_scale")]
        scales = [p for name, p in model.named_parameters() if name.endswith("logit_scale")]
        torch.optim.AdamW([{"params": decayed}, {"params": scales, "weight_decay": 0.0}])

    Parameters
    ----------
    initial : float >= minimum
    minimum : float > 0
        0.01 is CLIP's (a scale of at most 100).
    shape : () or (1,)
        Of the parameter; (1,) for what cannot shard a parameter without dimensions (FSDP).

    Attributes
    ----------
    logit_scale : nn.Parameter
        ``log(1 / temperature)``, the name that it has in CLIP's models.
    value : float
        The temperature, read from the device.

    References
    ----------
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2.5.

    Examples
    --------
    >>> import torch
    >>> from hexssl import LogTemperature, info_nce
    >>> temperature = LogTemperature(0.2)
    >>> temperature
    LogTemperature(0.2, minimum=0.01)
    >>> loss = info_nce(*torch.eye(4).chunk(2), temperature=temperature)
    >>> loss.backward()
    >>> temperature.logit_scale.grad.shape
    torch.Size([])
    """

    def __init__(self, initial: float = 0.1, minimum: float = 0.01, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.minimum = validation.number("minimum", minimum, 0.0, open_low=True, open_high=True,
                                         accepted="a finite number > 0")
        self.initial = validation.number("initial", initial, self.minimum, open_high=True,
                                         accepted=f"a finite number >= minimum = {minimum}")
        if not isinstance(shape, tuple) or shape not in ((), (1,)):
            raise ValueError(f"shape: got {validation.describe(shape)}; accepted: () or (1,)")
        self.logit_scale = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial temperature again, as after ``to_empty``."""
        with torch.no_grad():
            self.logit_scale.fill_(-log(self.initial))

    def forward(self) -> Tensor:
        """The temperature: a 0-d tensor with gradient, of the parameter's dtype, float32 at least."""
        bound = -log(self.minimum)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.logit_scale.clamp_(max=bound)
        scale = dtypes.single(self.logit_scale).reshape(())
        # Beyond the bound in evaluation, in a sharded copy, or by the rounding of half precision: bounded without an
        # effect on the gradient.
        beyond = (scale.detach() - bound).clamp(min=0.0)
        return torch.exp(beyond - scale)

    @property
    def value(self) -> float:
        with torch.no_grad():
            return float(self())

    def extra_repr(self) -> str:
        now = self.initial if self.logit_scale.is_meta else self.value
        shape = "" if self.logit_scale.dim() == 0 else f", shape={tuple(self.logit_scale.shape)}"
        return f"{now:.4g}, minimum={self.minimum:g}{shape}"
