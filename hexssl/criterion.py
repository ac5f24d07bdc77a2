"""The base of the loss modules: settings that may be assigned, the threshold's state, statistics of the last batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hexssl import exchange, validation
from hexssl.evaluation import evaluate, evaluate_both_ways, own_threshold
from hexssl.gathered import evaluate_gathered, go_along
from hexssl.groups import Gather, Group, group_of
from hexssl.problem import Problem, Settings, current_temperature, make_settings
from hexssl.results import HEXStats, batch_stats
from hexssl.thresholds import Threshold, warn_of_positives

SETTINGS = ("temperature", "threshold", "beta", "tau_plus", "local_weight", "formulation", "positives", "denominator",
             "normalize", "reduction")


class Criterion(nn.Module):
    """Base of all loss modules: `hexssl.HEXLoss` and its kin, and the drop-ins.

    Every setting is an attribute and may be assigned, with the checks of the constructor. A value that is refused
    leaves the earlier one. A `temperature` or a `threshold` may become another kind of thing: a number, a tensor (a
    buffer), a parameter, a module. It is then found in ``state_dict`` as what it is. A temperature that was computed
    with gradient can be assigned for the next step, and is no part of the state.
    """

    temperature: Any
    threshold: Any
    beta: float
    tau_plus: float
    local_weight: float
    formulation: str
    positives: str
    denominator: str
    normalize: bool
    reduction: str
    _fixed: Settings | None  # the settings, if none of them is a tensor or made anew in every call
    _seen: tuple[Tensor, ...]
    _sync = True  # in training, ranks agree on a threshold that does not say otherwise
    _gather: Group | None = None

    def __init__(self, temperature: Any, threshold: Any, beta: float, tau_plus: float, local_weight: float,
                 formulation: str, positives: str, denominator: str, normalize: bool, reduction: str,
                 stats: bool = True, gather: Gather = False) -> None:
        super().__init__()
        self.gather = gather
        _check_leaf(temperature)
        self._wants_stats = validation.flag("stats", stats)
        self._assign(temperature=temperature, threshold=threshold, beta=beta, tau_plus=tau_plus,
                     local_weight=local_weight, formulation=formulation, positives=positives, denominator=denominator,
                     normalize=normalize, reduction=reduction)
        self._seen = ()

    def __setattr__(self, name: str, value: Any) -> None:
        # A replica of torch's DataParallel is put together by assignments, of what the original has checked.
        if name in SETTINGS and not self.__dict__.get("_is_replica", False):
            self._assign(**{name: value})
        else:
            super().__setattr__(name, value)

    def _assign(self, **given: Any) -> None:
        """Check the settings with these new ones among them, and hold those."""
        if "threshold" in given:
            given["threshold"] = own_threshold(given["threshold"])
        values = {name: given[name] if name in given else getattr(self, name) for name in SETTINGS}
        temperature = values["temperature"]
        checked = self._checked({**values, "temperature": 1.0 if _opaque(temperature) else temperature})
        for name, value in given.items():
            self._hold(name, value)
        fixed = not isinstance(temperature, Tensor | nn.Module)
        object.__setattr__(self, "_fixed", checked if fixed else None)

    def _hold(self, name: str, value: Any) -> None:
        """In the place of what the name stood for, of whatever kind."""
        for place in (self.__dict__, self._parameters, self._buffers, self._modules):
            place.pop(name, None)
        if isinstance(value, nn.Parameter) and name == "temperature":
            self.register_parameter(name, value)
        elif isinstance(value, nn.Module):
            self.register_module(name, value)
        elif isinstance(value, Tensor) and name == "threshold":
            self.register_buffer(name, value.detach())
        elif isinstance(value, Tensor) and value.is_leaf:
            self.register_buffer(name, value)
        else:
            object.__setattr__(self, name, value)

    def _checked(self, values: dict[str, Any], device: torch.device | None = None) -> Settings:
        """The settings that values of these names make."""
        given = {name: value for name, value in values.items() if name != "threshold"}
        return make_settings(**given, device=device)

    def _settings(self, device: torch.device) -> Settings:
        """This module's, for embeddings on the device. A module that holds the temperature is called."""
        fixed = self._fixed
        if fixed is not None:
            return fixed
        return self._checked({name: getattr(self, name) for name in SETTINGS}, device)

    def _current_temperature(self) -> float | Tensor:
        """For a loss that needs it more than once: a module that holds it is called once in a call of the loss."""
        return validation.temperature(current_temperature(self.temperature))

    def _gathers(self) -> bool:
        """Whether a loss that is computed now is of the rows of all ranks."""
        return self._gather is not None and self.training and self._gather.active()

    def _agreeing(self) -> bool | Group:
        """Which ranks agree on a threshold that does not say otherwise, for a loss of this rank's own rows."""
        return self._sync if self._gather is None else self._gather

    def _loss_of(self, problem: Problem, settings: Settings | None = None) -> Tensor:
        """The loss of the problem, with this module's settings unless others are given; what it saw goes to `stats`."""
        warn_of_positives(self.threshold, problem)
        loss, seen = evaluate(problem, settings or self._settings(problem.anchors.device), self.threshold,
                              statistics=self._wants_stats, sync=self._agreeing())
        self._remember(seen)
        return loss

    def _loss_both_ways(self, problem: Problem, settings: Settings | None = None) -> Tensor:
        """The mean of the problem's loss and of that of its keys as anchors; as `_loss_of` otherwise."""
        warn_of_positives(self.threshold, problem)
        loss, seen = evaluate_both_ways(problem, settings or self._settings(problem.anchors.device), self.threshold,
                                        self._wants_stats, self._agreeing())
        self._remember(seen)
        return loss

    def _loss_of_all(self, make: Callable[[], Problem], both_ways: bool = False, views: int = 2,
                     queue: bool = False) -> Tensor:
        """The loss of the batch of all ranks that `gather` names, in training; else that of this rank's, as without.

        make : gives this rank's problem
        views, queue : as in `hexssl.gathered_problem.Local`
        """
        group = self._gather
        assert group is not None
        if not self._gathers():
            return self._loss_both_ways(make()) if both_ways else self._loss_of(make())

        def asked() -> tuple[Problem, Settings]:
            problem = make()
            return problem, self._settings(problem.anchors.device)

        loss, seen = evaluate_gathered(group, asked, self.threshold, self._wants_stats, both_ways, views, queue)
        self._remember(seen)
        return loss

    def _refuse(self, error: Exception) -> NoReturn:
        """In place of the loss: an error of this rank, on all ranks that gather."""
        if self._gather is not None and self._gathers():
            exchange.refuse(self._gather, error)
        raise error

    def _go_along(self, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """What this rank does in a call that the ranks with data make; see `hexssl.gathered.go_along`."""
        assert self._gather is not None
        loss, seen, leaves = go_along(self._gather, device, lambda: self._settings(device), self.threshold,
                                      self._wants_stats)
        self._remember(seen)
        return loss, leaves

    def _remember(self, seen: tuple[Tensor, ...]) -> None:
        if torch.compiler.is_exporting():  # no program takes statistics with it, and torch warns of what is assigned
            return
        # past Module.__setattr__, which looks for parameters: 1.2 of the 80 us of a step of 32 x 128 on AVX-512
        self.__dict__["_seen"] = seen if self._wants_stats else ()

    def set_epoch(self, epoch: int) -> None:
        """Tell the threshold which epoch it is, counted from 0; thresholds that do not depend on it accept it too."""
        if isinstance(self.threshold, Threshold):
            self.threshold.set_epoch(epoch)
        else:
            validation.integer("epoch", epoch, 0, "an int >= 0")

    def set_step(self, step: int) -> None:
        """Tell the threshold which step of the whole training it is, counted from 0; as `set_epoch` otherwise."""
        if isinstance(self.threshold, Threshold):
            self.threshold.set_step(step)
        else:
            validation.integer("step", step, 0, "an int >= 0")

    @property
    def gather(self) -> Any:
        """Whose rows are the keys in training: False, this rank's own; True, those of all ranks; or a process group or
        a one-dimensional DeviceMesh, those of its ranks; "ring" or a `hexssl.distributed.Ring`, those of all that pass
        by."""
        return False if self._gather is None else self._gather.given

    @gather.setter
    def gather(self, value: Gather) -> None:
        self.__dict__["_gather"] = group_of("gather", value, rings=True)

    @property
    def stats(self) -> HEXStats | None:
        """What the loss saw in the last batch; None before the first, and always with ``stats=False``."""
        return batch_stats(self._seen) if self._seen else None

    def _shown(self) -> list[str]:
        """Names of the attributes in the representation."""
        return list(SETTINGS)

    def extra_repr(self) -> str:
        values = ((name, getattr(self, name)) for name in self._shown())
        shown = [f"{name}={_brief(value)}" for name, value in values if not isinstance(value, nn.Module)]
        shown += [] if self._gather is None else [f"gather={self._gather}"]
        return ", ".join(shown if self._wants_stats else [*shown, "stats=False"])


def _opaque(temperature: Any) -> bool:
    """Of which there is nothing to check yet: a module, and what FSDP puts in the place of a parameter for a while."""
    return isinstance(temperature, nn.Module) or (
        isinstance(temperature, nn.Parameter) and hasattr(temperature, "full_tensor"))


def _brief(value: Any) -> str:
    return f"{value.dim()}-d {type(value).__name__.lower()}" if isinstance(value, Tensor) else repr(value)


def _check_leaf(temperature: Any) -> None:
    """A module is called again and again: the graph behind its temperature must not end with the first backward."""
    if isinstance(temperature, Tensor) and not temperature.is_leaf:
        raise ValueError("temperature: got a tensor that was computed with gradient, which has but one backward; "
                         "accepted: a number, a parameter or another leaf. For a new one in every step assign it, "
                         "criterion.temperature = ..., or call a function such as hexssl.hex_loss")
