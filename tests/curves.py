"""What TensorBoard would show of a run."""


def curves(folder):
    """Return ``(step, value)`` of each scalar by tag, and the steps of each text by tag."""
    # TensorBoard's own reader, which drops texts of before a restart as it drops numbers.
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    scalars, texts = {}, {}
    for tag in events.Tags()["tensors"]:
        found = events.Tensors(tag)
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            values = [tensor_util.make_ndarray(one.tensor_proto).item() for one in found]
            scalars[tag] = [(one.step, value) for one, value in zip(found, values, strict=True)]
        else:
            texts[tag] = [one.step for one in found]
    return scalars, texts
