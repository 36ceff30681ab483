"""Demonstrations by a person: what is done in a visible browser as actions of the grammar."""
