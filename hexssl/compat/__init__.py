"""Drop-ins: the losses of other libraries by their names, arguments, defaults and results.

=========================  =============================================================
import from                in place of
=========================  =============================================================
`compat.solo`              ``solo.losses`` (solo-learn), and the losses published with HEX
`compat.lightly`           ``lightly.loss``
`compat.info_nce`          ``info_nce``
`compat.metric_learning`   ``pytorch_metric_learning.losses``
`compat.open_clip`         ``open_clip.loss``
=========================  =============================================================

Each gives that library's number; the keyword ``threshold="adaptive"`` (or any other threshold, see `hexssl.hex_loss`)
turns hierarchical negatives on. None of them imports the library it stands in for. What differs in all of them: half
precision is computed in float32 and gives a float32 loss, small temperatures do not overflow, and an anchor without a
positive is left out where it would make the loss infinite.
"""
