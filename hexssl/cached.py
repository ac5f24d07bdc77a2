"""Steps with more samples than an encoder's memory holds: gradients are cached at the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from hexssl import validation

__all__ = ["CachedStep"]

_Random = tuple[Tensor, list[int], list[Tensor]]


class CachedStep:
    """Forward and backward of a contrastive loss over a batch that the encoder takes in chunks.

    A contrastive loss needs the embeddings of the whole batch at once, but not the encoder's activations. So the
    encoder first embeds the batch chunk by chunk and keeps no graph; then the loss of all embeddings gives the gradient
    of each; then the encoder goes through the chunks again, with a graph, and each chunk's backward starts from the
    gradients of its embeddings (GradCache). The gradients are those of one step with the whole batch. Memory is that of
    one chunk and of the embeddings; the price is one more forward pass.

    Parameters
    ----------
    encoder : module or callable, or a sequence of them, one for each input
        Takes a chunk of an input and returns its embeddings, (rows, D). One encoder serves all inputs.
    criterion : module or callable
        Takes the embeddings of all inputs, and keywords, and returns a 0-d tensor: a loss of this package, with or
        without `gather`, or any other.
    chunk : int >= 1, or a sequence of them, one for each input
        Most rows that go through the encoder at once.
    scaler : torch.amp.GradScaler or None
        Scales the loss before backward.

    Raises
    ------
    TypeError, ValueError
        When constructed or called, naming the argument, what was given and what is accepted.

    Notes
    -----
    *Random numbers.* torch's generators, of the CPU and of the devices of inputs and encoders, are put back before a
    chunk's second pass, so that dropout and augmentations on the device are the same in both; afterwards they are where
    the first pass left them. Those of Python and NumPy are not looked at.

    *Batch statistics.* BatchNorm in training normalises each chunk by itself: results then differ from one step with
    the whole batch, as they do between several devices. All buffers of the encoders are put back before the second
    pass, so that running statistics are updated once by each chunk, and not twice. Encoders without batch statistics
    (LayerNorm, GroupNorm) give what one step gives.

    *Autocast.* Call it within ``torch.autocast``. Casts of parameters are not kept from one chunk to the next.

    *DDP.* The chunks but the last are in ``no_sync``, and the last one's backward averages. Within the caller's own
    ``no_sync`` none does. Parameters of the criterion get their gradient in the loss's backward: a learned temperature
    belongs into the criterion, which then may be in a DDP of its own, and not into an encoder's DDP.

    *Several ranks.* A rank without rows makes one pass with a chunk of none.

    References
    ----------
    Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP
    2021.

    Examples
    --------
    >>> import torch
    >>> from hexssl import HEXLoss
    >>> from hexssl.cached import CachedStep
    >>> encoder = torch.nn.Linear(16, 8)
    >>> step = CachedStep(encoder, HEXLoss(threshold=0.3), chunk=32)
    >>> optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    >>> optimizer.zero_grad()
    >>> loss = step(torch.randn(100, 16), torch.randn(100, 16))  # two views; also does the backward
    >>> optimizer.step()
    >>> loss.shape, loss.requires_grad
    (torch.Size([]), False)
    """

    def __init__(self, encoder: Callable[..., Tensor] | Sequence[Callable[..., Tensor]],
                 criterion: Callable[..., Tensor], chunk: int | Sequence[int], *,
                 scaler: torch.amp.GradScaler | None = None) -> None:
        for one in encoder if isinstance(encoder, Sequence | nn.ModuleList) else [encoder]:
            if not callable(one):
                validation.refuse_type("encoder", one, "a module, another callable, or a sequence of them")
        if not callable(criterion):
            validation.refuse_type("criterion", criterion, "a module or another callable")
        for size in chunk if isinstance(chunk, Sequence) else [chunk]:
            validation.integer("chunk", size, 1, "an int >= 1, or a sequence of them")
        if scaler is not None and not hasattr(scaler, "scale"):
            validation.refuse_type("scaler", scaler, "None or a torch.amp.GradScaler")
        self.encoder, self.criterion, self.chunk, self.scaler = encoder, criterion, chunk, scaler

    def __call__(self, *inputs: Any, **keywords: Any) -> Tensor:
        """Add the gradients of the loss to the parameters', as ``loss.backward()`` does.

        Parameters
        ----------
        inputs : tensors, or tuples or dicts of tensors, of (rows, ...)
            Each goes to its encoder in chunks, a tuple as arguments and a dict as keywords; what is no tensor in them
            goes to every chunk. The criterion gets the embeddings in the same order.
        keywords
            The criterion's, whole: labels of all rows, for one.

        Returns
        -------
        0-d tensor without gradient: the loss, not scaled
        """
        if not inputs:
            raise ValueError("inputs: got none; accepted: a batch for each argument of the criterion")
        if not torch.is_grad_enabled():
            raise RuntimeError("CachedStep makes gradients; accepted: a call with gradients on, not in torch.no_grad()")
        chunks = [chunk for number in range(len(inputs)) for chunk in self._chunks(inputs, number)]
        with _rewinding([chunk.encoder for chunk in chunks]) as rewind:
            with torch.no_grad():
                first = [chunk.embed() for chunk in chunks]
            embeddings = [_embeddings(chunks, first, number) for number in range(len(inputs))]
            loss = self._backward(embeddings, keywords)
            rewind()
            with _random_state_afterwards(chunks):
                self._again(chunks, embeddings)
        return loss

    def _backward(self, embeddings: list[Tensor], keywords: dict[str, Any]) -> Tensor:
        """The loss; the embeddings' gradients, and the criterion's own."""
        loss = self.criterion(*embeddings, **keywords)
        if not isinstance(loss, Tensor):
            validation.refuse_type("criterion", loss, "one that returns a 0-d tensor")
        if loss.dim() != 0:
            validation.refuse_value("criterion", loss, "one that returns a 0-d tensor, as with reduction='mean'")
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return loss.detach()

    def _again(self, chunks: list[_Chunk], embeddings: list[Tensor]) -> None:
        last = {id(chunk.encoder): number for number, chunk in enumerate(chunks)}  # the dict keeps the last of each
        for number, chunk in enumerate(chunks):
            gradient = embeddings[chunk.input].grad
            if gradient is None:  # of a frozen encoder, or one that the criterion has no need of
                if number == last[id(chunk.encoder)] and embeddings[chunk.input].requires_grad:
                    gradient = torch.zeros_like(embeddings[chunk.input])  # the other ranks wait for its DDP
                else:
                    continue
            with nullcontext() if number == last[id(chunk.encoder)] else _no_sync(chunk.encoder):
                chunk.replay()
                embedded = chunk.embed()
                if embedded.requires_grad:
                    embedded.backward(gradient[chunk.rows])

    def _chunks(self, inputs: tuple[Any, ...], number: int) -> list[_Chunk]:
        """Of one input."""
        def of(name: str, value: Any) -> Any:
            if not isinstance(value, Sequence | nn.ModuleList):
                return value
            if len(value) != len(inputs):
                raise ValueError(f"{name}: got {len(value)} for {len(inputs)} inputs; accepted: one, or one for each")
            return value[number]

        encoder, size, given = of("encoder", self.encoder), of("chunk", self.chunk), inputs[number]
        name = f"inputs[{number}]"
        tensors = [part for part in _parts(given) if isinstance(part, Tensor)]
        accepted = "a tensor of (rows, ...), or a tuple or dict of them"
        if not tensors:
            validation.refuse_type(name, given, accepted)
        rows = tensors[0].shape[0] if tensors[0].dim() else -1
        for part in tensors:
            if part.dim() == 0 or part.shape[0] != rows:
                validation.refuse_value(name, part, f"{accepted}, of as many rows each")
        starts = range(0, max(rows, 1), size)  # a chunk of no rows, where there are none
        return [_Chunk(number, encoder, given, slice(start, min(start + size, rows)), []) for start in starts]


class _Chunk(NamedTuple):
    """Some rows of an input, and the random state that its first pass began with."""

    input: int
    encoder: Callable[..., Tensor]
    given: Any
    rows: slice
    random: list[_Random]

    def embed(self) -> Tensor:
        """(rows, D), by the state that there is, which is noted the first time."""
        if not self.random:
            self.random.append((torch.get_rng_state(), *get_device_states(self.places())))
        torch.clear_autocast_cache()  # a cast that was made without a graph would be used with one
        if isinstance(self.given, Mapping):
            embedded = self.encoder(**{name: self._cut(part) for name, part in self.given.items()})
        elif isinstance(self.given, tuple | list):
            embedded = self.encoder(*map(self._cut, self.given))
        else:
            embedded = self.encoder(self._cut(self.given))
        count = self.rows.stop - self.rows.start
        if not isinstance(embedded, Tensor):
            validation.refuse_type("encoder", embedded, "one that returns a (rows, D) tensor")
        if embedded.dim() == 0 or embedded.shape[0] != count:
            validation.refuse_value("encoder", embedded, f"one that returns a row for each of the chunk's {count}")
        return embedded

    def replay(self) -> None:
        """The random state of the first pass again."""
        cpu, devices, states = self.random[0]
        torch.set_rng_state(cpu)
        _set_device_states(self.places(), devices, states)

    def places(self) -> list[Tensor]:
        """Tensors on the devices whose generators a pass may draw from."""
        module = _module(self.encoder)
        parameters = [] if module is None else [p for _, p in zip(range(1), module.parameters(), strict=False)]
        return [part for part in (*_parts(self.given), *parameters) if isinstance(part, Tensor) and not part.is_cpu]

    def _cut(self, part: Any) -> Any:
        return part[self.rows] if isinstance(part, Tensor) else part


def _parts(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return list(given.values())
    return list(given) if isinstance(given, tuple | list) else [given]


def _embeddings(chunks: list[_Chunk], embedded: list[Tensor], number: int) -> Tensor:
    """Those of one input; with gradient, unless nothing behind them has one."""
    own = [(chunk, part) for chunk, part in zip(chunks, embedded, strict=True) if chunk.input == number]
    module, given = _module(own[0][0].encoder), own[0][0].given
    frozen = module is not None and not any(p.requires_grad for p in module.parameters()) and not any(
        isinstance(part, Tensor) and part.requires_grad for part in _parts(given))
    return torch.cat([part for _, part in own]).requires_grad_(not frozen)


def _no_sync(encoder: Any) -> AbstractContextManager[None]:
    """Gradients are added up on each rank, in DDP and in FSDP1. FSDP2 has no such context: it sums those of every
    chunk over the ranks, to the same gradient with more messages."""
    found: AbstractContextManager[None] = encoder.no_sync() if hasattr(encoder, "no_sync") else nullcontext()
    return found


def _set_device_states(places: list[Tensor], devices: list[int], states: list[Tensor]) -> None:
    if devices:
        set_device_states(devices, states, device_type=places[0].device.type)


@contextmanager
def _random_state_afterwards(chunks: list[_Chunk]) -> Iterator[None]:
    """That of now, whatever is done to it in between."""
    before = torch.get_rng_state()
    places = [place for chunk in chunks for place in chunk.places()]
    devices, states = get_device_states(places)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        _set_device_states(places, devices, states)


def _module(encoder: Any) -> nn.Module | None:
    """What holds an encoder's parameters, if anything: of a method, such as a model's `encode_text`, its object."""
    owner = getattr(encoder, "__self__", encoder)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def _rewinding(encoders: list[Any]) -> Iterator[Callable[[], None]]:
    """Gives a function that puts all buffers back to what they were before the first pass: of a wrapper's module when
    it is called, since the wrapper (DDP) has then made the ranks' buffers alike."""
    kept: dict[int, list[tuple[nn.Module, str, Tensor, Tensor]]] = {}

    def keep(module: nn.Module, *_: Any) -> None:
        if id(module) not in kept:
            kept[id(module)] = [(owner, name, buffer, buffer.clone()) for owner in module.modules()
                                for name, buffer in owner._buffers.items() if buffer is not None]

    def rewind() -> None:
        with torch.no_grad():
            for owner, name, buffer, value in (entry for entries in kept.values() for entry in entries):
                buffer.copy_(value)
                owner._buffers[name] = buffer  # it may have been replaced

    handles = []
    for encoder in {id(encoder): encoder for encoder in encoders}.values():
        module = _module(encoder)
        wrapped = getattr(module, "module", None) if hasattr(module, "no_sync") else None
        if isinstance(wrapped, nn.Module):
            handles.append(wrapped.register_forward_pre_hook(keep))
        elif module is not None:
            keep(module)
    try:
        yield rewind
    finally:
        for handle in handles:
            handle.remove()
