"""Channel layouts: keeps PyAV from freeing memory that FFmpeg frees as well.

FFmpeg describes an order of channels that has no name of its own (7.1 in a QuickTime file, stereo that says Right,
Left) by a table in memory. From 17.1 on PyAV copies the address of that table into each `AudioLayout`, of a stream or
of a frame, and frees it with that object; FFmpeg frees it again with the decoder or the frame. Most containers can hold
such an order. No decoder of `trial.MODEST` makes one: a frame has the order that the decoder was opened with, or one
that has a name.
"""

from __future__ import annotations

from av.audio.codeccontext import AudioCodecContext


def drop_channel_table(context: AudioCodecContext) -> None:
    """Replaces the order of the channels by their number, in a decoder that is not open yet.

    Nothing may have read `layout` or `channels` of the context or its stream before: that alone frees the table.
    """
    layout = context.layout  # from the next statement on the only owner of the table, which it frees once
    if layout.nb_channels:
        context.layout = f"{layout.nb_channels} channels"  # PyAV overwrites the context's layout without freeing it
