"""Which ranks take part: the argument `gather`, and every other that names a process group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import distributed

from hexssl import validation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Ranks: TypeAlias = "bool | ProcessGroup | DeviceMesh"
Gather: TypeAlias = "Ranks | Ring | Literal['ring']"

_ACCEPTED = ("False, True (the default process group), a torch.distributed.ProcessGroup that this process is in, or a "
             "one-dimensional DeviceMesh")
_RINGS = "; or, for keys that pass round in a ring, 'ring' (the default process group) or a hexssl.distributed.Ring"


def _is_mesh(value: Any) -> bool:
    if distributed.is_available() and isinstance(value, distributed.ProcessGroup):
        return False  # before what torch.compile cannot ask a process group
    return hasattr(value, "get_group") and hasattr(value, "mesh_dim_names")


class Ring:
    """Ranks round which the keys of a loss with `gather` pass, one rank's at a time, so that no rank ever has all.

    ``gather="ring"`` is ``gather=Ring()``.

    Parameters
    ----------
    group : True, ProcessGroup or one-dimensional DeviceMesh
        Which ranks; True is the default group.

    Raises
    ------
    TypeError, ValueError
        For what is no group, a mesh of several dimensions, and a group that this process is not in.

    Examples
    --------
    >>> from hexssl import InfoNCELoss
    >>> from hexssl.distributed import Ring
    >>> InfoNCELoss(gather=Ring()).gather
    Ring(True)
    """

    def __init__(self, group: Ranks = True) -> None:
        if group is False:
            raise ValueError("group: got False; accepted: True, a process group or a one-dimensional DeviceMesh")
        group_of("group", group)
        self.group = group

    def __repr__(self) -> str:
        return f"Ring({Group(self.group)!r})"


class Group:
    """Ranks that communicate, as they were named: looked up when they do, since a group may be made later.

    A copy of a module is of the same ranks, so that a copy of this is this. It cannot be saved, as a process group
    cannot.

    Parameters
    ----------
    given : True, ProcessGroup, DeviceMesh, Ring or "ring"
        Checked by `group_of`.

    Attributes
    ----------
    ring : bool
        Whether keys pass round the ranks, and are not gathered.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        self.ring = given == "ring" if isinstance(given, str) else isinstance(given, Ring)
        self._ranks: Any = given.group if isinstance(given, Ring) else True if self.ring else given
        self._mesh = _is_mesh(self._ranks)

    @property
    def process_group(self) -> Any:
        """What collective calls take; None is the default group."""
        if self._ranks is True:
            return None
        return self._ranks.get_group() if self._mesh else self._ranks

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
        if self._ranks is True:
            return Group, (self.given,)
        raise TypeError(f"gather: {self!r} cannot be saved, since it is of this process alone; accepted: save the "
                        "state_dict, or set gather=False before saving the module")

    def __repr__(self) -> str:
        named = self.given is True or self.ring
        return repr(self.given) if named else f"<{type(self.given).__name__} of {self.size} ranks>"


DEFAULT = Group(True)


def group_of(name: str, value: Any, also: str = "", rings: bool = False) -> Group | None:
    """The ranks that an argument of this name says; None for False.

    also : what else its caller accepts
    rings : whether "ring" and a `Ring` are accepted

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
    accepted = also + _ACCEPTED + (_RINGS if rings else "")
    if rings and (isinstance(value, Ring) or (isinstance(value, str) and value == "ring")):
        return Group(value)
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
