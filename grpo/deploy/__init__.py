"""A trained agent at work: on a live page, with any server, in other formats."""
