"""The contrastive loss of open_clip (``open_clip.loss``), as in version 3.3.0.

CLIP: Radford et al., ICML 2021. The HEX keywords are those of `hexssl.hex_loss`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hexssl import distributed, dtypes, validation
from hexssl.compat._drop_in import DropIn, named
from hexssl.distributed import all_gather_checked, check_ranks
from hexssl.thresholds import Threshold

__all__ = ["ClipLoss"]


class ClipLoss(DropIn):
    """CLIP's loss: the mean of both directions between images and texts. The features are used as they are.

    Parameters
    ----------
    local_loss : bool
        With several ranks: the anchors are this rank's rows; False: those of all ranks, on every rank.
    gather_with_grad : bool
        Gradients flow to the other ranks' features; False: to this rank's own only, with `local_loss` as anchors only.
    cache_labels : bool
        `get_ground_truth` keeps its labels. Without effect on the loss, which makes none.
    rank, world_size : int
        This process and the number of processes, as ``torch.distributed`` or Horovod has them; 1: nothing is gathered.
    use_horovod : bool
        Gather with Horovod in place of ``torch.distributed``. The repository of open_clip has dropped this.
    threshold, beta, tau_plus, local_weight, formulation
        As in `hexssl.hex_loss`; ``threshold=None`` is CLIP. Each direction has its own estimate of the threshold.

    Notes
    -----
    A subclass that overrides `get_logits` or `get_ground_truth` has what it returns compared, as in open_clip: arrays
    of all pairs are then made, and there is no `stats`. With a threshold that is an error.

    Examples
    --------
    >>> import torch
    >>> round(ClipLoss()(torch.eye(4), torch.eye(4), logit_scale=5.0).item(), 4)
    0.02
    """

    def __init__(
        self, local_loss: bool = False, gather_with_grad: bool = False, cache_labels: bool = False, rank: int = 0,
        world_size: int = 1, use_horovod: bool = False, *,
        threshold: str | float | Tensor | Threshold | None = None, beta: float = 1.0, tau_plus: float = 0.1,
        local_weight: float = 1.0, formulation: str = "weighted",
    ) -> None:
        super().__init__(1.0, threshold, beta, tau_plus, local_weight, formulation, normalize=False)
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod
        self.labels: dict[torch.device, Tensor] = {}  # of get_ground_truth

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The columns of the positives among the logits of each row, (num_logits,) int64."""
        labels = self.labels.get(device)
        if labels is None or len(labels) != num_logits:
            labels = torch.arange(num_logits, device=device)
            if self.world_size > 1 and self.local_loss:
                labels = labels + num_logits * self.rank
            if self.cache_labels:
                self.labels[device] = labels
        return labels

    def get_logits(self, image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
                   logit_bias: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits of the images and of the texts, an array of all pairs each. `forward` has no need of them.

        Parameters
        ----------
        image_features, text_features, logit_scale, logit_bias
            As in `forward`.

        Returns
        -------
        two (B, B) tensors; with several ranks (B, world_size * B) with `local_loss`, else (world_size * B,) * 2
        """
        self._compare_ranks(image_features=image_features, text_features=text_features)
        _check_features(image_features, text_features)
        images, texts = self._gathered(image_features), self._gathered(text_features)
        if self.world_size > 1 and self.local_loss:
            per_image, per_text = logit_scale * image_features @ texts.T, logit_scale * text_features @ images.T
        else:
            per_image = logit_scale * images @ texts.T
            per_text = per_image.T
        return (per_image, per_text) if logit_bias is None else (per_image + logit_bias, per_text + logit_bias)

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor,
                logit_bias: float | Tensor | None = None, output_dict: bool = False) -> Tensor | dict[str, Tensor]:
        """The loss of the batch.

        Parameters
        ----------
        image_features, text_features : (B, D) tensors of unit rows, row i of both a pair
        logit_scale : float, or tensor of one element that may require grad
            The inverse of the temperature.
        logit_bias : float, tensor of one element, or None
            The same number added to all logits: without effect.
        output_dict : bool

        Returns
        -------
        0-d tensor, or with `output_dict` ``{"contrastive_loss": tensor}``

        Raises
        ------
        TypeError, ValueError
            As `hexssl.hex_loss`; and for a rank or world size that is not this process's.
        """
        overridden = self._overridden()
        if overridden:
            return self._of_logits(overridden, image_features, text_features, logit_scale, logit_bias, output_dict)
        self._compare_ranks(image_features=image_features, text_features=text_features)
        _check_features(image_features, text_features)
        _check_bias(logit_bias)
        images, texts = self._gathered(image_features), self._gathered(text_features)
        with named(anchors="image_features", keys="text_features", temperature="logit_scale"):
            temperature = _temperature(logit_scale)
            if self.world_size > 1 and self.local_loss:
                keys = torch.arange(len(images), device=images.device)
                pairs: dict[str, Any] = {"labels": keys[self.rank * len(image_features) :][: len(image_features)],
                                         "key_labels": keys, "temperature": temperature}
                loss = self._loss_among(image_features, texts, **pairs)
                seen = self._seen
                loss = (loss + self._loss_among(text_features, images, **pairs)) / 2
                self._remember(seen + self._seen)
            else:
                loss = self._loss_among_both(images, texts, temperature)
        if isinstance(logit_bias, Tensor) and logit_bias.requires_grad:
            loss = loss + 0 * logit_bias.sum().to(loss.dtype)  # its gradient is 0, not missing
        return {"contrastive_loss": loss} if output_dict else loss

    def _overridden(self) -> list[str]:
        """Which of the methods that open_clip's loss is made of are others than above, in a subclass or an instance."""
        own = {"get_logits": ClipLoss.get_logits, "get_ground_truth": ClipLoss.get_ground_truth}
        return [name for name, method in own.items()
                if name in self.__dict__ or getattr(type(self), name) is not method]

    def _of_logits(self, overridden: list[str], image_features: Tensor, text_features: Tensor,
                   logit_scale: float | Tensor, logit_bias: float | Tensor | None,
                   output_dict: bool) -> Tensor | dict[str, Tensor]:
        """open_clip's loss of whatever the overriding methods return."""
        if self.threshold is not None:
            raise ValueError(f"threshold: got {validation.describe(self.threshold)} in a {type(self).__name__} that "
                             f"overrides {' and '.join(overridden)}; accepted: None, since hierarchical negatives are "
                             "found among the products of the features, which logits need not be")
        per_image, per_text = self.get_logits(image_features, text_features, logit_scale, logit_bias=logit_bias)
        labels = self.get_ground_truth(image_features.device, per_image.shape[0])
        self._remember(())
        loss = (cross_entropy(per_image, labels) + cross_entropy(per_text, labels)) / 2
        return {"contrastive_loss": loss} if output_dict else loss

    def _check_ranks(self) -> None:
        """Pairs are counted by what was said of the ranks: it must be so."""
        if self.use_horovod:
            horovod = _horovod()
            rank, ranks, where = horovod.rank(), horovod.size(), "Horovod"
        else:
            rank, ranks, where = distributed.rank(), distributed.world_size(), "torch.distributed"
        alone = "" if ranks > 1 else ", where there is no group of several processes (init_process_group comes first)"
        for name, given, found in (("world_size", self.world_size, ranks), ("rank", self.rank, rank)):
            if given != found:
                raise ValueError(f"{name}: got {given}; accepted: that of {where}, {found}{alone}; or world_size=1, "
                                 "with which nothing is gathered")

    def _compare_ranks(self, **features: Any) -> None:
        """Before what one rank alone could refuse: an error of all ranks where their features differ."""
        if self.world_size <= 1:
            return
        self._check_ranks()
        if not self.use_horovod:
            check_ranks(*(features if self.gather_with_grad else ()), **features)

    def _gathered(self, features: Tensor) -> Tensor:
        """The features of all ranks, with the gradients asked for."""
        if self.world_size <= 1:
            return features
        if self.use_horovod:
            rows = _horovod().allgather(features if self.gather_with_grad else features.detach())
        else:
            rows = all_gather_checked(features, differentiable=self.gather_with_grad)
        if self.gather_with_grad or self.local_loss:
            return rows
        own = self.rank * len(features)
        return torch.cat((rows[:own], features, rows[own + len(features) :]))

    def _shown(self) -> list[str]:
        own = ["local_loss", "gather_with_grad", "rank", "world_size", "use_horovod"]
        return [*own, *(name for name in super()._shown() if name != "temperature")]


def _check_features(image_features: Tensor, text_features: Tensor) -> None:
    validation.embeddings("image_features", image_features)
    validation.embeddings("text_features", text_features)
    if text_features.shape != image_features.shape:
        raise ValueError(f"text_features: got shape {tuple(text_features.shape)}; accepted: that of "
                         f"image_features, {tuple(image_features.shape)}")


def _check_bias(logit_bias: float | Tensor | None) -> None:
    accepted = "None, a number or a tensor of one element"
    if isinstance(logit_bias, Tensor):
        if logit_bias.numel() != 1:
            raise ValueError(f"logit_bias: got shape {tuple(logit_bias.shape)}; accepted: {accepted}")
    elif logit_bias is not None:
        validation.number("logit_bias", logit_bias, accepted=accepted)


def _temperature(logit_scale: float | Tensor) -> float | Tensor:
    if not isinstance(logit_scale, Tensor):
        return 1.0 / validation.number("logit_scale", logit_scale, 0.0, open_low=True, open_high=True,
                                       accepted="a finite number > 0, or a tensor of one element")
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale: got shape {tuple(logit_scale.shape)}; accepted: one element")
    return dtypes.single(logit_scale).reshape(()).reciprocal()


def _horovod() -> Any:
    try:
        return import_module("horovod.torch")
    except ImportError as error:
        raise AssertionError("use_horovod: got True; accepted: False, since Horovod is not installed") from error
