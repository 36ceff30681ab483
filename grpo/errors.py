"""The error that every wing of the library may raise; a light import."""


class ConfigError(ValueError):
    """The user asked for something that cannot be done; the message is one line and says why."""
