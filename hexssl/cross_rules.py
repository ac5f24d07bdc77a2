"""What may be given together where anchors meet other keys: the rules of `hexssl.cross_hex_loss`, of tensors and of
arrays alike."""

from __future__ import annotations

from typing import Any

from hexssl.validation import refuse_value


def together(symmetric: bool, queue: Any, paired: Any, self_offset: Any) -> None:
    """What goes with two directions, and with a queue."""
    if symmetric:
        for name, value in (("queue", queue), ("paired", paired), ("self_offset", self_offset)):
            if value is not None:
                refuse_value(name, value, "None with symmetric=True, since it has no other direction")
    if queue is not None and paired is not None:
        refuse_value("paired", paired, "None with a queue, where the keys are the paired positives")


def a_key_each(anchors: Any, keys: Any) -> None:
    """Where key i is the positive of anchor i."""
    if keys.shape[0] < anchors.shape[0]:
        refuse_value("keys", keys, f"without labels, relation or paired a row for each of the {anchors.shape[0]} "
                                   "anchors, key i the positive of anchor i, and others behind them")


def as_many_keys(anchors: Any, keys: Any, symmetric: bool, reduction: str) -> None:
    """The losses of two directions are averaged row by row."""
    if symmetric and reduction == "none" and keys.shape[0] != anchors.shape[0]:
        refuse_value("keys", keys, "as many rows as anchors with symmetric=True and reduction='none', "
                                   f"{anchors.shape[0]}")
