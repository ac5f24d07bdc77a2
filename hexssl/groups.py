"""Which ranks take part: the argument `gather`, and every other that names a process group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import distributed

from hexssl import validation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Ranks: TypeAlias = "bool | ProcessGroup | DeviceMesh"

_ACCEPTED = ("False, True (the default process group), a torch.distributed.ProcessGroup that this process is in, or a "
             "one-dimensional DeviceMesh")


class Group:
    """Ranks that communicate, as they were named: looked up when they do, since a group may be made later.

    A copy of a module is of the same ranks, so that a copy of this is this. It cannot be saved, as a process group
    cannot.

    Parameters
    ----------
    given : True, ProcessGroup or DeviceMesh
        Checked by `group_of`.
    """

    def __init__(self, given: Any) -> None:
        self.given = given

    @property
    def process_group(self) -> Any:
        """What collective calls take; None is the default group."""
        if self.given is True:
            return None
        return self.given.get_group() if _is_mesh(self.given) else self.given

    @property
    def size(self) -> int:
        """Number of ranks; 1 where ``torch.distributed`` is not initialised."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size(self.process_group)

    @property
    def rank(self) -> int:
        """This process among them."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0
        return distributed.get_rank(self.process_group)

    def active(self) -> bool:
        """Whether a loss that is computed now gathers: with gradients on, and with several ranks."""
        return torch.is_grad_enabled() and self.size > 1

    def device(self) -> torch.device:
        """Where small tensors are that the host will read: the CPU if the group communicates there, too."""
        if "cpu:" in distributed.get_backend_config(self.process_group) or not torch.accelerator.is_available():
            return torch.device("cpu")
        accelerator = torch.accelerator.current_accelerator()
        assert accelerator is not None
        return torch.device(accelerator.type, torch.accelerator.current_device_index())

    def __copy__(self) -> Group:
        return self

    def __deepcopy__(self, _: Any) -> Group:
        return self

    def __reduce__(self) -> Any:
        if self.given is True:
            return Group, (True,)
        raise TypeError(f"gather: {self!r} cannot be saved, since it is of this process alone; accepted: save the "
                        "state_dict, or set gather=False before saving the module")

    def __repr__(self) -> str:
        return repr(self.given) if self.given is True else f"<{type(self.given).__name__} of {self.size} ranks>"


DEFAULT = Group(True)


def group_of(name: str, value: Any, also: str = "") -> Group | None:
    """The ranks that an argument of this name says; None for False. also : what else its caller accepts.

    Raises
    ------
    TypeError, ValueError
        For what is no group, a mesh of several dimensions, and a group that this process is not in.

    Examples
    --------
    >>> from hexssl.groups import group_of
    >>> group_of("gather", False), group_of("gather", True).size
    (None, 1)
    """
    if value is False:
        return None
    if value is True:
        return DEFAULT
    if isinstance(value, Group):
        return value
    accepted = also + _ACCEPTED
    if not distributed.is_available():
        validation.refuse_type(name, value, f"{also}True or False, since this torch has no torch.distributed")
    if _is_mesh(value):
        if value.ndim != 1:
            validation.refuse_value(name, value, f"{accepted}, such as mesh['dp']")
    elif value is distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{name}: got a process group that this process is not in; accepted: {accepted}")
    elif not isinstance(value, distributed.ProcessGroup):
        validation.refuse_type(name, value, accepted)
    group = Group(value)
    if group.rank < 0:
        raise ValueError(f"{name}: got a process group that this process is not in; accepted: {accepted}")
    return group


def _is_mesh(value: Any) -> bool:
    return hasattr(value, "get_group") and hasattr(value, "mesh_dim_names")
