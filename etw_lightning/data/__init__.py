"""From rows to labelled tokens, and the order in which they are seen."""
