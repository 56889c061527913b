"""The subcommands of ``case``, one file each: a frozen dataclass that is its flags, and what it does with them."""
