"""From annotation files and images to shards: surveyed, converted in chunks, merged."""
