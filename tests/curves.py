"""What TensorBoard would show of a run."""


def curves(folder):
    """Return ``(step, value)`` of each scalar by tag, and the steps of each text by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    scalars = {
        tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags["scalars"]
    }
    texts = {tag: [one.step for one in events.Tensors(tag)] for tag in tags["tensors"]}
    return scalars, texts


def shown_at(steps):
    """Return where evaluations after so many steps are shown: the last step before, from 0."""
    return [max(step - 1, 0) for step in steps]
