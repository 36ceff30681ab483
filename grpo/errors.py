"""The error that any part of the library may raise; importing it costs nothing."""


class ConfigError(ValueError):
    """The user asked for something that cannot be done; the message is one line and says why."""
