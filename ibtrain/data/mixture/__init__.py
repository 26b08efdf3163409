"""The balanced mixture: what is drawn in which order, read, cached, collated, and shown."""
