"""Makes the manual pages from the help of the commands and the reference of the configuration."""
