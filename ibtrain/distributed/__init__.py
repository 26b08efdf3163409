"""The processes of a run: who is who, and what one tells the others."""
