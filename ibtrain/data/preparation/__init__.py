"""From annotation files and images to shards: surveyed, converted in processes or chunks, merged."""
