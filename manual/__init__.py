"""Makes the manual pages of what the commands and the configuration say of themselves."""
