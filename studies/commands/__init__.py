"""The commands of ``study``, one module each. A command's module is imported when the command is called."""
