"""Which artefact is made from what, and what state it is in."""
