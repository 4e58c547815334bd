"""The subcommands of ``innerwatch``: each has ``add_parser`` and ``run``."""
